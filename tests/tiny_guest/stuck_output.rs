//! Output to files that do not answer: a run ends in time, and the files get the rest when they answer again.

use crate::common::TempDir;
use crate::common::process::{Running, eventually};
use crate::support::run::{Run, run};
use crate::support::stuck::{
    LIMIT, Release, Stuck, frozen_ext4, in_mount_namespace, need_mounts, process_of, sleeps_uninterruptibly,
    wait_for_end,
};
use crate::{guest, never, power_off, print_serial};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

// Prints each key on a line of its own; `o` powers off.
guest!(
    ECHO_LINES,
    print_serial!(r"up\n"),
    "7: mov dx, 0x3fd; in al, dx; test al, 1; jz 7b;",
    "mov dx, 0x3f8; in al, dx; cmp al, 111; je 8f; out dx, al; mov al, 10; out dx, al; jmp 7b; 8:",
    power_off!(),
    never!(),
);

fn wait_for(file: &Path, text: &str) {
    eventually("the text in the file", || fs::read_to_string(file).is_ok_and(|content| content == text).then_some(()));
}

/// Starts `run` at a terminal with an output at `file` on a file system, freezes that, and prints into it.
fn freeze(mut run: Run, fs: &dyn Stuck, file: &Path) -> (Running, File) {
    let pty = openpty(None, None).unwrap();
    run.command.stdin(pty.slave);
    let running = run.start();
    let mut keys = File::from(pty.master);
    wait_for(file, "up\n");
    fs.stop();
    keys.write_all(b"x").unwrap();
    let writer = || process_of("kickvm-writer", file);
    eventually("a write to be stuck", || writer().filter(|writer| sleeps_uninterruptibly(*writer)));
    (running, keys)
}

#[test]
fn standard_output_on_a_frozen_file_system_does_not_keep_a_run_from_ending() {
    need_mounts!();
    for (end, code) in [("o", 0), ("\x01x", 0), ("", 143), ("timeout", 124)] {
        in_mount_namespace(|| {
            let dir = TempDir::new();
            let fs = frozen_ext4(&dir);
            let file = fs.file().with_file_name("output");
            let mut run = run(&ECHO_LINES, &["--no-rng"]);
            if end == "timeout" {
                run.command.args(["--timeout", "2s"]);
            }
            run.command.stdout(File::create(&file).unwrap());
            let (mut running, mut keys) = freeze(run, &fs, &file);
            let release = Release(&fs);
            match end {
                "" => running.signal(Signal::SIGTERM),
                "timeout" => {}
                key => keys.write_all(key.as_bytes()).unwrap(),
            }
            let kicked = Instant::now(); // the timeout has two seconds less what the start took
            let status = eventually("the process to end", || running.child.try_wait().unwrap());
            assert!(kicked.elapsed() < if code == 124 { 2 * LIMIT } else { LIMIT }, "{end}");
            assert_eq!(status.code(), Some(code), "{end}");
            drop(release);
            wait_for(&file, "up\nx\n");
        });
    }
}

#[test]
fn messages_reports_and_a_console_file_on_a_frozen_file_system_do_not_keep_a_run_from_ending() {
    need_mounts!();
    in_mount_namespace(|| {
        let dir = TempDir::new();
        let fs = frozen_ext4(&dir);
        let at = |name| fs.file().with_file_name(name);
        let mut run = run(&ECHO_LINES, &["--no-rng", "--console"]);
        run.command.arg(format!("file={}", at("console").display()));
        run.command.arg("--report").arg(at("json")).arg("--junit").arg(at("junit"));
        run.command.stderr(File::create(at("messages")).unwrap());
        let mut running = run.start();
        wait_for(&at("console"), "up\n");
        let writer = eventually("a writer", || process_of("kickvm-writer", &at("console")));
        fs.stop();
        let release = Release(&fs);
        running.signal(Signal::SIGTERM);
        let kicked = Instant::now();
        let status = eventually("the process to end", || running.child.try_wait().unwrap());
        assert!(kicked.elapsed() < LIMIT, "{:?}", kicked.elapsed());
        assert_eq!(status.code(), Some(143));
        drop(release);
        wait_for_end(writer);
        eventually("the messages", || {
            fs::read_to_string(at("messages")).is_ok_and(|text| text.contains("stopped by")).then_some(())
        });
        eventually("the report", || {
            fs::read_to_string(at("json")).is_ok_and(|text| text.ends_with("}\n")).then_some(())
        });
    });
}
