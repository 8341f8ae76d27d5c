//! Files that cannot be disks, and disks that are in use.

use crate::common::TempDir;
use crate::common::process::{contained, end, kickvm};
use crate::support::guests::EXIT_7;
use crate::support::images::elf;
use crate::support::run::run;
use crate::{guest, need_kvm, print_serial};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

guest!(DISK_WAIT, print_serial!("up\\n"), "3: pause; jmp 3b",);

/// `kickvm run` in `dir` with this `--disk`.
fn with_disk(dir: &TempDir, disk: &str) -> Command {
    if !dir.path().join("kernel").exists() {
        dir.file("kernel", &elf(&EXIT_7));
    }
    let mut command = kickvm(&["run", "--kernel=kernel", "--memory=2M", "--disk", disk]);
    command.current_dir(dir.path());
    command
}

#[test]
fn files_that_are_not_disks() {
    need_kvm!();
    let dir = TempDir::new();
    dir.file("empty", b"");
    dir.file("partial", &[0; 513]);
    for (name, magic) in [("a.qcow2", &b"QFI\xfb"[..]), ("a.vmdk", b"KDMV"), ("a.vhdx", b"vhdxfile")] {
        dir.file(name, &[magic, &[0; 512][magic.len()..]].concat());
    }
    let image = |format: &str| {
        let convert = format!("'qemu-img convert -f {format} -O raw a.{format} a.{format}.raw' makes a raw one");
        let why = format!("it is a {format} image; {convert} (append ',raw' to use its bytes as they are)");
        format!("cannot use disk 'a.{format}': {why}")
    };
    end(with_disk(&dir, "a.qcow2,raw")).assert(7, "", &[]);
    fs::create_dir(dir.path().join("directory")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success());
    for (disk, line) in [
        ("missing", "cannot open disk 'missing': No such file or directory"),
        ("kernel/missing", "cannot open disk 'kernel/missing': Not a directory"),
        ("empty", "cannot use disk 'empty': it is empty; 'truncate -s 1G' makes an image of 1 GiB"),
        (
            "partial",
            "cannot use disk 'partial': its size of 513 bytes is not a multiple of 512; 'truncate -s %512' fills up the last sector",
        ),
        ("directory", "cannot use disk 'directory': it is a directory"),
        ("directory,ro", "cannot use disk 'directory': it is a directory"),
        ("fifo", "cannot use disk 'fifo': it is neither a regular file nor a block device"),
        ("/dev/zero", "cannot use disk '/dev/zero': it is neither a regular file nor a block device"),
        ("a.qcow2", &image("qcow2")),
        ("a.vmdk,ro", &image("vmdk")),
        ("a.vhdx", &image("vhdx")),
        ("two\nlines", "cannot open disk 'two?lines': No such file or directory"),
        ("with,,comma", "cannot open disk 'with,comma': No such file or directory"),
    ] {
        end(with_disk(&dir, disk)).assert(125, "", &[&format!("kickvm: {line}")]);
    }
}

#[test]
fn disks_without_write_permission() {
    need_kvm!();
    let dir = TempDir::new();
    let image = dir.file("image", &[0; 512]);
    fs::set_permissions(&image, Permissions::from_mode(0o444)).unwrap();
    // Root can write every file, unless this capability is dropped.
    let prefix: &[&str] = match OpenOptions::new().write(true).open(image) {
        Ok(_) => &["setpriv", "--bounding-set=-dac_override"],
        Err(_) => &["env"],
    };
    for (disk, code, lines) in [
        (
            "image",
            125,
            &["kickvm: cannot open disk 'image': Permission denied; append ',ro' if the guest need not write"][..],
        ),
        ("image,ro", 7, &[]),
    ] {
        let inner = with_disk(&dir, disk);
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(inner.get_program()).args(inner.get_args()).current_dir(dir.path());
        contained(&mut command);
        end(command).assert(code, "", lines);
    }
}

/// The error names the process that has locked the file: another kickvm, or any other program.
#[test]
fn disks_that_are_in_use() {
    need_kvm!();
    let mut first = run(&DISK_WAIT, &[]);
    let image = first.dir.file("image", &[0; 4096]);
    let path = image.display().to_string();
    first.command.args(["--disk", &path]);
    let mut first = first.start();
    first.wait_for("up");
    let dir = TempDir::new();
    let holder = format!("process {} (kickvm)", first.pid());
    let line = |holder: &str, remedy: &str| {
        format!("kickvm: cannot use disk '{path}': it is in use: {holder} has locked it{remedy}")
    };
    let remedy = "; guests can share a disk if each has it with ',ro'";
    end(with_disk(&dir, &path)).assert(125, "", &[&line(&holder, remedy)]);
    end(with_disk(&dir, &format!("{path},ro"))).assert(125, "", &[&line(&holder, "")]);
    drop(first);

    let dir = TempDir::new();
    let path = dir.file("image", &[0; 4096]).display().to_string();
    let lock = Flock::lock(File::open(&path).unwrap(), FlockArg::LockSharedNonblock).unwrap();
    let ended = end(with_disk(&dir, &path));
    assert_eq!(ended.code, Some(125));
    let start = format!("kickvm: cannot use disk '{path}': it is in use: process {} (", std::process::id());
    assert!(
        ended.stderr.starts_with(&start) && ended.stderr.ends_with(&format!(") has locked it{remedy}\n")),
        "{ended:?}"
    );
    end(with_disk(&dir, &format!("{path},ro"))).assert(7, "", &[]);
    drop(lock);
    end(with_disk(&dir, &path)).assert(7, "", &[]);

    let twice = format!("kickvm: cannot use disk '{path}': it is already a disk of this guest");
    let mut command = with_disk(&dir, &path);
    command.args(["--disk", &path]);
    end(command).assert(125, "", &[&twice]);
}

#[test]
fn a_disk_that_is_also_the_console_file_is_not_truncated() {
    need_kvm!();
    let dir = TempDir::new();
    let image = dir.file("image", &[7; 512]);
    let mut command = with_disk(&dir, "image");
    command.arg("--console=file=image");
    let line = "kickvm: cannot open console file 'image': it is also used as the kernel, an initramfs or a disk";
    end(command).assert(125, "", &[line]);
    assert_eq!(fs::read(image).unwrap(), [7; 512]);
}

#[test]
fn invalid_disk_options() {
    let see = "; see 'kickvm run --help'";
    let name = "'--disk <PATH[,ro][,direct][,raw][,id=NAME]>'";
    let not =
        |part| format!("'{part}' is not ro, direct, raw or id=NAME, each given once; write a comma in the path as two");
    for (disk, why) in [
        ("", "give a path"),
        (",ro", "give a path"),
        ("a,rw", &not("rw")),
        ("a,ro,ro", &not("ro")),
        ("a,id=", "give an id of 1 to 20 bytes"),
        ("a,id=123456789012345678901", "give an id of 1 to 20 bytes"),
    ] {
        let line = format!("kickvm: invalid value '{disk}' for {name}: {why}{see}");
        end(kickvm(&["run", "--kernel=kernel", "--disk", disk])).assert(125, "", &[&line]);
    }
}

#[test]
fn more_disks_than_the_limit() {
    need_kvm!();
    let dir = TempDir::new();
    dir.file("kernel", &elf(&EXIT_7));
    let mut command = kickvm(&["run", "--kernel=kernel", "--memory=2M"]);
    command.current_dir(dir.path());
    for n in 0..18 {
        dir.file(&n.to_string(), &[0; 512]);
        command.arg(format!("--disk={n}"));
    }
    let line = "kickvm: a VM has at most 17 virtio devices (disks, network interfaces, vsock, shares, rng, console and balloon)";
    end(command).assert(125, "", &[line]);
}
