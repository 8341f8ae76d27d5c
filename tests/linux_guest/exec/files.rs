//! The guest's files: everything that was given arrives unchanged, and what cannot is reported.

use super::run::{Exec, busybox};
use crate::common::noise;
use crate::common::process::default_signals;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

on_both_kernels!(twenty_thousand_files, a_gibibyte, a_dynamic_executable);
on_kernel!(
    ours_only,
    BzImage,
    odd_names_and_kinds,
    additions_over_a_root,
    additions_over_a_shared_root,
    a_tar_archive_as_the_root,
    more_links_than_a_tmpfs_has_inodes,
    a_directory_that_changes,
    too_little_memory,
    files_on_top_of_an_initramfs,
    environment
);
on_kernel!(stock_only, Stock, modules);

/// A directory with busybox as its shell.
fn root(exec: &Exec) -> PathBuf {
    let root = exec.scratch.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(busybox(), root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    root
}

/// The option that copies `root`.
fn copied(root: &Path) -> String {
    format!("{},copy", root.display())
}

/// Each file contains its number, and the guest adds the numbers up.
fn twenty_thousand_files(exec: Exec) {
    let root = root(&exec);
    for n in 0..20_000 {
        let dir = root.join(format!("tree/{}", n % 100));
        if n < 100 {
            fs::create_dir_all(&dir).unwrap();
        }
        fs::write(dir.join(format!("file-{n}")), format!("{n}\n")).unwrap();
    }
    let script =
        "busybox find /tree -type f | busybox xargs busybox cat | busybox awk '{ n++; s += $1 } END { print n, s }'";
    let ended = exec.options(&["--root", &copied(&root)]).run(&["sh", "-c", script]);
    ended.assert(0, "20000 199990000\n", "");
}

/// A sparse file takes memory for its data only. Its last 32 MiB are not zeros.
fn a_gibibyte(exec: Exec) {
    let root = root(&exec);
    let file = fs::File::create(root.join("large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(32 << 20), 992 << 20).unwrap();
    fs::write(exec.scratch.path().join("part"), noise(32 << 20)).unwrap();
    let sum = Command::new("md5sum").arg(exec.scratch.path().join("part")).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    let exec = exec.options(&["--root", &copied(&root), "--memory", "256M"]);
    let script = "busybox stat -c %s /large; busybox dd if=/large bs=1M skip=992 2>/dev/null | busybox md5sum";
    let ended = exec.run(&["sh", "-c", script]);
    ended.assert(0, &format!("1073741824\n{}  -\n", sum.split_whitespace().next().unwrap()), "");
}

/// An executable of the host, with its libraries.
fn a_dynamic_executable(exec: Exec) {
    let exec = exec.options(&["--copy", "/bin/bash", "--copy", "/bin/ls"]);
    exec.run(&["bash", "-c", "ls -d /bin/ls; exit 7"]).assert(7, "/bin/ls\n", "");
}

fn odd_names_and_kinds(exec: Exec) {
    let root = root(&exec);
    let odd = root.join("odd");
    fs::create_dir(&odd).unwrap();
    for name in ["two words", "two\nlines", "umläut 日本語", "-dash", "quote'\"", "back\\slash"] {
        fs::write(odd.join(name), name).unwrap();
    }
    symlink("loop", odd.join("loop")).unwrap();
    symlink("nowhere at all", odd.join("dangling")).unwrap();
    fs::hard_link(odd.join("-dash"), odd.join("link")).unwrap();
    fs::set_permissions(odd.join("-dash"), fs::Permissions::from_mode(0o4751)).unwrap();
    Command::new("mkfifo").arg(odd.join("fifo")).status().unwrap();
    Command::new("touch").args(["-d", "@1000000000"]).arg(odd.join("two words")).status().unwrap();
    let _socket = UnixListener::bind(odd.join("socket")).unwrap();
    let script = r#"
        cd /odd
        for f in *; do [ -f "$f" ] && echo "$f=$(busybox cat ./"$f")"; done
        busybox stat -c '%n %a %h %F' ./-dash ./link fifo
        busybox stat -c '%n %Y' 'two words'
        busybox readlink loop; busybox readlink dangling
        [ ./-dash -ef link ] && echo linked
        [ -e socket ] || echo no socket"#;
    let ended = exec.options(&["--root", &copied(&root)]).run(&["sh", "-c", script]);
    let expected = "-dash=-dash\nback\\slash=back\\slash\nlink=-dash\nquote'\"=quote'\"\ntwo\nlines=two\nlines\n\
        two words=two words\numläut 日本語=umläut 日本語\n./-dash 4751 2 regular file\n./link 4751 2 regular file\n\
        fifo 644 1 fifo\ntwo words 1000000000\nloop\nnowhere at all\nlinked\nno socket\n";
    ended.assert(0, expected, "kickvm: warning: 'odd/socket' is left out: it is a socket\n");
}

fn a_tar_archive_as_the_root(exec: Exec) {
    let root = root(&exec);
    fs::write(root.join("file"), b"content\n").unwrap();
    fs::hard_link(root.join("file"), root.join("link")).unwrap();
    let tar = exec.scratch.path().join("root.tar.gz");
    assert!(Command::new("tar").arg("-czf").arg(&tar).arg("-C").arg(&root).arg(".").status().unwrap().success());
    let exec = exec.options(&["--root".as_ref(), tar.as_os_str(), "--chown".as_ref(), "7:8".as_ref()]);
    let script = "busybox cat /file; [ /file -ef /link ] && busybox stat -c '%u %g %h' /file";
    exec.run(&["sh", "-c", script]).assert(0, "content\n7 8 2\n", "");
}

fn additions_over_a_root(exec: Exec) {
    let root = root(&exec);
    add_over(exec, &root, &copied(&root));
}

fn additions_over_a_shared_root(exec: Exec) {
    let root = root(&exec);
    add_over(exec, &root, &root.display().to_string());
}

/// Links, hard links and modes of the root are kept, except those that an addition replaces.
fn add_over(exec: Exec, root: &Path, option: &str) {
    let overlay = exec.scratch.path().join("overlay");
    for directory in
        [root.join("usr/lib"), root.join("tmp"), root.join("hard"), overlay.join("lib"), overlay.join("hard")]
    {
        fs::create_dir_all(directory).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    fs::write(overlay.join("lib/new"), b"new\n").unwrap();
    fs::write(root.join("hard/a"), b"old\n").unwrap();
    for name in ["b", "c"] {
        fs::hard_link(root.join("hard/a"), root.join("hard").join(name)).unwrap();
    }
    fs::write(overlay.join("hard/a"), b"mine\n").unwrap();
    let add = |host: &Path, guest: &str| format!("{}:{guest}", host.display());
    let (over, file) = (add(&overlay, "/"), add(&overlay.join("lib/new"), "/tmp/"));
    let same = add(&root.join("hard/c"), "/hard/b");
    let exec = exec.options(&["--root", option, "--copy", &over, "--copy", &file, "--copy", &same]);
    let script = "busybox readlink /lib; busybox stat -c '%n %a' /tmp; busybox cat /usr/lib/new /tmp/new /hard/*";
    exec.run(&["sh", "-c", script]).assert(0, "usr/lib\n/tmp 1777\nnew\nnew\nmine\nold\nold\n", "");
}

/// A tmpfs has half as many inodes as there are pages of free memory: fewer than 20,480 with 160 MiB.
fn more_links_than_a_tmpfs_has_inodes(exec: Exec) {
    let root = root(&exec);
    fs::create_dir(root.join("links")).unwrap();
    for n in 0..21_000 {
        symlink("x", root.join(format!("links/{n}"))).unwrap();
    }
    let exec = exec.options(&["--root", &copied(&root), "--memory", "160M"]);
    exec.run(&["sh", "-c", "busybox ls /links | busybox wc -l; busybox touch /more"]).assert(0, "21000\n", "");
}

/// Whatever is copied of it, the guest starts, and an unchanged file is complete.
fn a_directory_that_changes(exec: Exec) {
    let root = root(&exec);
    fs::write(root.join("still"), noise(1 << 20)).unwrap();
    let busy = root.join("busy");
    fs::create_dir(&busy).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let change = {
        let (busy, stop) = (busy.clone(), stop.clone());
        std::thread::spawn(move || {
            for n in (0..200).cycle().take_while(|_| !stop.load(std::sync::atomic::Ordering::Relaxed)) {
                let path = busy.join(n.to_string());
                let _ = fs::write(&path, vec![1; n * 1000]);
                let _ = fs::File::create(&path).and_then(|file| file.set_len(n as u64));
                let _ = fs::remove_file(busy.join((n / 2).to_string()));
            }
        })
    };
    let sum = Command::new("md5sum").arg(root.join("still")).output().unwrap().stdout;
    let exec = exec.options(&["--root", &copied(&root)]);
    let ended = exec.run(&["sh", "-c", "busybox md5sum </still; busybox ls /busy >/dev/null"]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    change.join().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.text().split_whitespace().next(), String::from_utf8(sum).unwrap().split_whitespace().next());
    assert!(
        ended
            .stderr
            .lines()
            .all(|line| line.starts_with("kickvm: warning: 'busy/") || line.ends_with("more like these"))
    );
}

/// The memory that the message suggests is enough.
fn too_little_memory(exec: Exec) {
    let root = root(&exec);
    fs::write(root.join("large"), vec![1; 100 << 20]).unwrap();
    let kernel = exec.assets.kernel.clone();
    let exec = exec.options(&["--root", &copied(&root), "--memory", "128M"]);
    let ended = exec.run(&["sh", "-c", "true"]);
    assert_eq!(ended.status.code(), Some(125));
    let (_, suggestion) = ended.stderr.trim_end().split_once("; try --memory ").expect(&ended.stderr);
    assert!(
        ended.stderr.contains("is too small for '") && ended.stderr.contains("/root': its files take 1"),
        "{}",
        ended.stderr
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
    default_signals(&mut command);
    command.arg("exec").arg("--kernel").arg(kernel).arg("--root").arg(copied(&root)).args(["--memory", suggestion]);
    let output = command.args(["--", "sh", "-c", "busybox wc -c </large"]).output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"104857600\n"[..]), "{output:?}");
}

fn files_on_top_of_an_initramfs(exec: Exec) {
    let initramfs = exec.assets.initramfs.clone();
    let file = exec.scratch.file("file", b"added\n");
    let add = format!("{}:/etc/new/file", file.display());
    let exec = exec.options(&["--initramfs".as_ref(), initramfs.as_os_str(), "--copy".as_ref(), add.as_ref()]);
    // It has an init of its own, and links for busybox's commands.
    exec.run(&["sh", "-c", "cat /etc/new/file; head -n 1 /init"]).assert(0, "added\n#!/bin/sh\n", "");
}

fn environment(exec: Exec) {
    let exec = exec.options(&["--env", "A=two\nlines", "--env", "B==", "--env", "PATH=/bin:/x", "--workdir", "/bin"]);
    let ended = exec.sh("echo \"$A|$B|$PATH|$HOME|$PWD|$(busybox hostname)\"; busybox env | busybox wc -l");
    ended.assert(0, "two\nlines|=|/bin:/x|/root|/bin|kickvm\n7\n", "");
}

/// The stock kernel has most drivers as modules.
fn modules(exec: Exec) {
    let directory = exec.assets.kernel.with_file_name("modules");
    let add = format!("{}:/lib/modules/{}", directory.display(), exec.assets.release);
    let exec = exec.options(&["--copy", &add, "--module", "virtio-net", "--module", "virtio_mmio"]).busybox();
    let script = "busybox grep -cE '^(virtio_net|net_failover|virtio_mmio) ' /proc/modules";
    exec.run(&["sh", "-c", script]).assert(0, "3\n", "");
}
