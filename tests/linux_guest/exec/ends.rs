//! kickvm exits with the command's status, whatever it is, and prints nothing about it.

use super::run::Exec;
use crate::support::assets::Kernel;
use std::os::unix::fs::PermissionsExt;

on_kernel!(by_pvh, Pvh, status_42);
on_kernel!(by_elf, Elf, status_42);
on_both_kernels!(status_42, status_200, killed_by_a_signal);
on_kernel!(real_time, BzImage, killed_by_a_real_time_signal);
on_kernel!(
    ours_only,
    BzImage,
    reserved_codes,
    true_,
    false_,
    not_found,
    not_executable,
    leftover_processes_end_with_the_command,
    no_directory,
    the_exit_port_is_no_status,
    programs_that_cannot_run,
    a_script_without_an_interpreter
);

fn true_(exec: Exec) {
    exec.busybox().run(&["busybox", "true"]).assert(0, "", "");
}

fn false_(exec: Exec) {
    exec.busybox().run(&["busybox", "false"]).assert(1, "", "");
}

fn status_42(exec: Exec) {
    exec.sh("echo out; echo err >&2; exit 42").assert(42, "out\n", "err\n");
}

fn status_200(exec: Exec) {
    exec.sh("exit 200").assert(200, "", "");
}

fn reserved_codes(exec: Exec) {
    drop(exec);
    for status in [0, 1].into_iter().chain(119..=128).chain([143, 255]) {
        let exec = Exec::new(Kernel::BzImage).unwrap().options(&["--reserve-codes"]);
        let replaced = matches!(status, 120..=125 | 128..);
        let why = format!("kickvm: the command ended with status {status}, which --reserve-codes turns into 119\n");
        let (code, stderr) = if replaced { (119, why.as_str()) } else { (status, "") };
        exec.sh(&format!("exit {status}")).assert(code, "", stderr);
    }
}

fn killed_by_a_real_time_signal(exec: Exec) {
    exec.sh("kill -34 $$").assert(162, "", "");
}

fn killed_by_a_signal(exec: Exec) {
    exec.sh("kill -9 $$").assert(137, "", "");
}

/// The exit port is for guests of `kickvm run`.
fn the_exit_port_is_no_status(exec: Exec) {
    let script = r"busybox printf '\000' | busybox dd of=/dev/port bs=1 seek=244 2>/dev/null; exit 4"; // port 0xf4
    let ended = exec.sh(script);
    let why = "kickvm: the guest ended with status 0 before reporting the command's exit status";
    assert_eq!((ended.status.code(), ended.stderr.lines().next()), (Some(122), Some(why)), "{}", ended.stderr);
}

fn not_found(exec: Exec) {
    exec.busybox().run(&["nosuch", "argument"]).assert(
        127,
        "",
        "kickvm: cannot run 'nosuch': No such file or directory\n",
    );
}

fn not_executable(exec: Exec) {
    let plain = exec.scratch.file("plain", b"text\n");
    std::process::Command::new("chmod").arg("644").arg(&plain).status().unwrap();
    let exec = exec.options(&["--copy", &format!("{}:/bin/plain", plain.display())]).busybox();
    exec.run(&["/bin/plain"]).assert(126, "", "kickvm: cannot run '/bin/plain': Permission denied\n");
}

/// Each file, with the exit code and the message of a command that it cannot run as.
fn programs_that_cannot_run(exec: Exec) {
    drop(exec);
    let elf = |machine: u8, interpreter: bool| {
        let mut image = std::fs::read("/proc/self/exe").unwrap();
        image[18] = machine;
        if interpreter { std::fs::read("/bin/ls").unwrap() } else { image }
    };
    for (content, code, why) in [
        (
            b"#!/no/such/shell -x\n".to_vec(),
            127,
            "its interpreter '/no/such/shell' is not in the guest, or cannot be executed",
        ),
        (
            b"#!/bin/sh\r\necho\r\n".to_vec(),
            127,
            "its first line ends with a carriage return, which counts as a part of the name '/bin/sh'",
        ),
        (elf(62, true), 127, "its dynamic linker '/lib64/ld-linux-x86-64.so.2' is not in the guest"),
        (elf(183, false), 126, "it is not built for x86-64 (ELF machine 183)"),
        (b"\x01\0\x02 data".to_vec(), 126, "it is neither an executable nor a script"),
    ] {
        let exec = Exec::new(Kernel::BzImage).unwrap();
        let program = exec.scratch.file("program", &content);
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let root = exec.scratch.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::rename(&program, root.join("program")).unwrap();
        let ended = exec.options(&["--root".as_ref(), root.as_os_str()]).busybox().run(&["/program"]);
        ended.assert(code, "", &format!("kickvm: cannot run '/program': {why}\n"));
    }
}

fn a_script_without_an_interpreter(exec: Exec) {
    let script = exec.scratch.file("script", b"echo \"$0 $1\"; exit 5\n");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let add = format!("{}:/bin/script", script.display());
    exec.options(&["--copy", &add]).busybox().run(&["script", "one"]).assert(5, "/bin/script one\n", "");
}

/// Processes that the command leaves behind end with it, and do not keep its streams open.
fn leftover_processes_end_with_the_command(exec: Exec) {
    exec.sh("busybox sleep 1000 & (busybox sleep 1000 &); echo done; exit 3").assert(3, "done\n", "");
}

fn no_directory(exec: Exec) {
    let ended = exec.options(&["--workdir", "/no/such"]).busybox().run(&["true"]);
    ended.assert(125, "", "kickvm: cannot start in '/no/such' in the guest: No such file or directory\n");
}
