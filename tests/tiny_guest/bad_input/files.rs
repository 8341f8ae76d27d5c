//! Kernels and initramfs archives that are not valid.

use super::names;
use crate::common::process::{contained, end, kickvm};
use crate::common::{TempDir, noise};
use crate::need_kvm;
use crate::support::guests::EXIT_7;
use crate::support::images::{self, bzimage, cpio, elf, pvh};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// `kickvm run` in `dir`.
fn run_in(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = kickvm(&["run"]);
    command.current_dir(dir.path()).args(args);
    command
}

/// Asserts that each file is rejected with its reason: as a kernel, or as the initramfs of a valid kernel.
#[track_caller]
fn refused(role: &str, files: &[(&str, Vec<u8>, &str)]) {
    let dir = TempDir::new();
    dir.file("good", &elf(&EXIT_7));
    for (name, content, why) in files {
        let path = dir.file(name, content);
        let mut command = run_in(&dir, &[if role == "kernel" { "--kernel" } else { "--kernel=good" }]);
        if role == "initramfs" {
            command.arg("--initramfs");
        }
        command.arg(name);
        end(command).assert(125, "", &[&format!("kickvm: cannot use {role} '{name}': {why}")]);
        fs::remove_file(path).unwrap();
    }
    assert_eq!(names(&dir), ["good"], "left behind");
}

/// `image` with these bytes changed.
fn changed(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn the_images_that_the_other_tests_damage_boot() {
    need_kvm!();
    let dir = TempDir::new();
    dir.file("archive", &cpio("init", b"#!/bin/sh"));
    // PVH enters in 32-bit mode, in which these instructions mean the same.
    let entry = u32::try_from(images::HIGH_RAM).unwrap();
    for image in [elf(&EXIT_7), pvh(&EXIT_7, entry), bzimage(&EXIT_7)] {
        dir.file("kernel", &image);
        end(run_in(&dir, &["--kernel", "kernel", "--initramfs=archive", "--initramfs=archive"])).assert(7, "", &[]);
    }
}

#[test]
fn files_that_are_not_kernels() {
    need_kvm!();
    let nothing_known = "it is neither a bzImage nor an ELF image";
    refused(
        "kernel",
        &[
            ("empty", vec![], "it is empty"),
            ("short", vec![0x7f], nothing_known),
            ("zeros", vec![0; 1 << 20], nothing_known),
            ("random", noise(1 << 20), nothing_known),
            ("gzip", b"\x1f\x8b\x08\0 and so on".to_vec(), "its gzip data is invalid: corrupt deflate stream"),
            ("bzip2", b"BZh9 and so on".to_vec(), "it is bzip2-compressed; unpack it first (bunzip2)"),
            ("lzma", b"\x5d\0\0\x80\0 and so on".to_vec(), "it is lzma-compressed; unpack it first (unlzma)"),
            ("arm64", at(56, b"ARM\x64"), "it is an arm64 kernel, not one for x86-64"),
            (
                "uki",
                b"MZ and so on".to_vec(),
                "it is an EFI program and no bzImage; a unified kernel image (UKI) contains a kernel \
                 (objcopy -O binary --only-section=.linux FILE vmlinuz)",
            ),
        ],
    );
}

/// Zeros, with these bytes at an offset.
fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
    [&vec![0; offset], bytes].concat()
}

/// The shell's `<(command)` is a pipe, which is read once.
#[test]
fn a_kernel_and_an_initramfs_may_come_from_a_pipe() {
    need_kvm!();
    let dir = TempDir::new();
    dir.file("kernel", &elf(&EXIT_7));
    dir.file("archive", &cpio("init", b"#!/bin/sh"));
    let mut command = Command::new("bash");
    command.args(["-c", r#"exec "$0" "$@" -k <(cat kernel) -i <(cat archive)"#, env!("CARGO_BIN_EXE_kickvm"), "run"]);
    command.current_dir(dir.path());
    end(command).assert(7, "", &[]);
    let mut command = Command::new("bash");
    command.args(["-c", r#"exec "$0" "$@" -k <(cat kernel) --cpus 1,2"#, env!("CARGO_BIN_EXE_kickvm"), "run"]);
    command.current_dir(dir.path());
    let ended = end(command);
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
}

#[test]
fn a_kernel_is_named_by_a_directory_or_by_the_environment() {
    need_kvm!();
    let dir = TempDir::new();
    fs::create_dir_all(dir.path().join("package/boot")).unwrap();
    fs::create_dir_all(dir.path().join("tree/include/config")).unwrap();
    dir.file("package/boot/vmlinuz-6.1", &elf(&EXIT_7));
    dir.file("tree/include/config/kernel.release", b"6.1\n");
    dir.file("tree/vmlinux", &elf(&EXIT_7));
    end(run_in(&dir, &["--kernel", "package"])).assert(7, "", &[]);
    for (variable, current) in [(Some("package"), "."), (Some("tree/vmlinux"), "."), (None, "tree/include")] {
        let mut command = run_in(&dir, &[]);
        command.env_remove("KICKVM_KERNEL").envs(variable.map(|name| ("KICKVM_KERNEL", name)));
        command.current_dir(dir.path().join(current));
        end(command).assert(7, "", &[]);
    }
}

#[test]
fn elf_images_that_are_not_kernels() {
    need_kvm!();
    let good = || elf(&EXIT_7);
    let broken = "its ELF program headers are invalid";
    let segment = images::PROGRAM_HEADER;
    refused(
        "kernel",
        &[
            ("32-bit", changed(good(), 4, &[1]), "it is not a 64-bit little-endian ELF image"),
            ("big-endian", changed(good(), 5, &[2]), "it is not a 64-bit little-endian ELF image"),
            ("arm64", changed(good(), 18, &[183]), "it is not built for x86-64 (ELF machine 183)"),
            ("magic-only", b"\x7fELF".to_vec(), "it is not a 64-bit little-endian ELF image"),
            ("header-size", changed(good(), 54, &[55]), broken),
            ("header-count", changed(good(), 56, &[0xff, 0xff]), broken),
            ("no-headers", changed(good(), 56, &[0]), "it has no segment to load"),
            ("headers-far-away", changed(good(), 32, &[0xff; 8]), "it has no segment to load"),
            ("entry", changed(good(), 24, &[0, 0, 0x20]), "its entry point 0x200000 is outside its segments"),
            ("low", changed(good(), segment + 24, &[0, 0, 0]), "its load address 0x0 is below 1 MiB"),
            (
                "file-size",
                changed(good(), segment + 32, &[0xff; 8]),
                "it is cut off: a segment ends after its 2168 bytes",
            ),
            ("memory-size", changed(good(), segment + 40, &[0; 8]), broken),
            ("address", changed(good(), segment + 24, &[0xff; 8]), broken),
            ("cut-off", good()[..1000].to_vec(), "it is cut off: a segment ends after its 1000 bytes"),
            ("random-headers", [&good()[..24], &noise(4096)].concat(), broken),
        ],
    );
}

#[test]
fn bzimages_that_cannot_be_entered() {
    need_kvm!();
    let good = || bzimage(&EXIT_7);
    let cut = |len| format!("it is cut off: its header announces {} bytes, but it has {len}", good().len());
    refused(
        "kernel",
        &[
            ("32-bit", changed(good(), images::XLOADFLAGS, &[0]), "it has no 64-bit entry: it is a 32-bit kernel"),
            (
                "old",
                changed(good(), images::VERSION, &[0x0b, 2]),
                "its boot protocol 2.11 is older than 2.12 (Linux 3.8)",
            ),
            ("cut-early", good()[..0x100].to_vec(), "it is neither a bzImage nor an ELF image"),
            ("cut-in-header", good()[..0x220].to_vec(), "it has no 64-bit entry: it is a 32-bit kernel"),
            ("cut", good()[..2000].to_vec(), &cut(2000)),
            ("cut-behind-header", good()[..images::SETUP_HEADER.end].to_vec(), &cut(images::SETUP_HEADER.end)),
            ("cut-by-one", good()[..good().len() - 1].to_vec(), &cut(good().len() - 1)),
            ("low", changed(good(), images::PREF_ADDRESS, &[0; 8]), "its load address 0x0 is below 1 MiB"),
            (
                "impossible",
                changed(good(), images::PREF_ADDRESS, &[0xff; 8]),
                "its load address 0xffffffffffffffff is impossible",
            ),
        ],
    );
}

#[test]
fn files_that_are_not_initramfs_archives() {
    need_kvm!();
    let archive = || cpio("init", &[b'x'; 1000]);
    let nothing_known = "it is neither a cpio archive (newc) nor in a compression that Linux supports";
    let tail = "it has neither a cpio header nor a known compression at byte 1536";
    refused(
        "initramfs",
        &[
            ("empty", vec![], "it is empty"),
            ("zeros", vec![0; 4096], "it contains only zeros"),
            ("random", noise(1 << 20), nothing_known),
            ("kernel", bzimage(&EXIT_7), nothing_known),
            ("cut-in-header", archive()[..100].to_vec(), "its cpio header at byte 0 is invalid"),
            ("cut", archive()[..600].to_vec(), "it is cut off: it must have at least 1116 bytes, but it has 600"),
            ("header", changed(archive(), 54, b"x"), "its cpio header at byte 0 is invalid"),
            ("tail", [archive(), noise(100)].concat(), tail),
        ],
    );
}

#[test]
fn files_that_are_missing_or_not_regular() {
    need_kvm!();
    let dir = TempDir::new();
    dir.file("good", &elf(&EXIT_7));
    fs::create_dir(dir.path().join("directory")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success());
    for (name, why) in [
        ("fifo", "cannot use ROLE 'fifo': it is not a regular file"),
        ("/dev/zero", "cannot use ROLE '/dev/zero': it is not a regular file"),
        ("missing", "cannot open ROLE 'missing': No such file or directory"),
        ("good/missing", "cannot open ROLE 'good/missing': Not a directory"),
        ("two\nlines\x1b[31m", "cannot open ROLE 'two?lines?[31m': No such file or directory"),
    ] {
        let line = |role| format!("kickvm: {}", why.replace("ROLE", role));
        end(run_in(&dir, &["--kernel", name])).assert(125, "", &[&line("kernel")]);
        end(run_in(&dir, &["--kernel=good", "--initramfs", name])).assert(125, "", &[&line("initramfs")]);
    }
    let line = "kickvm: cannot use initramfs 'directory': it is a directory";
    end(run_in(&dir, &["--kernel=good", "--initramfs", "directory"])).assert(125, "", &[line]);
    assert_eq!(names(&dir), ["directory", "fifo", "good"]);
}

#[test]
fn files_without_read_permission() {
    need_kvm!();
    let dir = TempDir::new();
    let secret = dir.file("secret", &elf(&EXIT_7));
    fs::set_permissions(&secret, Permissions::from_mode(0o000)).unwrap();
    dir.file("good", &elf(&EXIT_7));
    // Root can read every file, unless these two capabilities are dropped.
    let prefix: &[&str] = match File::open(secret) {
        Ok(_) => &["setpriv", "--bounding-set=-dac_override,-dac_read_search"],
        Err(_) => &["env"],
    };
    for (args, role) in
        [(&["--kernel", "secret"][..], "kernel"), (&["--kernel=good", "--initramfs", "secret"][..], "initramfs")]
    {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(env!("CARGO_BIN_EXE_kickvm")).arg("run").args(args);
        contained(command.current_dir(dir.path()));
        end(command).assert(125, "", &[&format!("kickvm: cannot open {role} 'secret': Permission denied")]);
    }
}

#[test]
fn too_little_memory_is_an_error_with_both_sizes() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = changed(bzimage(&EXIT_7), images::INIT_SIZE, &(9u32 << 20).to_le_bytes());
    dir.file("kernel", &kernel);
    dir.file("archive", &cpio("data", &vec![0; 7 << 20]));
    let line =
        "kickvm: guest memory of 16M is too small: kernel 'kernel' needs 10M, the initramfs 8M; try --memory 64M";
    end(run_in(&dir, &["--kernel=kernel", "--initramfs=archive", "--memory=16M"])).assert(125, "", &[line]);
    end(run_in(&dir, &["--kernel=kernel", "--initramfs=archive", "--memory=64M"])).assert(7, "", &[]);
    let line = "kickvm: guest memory of 8M is too small: kernel 'kernel' needs 10M, the initramfs 0K; try --memory 64M";
    end(run_in(&dir, &["--kernel=kernel", "--memory=8M"])).assert(125, "", &[line]);

    let endless = File::create(dir.path().join("endless")).unwrap();
    endless.set_len(1 << 40).unwrap(); // sparse, takes no space
    let ended = end(run_in(&dir, &["--kernel=kernel", "--initramfs=endless"]));
    let line = "kickvm: cannot use kernel 'kernel': it and the initramfs need memory up to 1048587M, but a guest has 3G below 4 GiB at most";
    ended.assert(125, "", &[line]);
}
