//! Shared directories: the guest reads and writes the files of the host without a copy, and nothing next to them.

use super::kernels::package;
use super::run::{Ended, Exec, Running, busybox};
use crate::common::TempDir;
use crate::common::fuse::Fuse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

on_both_kernels!(a_writable_share, changes_of_the_host);
on_kernel!(
    ours_only,
    BzImage,
    an_overlay_and_a_read_only_share,
    results_of_system_calls_for_another_user,
    the_host_has_what_was_fsynced_when_the_guest_is_killed,
    a_request_takes_one_notification_and_one_interrupt,
    a_share_that_does_not_answer
);
on_kernel!(stock_only, Stock, a_shared_root, results_of_system_calls, a_root_that_the_kernel_cannot_share);

/// Prints the results of system calls in a directory.
const POSIX: &str = include_str!("posix.py");

/// How long a run may last after the signal: 2 s, on a machine that is ten times slower.
const LIMIT: Duration = Duration::from_secs(20);

/// A directory to share.
fn directory(exec: &Exec, name: &str) -> PathBuf {
    let directory = exec.scratch.path().join(name);
    fs::create_dir(&directory).unwrap();
    directory
}

/// The same guest, with the modules of the stock kernel beside it.
fn with_modules(exec: Exec) -> Exec {
    if exec.assets.kernel.with_file_name("modules").exists() { package(exec).0 } else { exec }
}

fn share(exec: Exec, directory: &Path, rest: &str) -> Exec {
    exec.options(&["--share", &format!("{}{rest}", directory.display())])
}

/// What the guest writes is on the host, with names of any bytes; and what the host writes, the guest reads.
fn a_writable_share(exec: Exec) {
    let shared = directory(&exec, "shared");
    fs::write(shared.join("from-host"), b"host\n").unwrap();
    fs::write(exec.scratch.path().join("canary"), b"secret").unwrap();
    symlink("../canary", shared.join("link")).unwrap();
    let script = r"
        busybox --install -s /bin && cd /mnt && cat from-host
        cat link 2>/dev/null || echo no canary
        mkdir dir && for n in $(seq 50); do echo $n >dir/$n; done
        ls dir | wc -l
        echo odd >$(printf 'n\377me')
        dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\0' x >large
        mv from-host renamed && echo more >>renamed
        for n in $(seq 64); do yes $n | head -n 1000 >parallel-$n & done; wait
        rm -r dir
        stat -c '%s %a %u' large
        grep -lx 1024 /sys/class/bdi/*/read_ahead_kb | wc -l";
    let ended = share(with_modules(exec), &shared, ":/mnt,rw").sh(script);
    let owner = fs::metadata(&shared).unwrap().uid();
    ended.assert(0, &format!("host\nno canary\n50\n8388608 644 {owner}\n1\n"), "");
    assert_eq!(fs::read(shared.join("renamed")).unwrap(), b"host\nmore\n");
    assert_eq!(fs::read(shared.join(OsStr::from_bytes(b"n\xffme"))).unwrap(), b"odd\n");
    assert!(fs::read(shared.join("large")).unwrap().iter().all(|byte| *byte == b'x'));
    for n in 1..=64 {
        let content = fs::read(shared.join(format!("parallel-{n}"))).unwrap();
        assert!(content == format!("{n}\n").repeat(1000).as_bytes(), "parallel-{n}");
    }
    assert!(!shared.join("dir").exists());
}

fn an_overlay_and_a_read_only_share(exec: Exec) {
    let (over, read_only) = (directory(&exec, "over"), directory(&exec, "read-only"));
    for directory in [&over, &read_only] {
        fs::write(directory.join("file"), b"host\n").unwrap();
    }
    let script = "
        busybox --install -s /bin
        echo guest >/over/file && mkdir /over/new && cat /over/file && ls /over
        (echo guest >/ro/file) 2>/dev/null || echo refused
        cat /ro/file";
    let ended = share(share(with_modules(exec), &over, ":/over,overlay"), &read_only, ":/ro,ro").sh(script);
    ended.assert(0, "guest\nfile\nnew\nrefused\nhost\n", "");
    for directory in [&over, &read_only] {
        assert_eq!(fs::read(directory.join("file")).unwrap(), b"host\n");
        assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
    }
}

/// The guest sees files that the host renames, truncates, replaces and deletes, although it has cached them.
fn changes_of_the_host(exec: Exec) {
    let shared = directory(&exec, "shared");
    for name in ["renamed", "truncated", "deleted", "replaced"] {
        fs::write(shared.join(name), b"a long content\n").unwrap();
    }
    let script = "
        busybox --install -s /bin && cd /mnt && cat * >/dev/null && echo ready
        read go
        for try in $(seq 100); do [ -e deleted ] || break; usleep 100000; done
        sleep 2
        ls && cat new-name truncated replaced";
    let mut running = share(with_modules(exec).busybox(), &shared, ":/mnt,rw").start(&["sh", "-c", script]);
    running.wait_for("ready\n");
    fs::rename(shared.join("renamed"), shared.join("new-name")).unwrap();
    fs::OpenOptions::new().write(true).open(shared.join("truncated")).unwrap().set_len(2).unwrap();
    fs::remove_file(shared.join("replaced")).unwrap();
    fs::write(shared.join("replaced"), b"\nnew\n").unwrap();
    fs::remove_file(shared.join("deleted")).unwrap();
    let ended = running.end_with(b"go\n");
    let text = ended.text().strip_prefix("ready\n").unwrap_or(ended.text());
    assert_eq!((ended.status.code(), text), (Some(0), "new-name\nreplaced\ntruncated\na long content\na \nnew\n"));
}

/// The test machine's own root, with a file of `--copy` over it. The guest's changes are not on the host.
fn a_shared_root(exec: Exec) {
    let file = exec.scratch.path().join("file");
    fs::write(&file, b"copied\n").unwrap();
    let copy = format!("{}:/etc/copied", file.display());
    let tools = format!(
        r#"
        (cd /usr && tar c --sort=name share/doc/bash lib/x86_64-linux-gnu/perl-base) | sha256sum
        find /usr/bin -xdev | wc -l
        echo 'int main(void) {{ return 42; }}' | gcc -x c -o /tmp/kickvm-program -; /tmp/kickvm-program; echo $?
        rm /tmp/kickvm-program
        cd {} && git -c safe.directory=* status --short | sha256sum"#,
        env!("CARGO_MANIFEST_DIR")
    );
    let script = format!(
        "cat /etc/copied && echo guest >>/etc/hostname.kickvm && mkdir /new && rm /etc/passwd && [ ! -e /etc/passwd ]
        stat -f -c %T /{tools}"
    );
    let ended = with_modules(exec).options(&["--root", "/", "--copy", &copy]).run(&["sh", "-c", &script]);
    ended.assert(0, &format!("copied\noverlayfs\n{}", output(&["sh", "-c", &tools])), "");
    assert!(!Path::new("/new").exists() && Path::new("/etc/passwd").exists());
}

/// They are equal to those on the host's own directory, of a file system that has everything.
fn results_of_system_calls(exec: Exec) {
    let mounted = Mounted(directory(&exec, "ext4"));
    let image = exec.scratch.file("image", b"").display().to_string();
    output(&["truncate", "--size=64M", &image]);
    output(&["mkfs.ext4", "-qF", &image]);
    output(&["mount", "-o", "loop", &image, &mounted.0.display().to_string()]);
    let [shared, own] = ["shared", "own"].map(|name| mounted.0.join(name));
    for directory in [&shared, &own] {
        fs::create_dir(directory).unwrap();
    }
    let script = exec.scratch.file("posix.py", POSIX.as_bytes()).display().to_string();
    let host = output(&["/usr/bin/python3", &script, &own.display().to_string()]);
    assert!(host.lines().count() > 70, "{host}");
    let exec = share(with_modules(exec), &shared, ":/mnt,rw").options(&["--copy", &format!("{script}:/posix.py")]);
    same_lines(&exec.options(&["--root", "/"]).run(&["/usr/bin/python3", "/posix.py", "/mnt"]), &host);
}

/// A mount that ends with this.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The same for an ordinary user of the host, whose guest runs the command as the same user.
fn results_of_system_calls_for_another_user(exec: Exec) {
    const USER: [&str; 5] = ["/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--"];
    let scratch = exec.scratch.path().to_owned();
    let [shared, own] = ["shared", "own"].map(|name| directory(&exec, name));
    for directory in [&scratch, &shared, &own] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    }
    // Files of the host that this user can reach.
    for (name, from) in [("kernel", exec.assets.kernel.as_path()), ("kickvm", env!("CARGO_BIN_EXE_kickvm").as_ref())] {
        fs::copy(from, scratch.join(name)).unwrap();
    }
    let path = |name: &str| scratch.join(name).display().to_string();
    fs::write(path("posix.py"), POSIX).unwrap();
    let python = |directory: &str| ["/usr/bin/python3".to_owned(), path("posix.py"), directory.to_owned()];
    let host = Command::new(USER[0]).args(&USER[1..]).args(python(&path("own"))).output().unwrap();
    let mut command = Command::new(USER[0]);
    command.args(&USER[1..]).arg(path("kickvm")).args(["exec", "--user", "1000:1000", "--kernel", &path("kernel")]);
    command.args(["--share", &format!("{}:/mnt,rw", path("shared")), "--"]).args(python("/mnt")).current_dir("/");
    same_lines(&Running::of(command, exec.scratch).end_with(b""), str::from_utf8(&host.stdout).unwrap());
}

/// Asserts that the guest has printed these lines. The first difference is enough.
#[track_caller]
fn same_lines(ended: &Ended, host: &str) {
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""));
    for (guest, host) in ended.text().lines().zip(host.lines()) {
        assert_eq!(guest, host);
    }
    assert_eq!(ended.text().len(), host.len());
}

/// Runs a command on the host.
fn output(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn the_host_has_what_was_fsynced_when_the_guest_is_killed(exec: Exec) {
    let shared = directory(&exec, "shared");
    let script = "
        busybox dd if=/dev/zero of=/mnt/synced bs=64k count=16 conv=fsync 2>/dev/null; echo synced
        while :; do echo more >>/mnt/more; done";
    let mut running = share(exec.busybox(), &shared, ":/mnt,rw").start(&["sh", "-c", script]);
    running.wait_for("synced\n");
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGKILL).unwrap();
    let ended = running.end_with(b"");
    assert_eq!(ended.status.signal(), Some(libc::SIGKILL));
    assert!(fs::read(shared.join("synced")).unwrap() == vec![0; 1 << 20]);
    let more = fs::read(shared.join("more")).unwrap_or_default();
    assert!(more.chunks(5).all(|line| line == b"more\n"));
}

/// Requests that follow each other, each of which is a lookup of a file that does not exist.
fn a_request_takes_one_notification_and_one_interrupt(exec: Exec) {
    const REQUESTS: u64 = 200;
    let shared = directory(&exec, "shared");
    let script = format!(
        r#"
        interrupts() {{ while read irq count rest; do case $rest in *virtio0*) echo $count;; esac; done </proc/interrupts; }}
        [ -e /mnt/missing ]; echo ready; read go
        a=$(interrupts); n=0; while [ $n != {REQUESTS} ]; do [ -e /mnt/missing ]; n=$((n + 1)); done; b=$(interrupts)
        echo done; read end; echo $((b - a))"#
    );
    let mut running = share(exec.busybox().options(&["--no-rng"]), &shared, ":/mnt,rw").start(&["sh", "-c", &script]);
    running.wait_for("ready\n");
    let before = notifications(running.child.id());
    running.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    running.wait_for("done\n");
    let after = notifications(running.child.id());
    let ended = running.end_with(b"end\n");
    let interrupts: u64 = ended.text().trim().parse().expect("a number");
    let requests = REQUESTS..=REQUESTS * 11 / 10; // once a second, Linux also asks for the attributes of the directory
    assert!(requests.contains(&(after - before)) && requests.contains(&interrupts), "{} {interrupts}", after - before);
}

/// How often a guest has notified the file server of kickvm, which never reads its eventfds.
fn notifications(kickvm: u32) -> u64 {
    let process = |path: PathBuf| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let (name, rest) = stat.split_once(") ")?;
        let is_server = name.ends_with("(kickvm-fs") && rest.split(' ').nth(1) == Some(&kickvm.to_string());
        is_server.then(|| path.join("fdinfo"))
    };
    let server = fs::read_dir("/proc").unwrap().find_map(|entry| process(entry.unwrap().path())).expect("it runs");
    let count = |path: PathBuf| {
        let info = fs::read_to_string(path).unwrap_or_default();
        let count = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
        count.map_or(0, |count| u64::from_str_radix(count.trim(), 16).expect("a number"))
    };
    fs::read_dir(server).unwrap().map(|entry| count(entry.unwrap().path())).sum()
}

/// The directory is copied, unless it is too large.
fn a_root_that_the_kernel_cannot_share(exec: Exec) {
    let root = directory(&exec, "root");
    fs::create_dir(root.join("bin")).unwrap();
    fs::copy(busybox(), root.join("bin/sh")).unwrap();
    let (exec, modules) = package(exec);
    fs::write(modules.join("modules.builtin"), "kernel/fs/fuse/fuse.ko\n").unwrap();
    fs::write(modules.join("modules.dep"), "virtio_mmio.ko:\noverlay.ko:\n").unwrap();
    let why = format!(
        "a shared root needs the driver virtiofs (CONFIG_VIRTIO_FS, module virtiofs), but kernel {} does not have it built in, \
         and '{}' has no such module",
        exec.assets.release,
        modules.display()
    );
    let ended = exec.options(&["-v", "--root", &root.display().to_string()]).run(&["sh", "-c", "echo $0"]);
    assert_eq!((ended.status.code(), ended.text()), (Some(0), "sh\n"), "{}", ended.stderr);
    let line = format!("kickvm: '{}' is copied: {why}", root.display());
    assert!(ended.stderr.lines().any(|it| it == line), "{}", ended.stderr);
}

fn a_share_that_does_not_answer(exec: Exec) {
    let dir = TempDir::new();
    let fuse = Fuse::mount(dir.path()).expect("root can mount");
    let script = "echo ready; read go; busybox cat /mnt/disk >/dev/null; echo read";
    let exec = share(exec.busybox().options(&["--kill-after", "100ms"]), dir.path(), ":/mnt,ro");
    let mut running = exec.start(&["sh", "-c", script]);
    running.wait_for("ready\n");
    fuse.stop_answering();
    running.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    while fuse.unanswered() == 0 {
        thread::sleep(Duration::from_millis(10));
    }
    let signalled = Instant::now();
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let ended = running.end_with(b"");
    assert!(signalled.elapsed() < LIMIT, "{:?}", signalled.elapsed());
    assert_eq!(ended.status.code(), Some(128 + libc::SIGTERM), "{}", ended.stderr);
    let note = format!("share '{}' did not answer: ", dir.path().display());
    assert!(ended.stderr.contains(&note), "{}", ended.stderr);
}
