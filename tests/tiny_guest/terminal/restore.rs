//! The terminal's settings during a run, and after each way in which a run can end.

use crate::common::process::{DEADLINE, contained, cpu_time, end, eventually, read_until};
use crate::common::pty::{Pty, is_raw};
use crate::common::{TempDir, harness_name};
use crate::support::guests::{HALT, SPAM, TOUCH};
use crate::support::run::run;
use crate::support::stuck::child_named;
use crate::{guest, need_kvm, never, power_off, print_serial, this_test};
use kickvm::boot::Image;
use kickvm::device::{Device, Response};
use kickvm::vmm::{MIN_MEMORY, VMMConfig, VmmBuilder};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use std::fs::OpenOptions;
use std::io::stdin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

guest!(BYE, print_serial!("bye"), power_off!(), never!(),);
guest!(CRASH, print_serial!("bye"), "ud2", never!(),);

#[test]
fn each_signal_restores_the_terminal() {
    need_kvm!();
    for (signal, code, name) in [
        (Signal::SIGTERM, 143, "SIGTERM"),
        (Signal::SIGINT, 130, "SIGINT"),
        (Signal::SIGHUP, 129, "SIGHUP"),
        (Signal::SIGQUIT, 131, "SIGQUIT"),
    ] {
        let pty = Pty::new();
        let before = pty.settings();
        let mut run = run(&HALT, &[]);
        run.command.stdin(pty.stdio());
        let mut running = run.start();
        running.wait_for("up");
        assert!(is_raw(&pty.settings()), "{:?}", pty.settings());
        running.signal(signal);
        running.end().assert(code, "", &[&format!("kickvm: stopped by {name}")]);
        assert_eq!(pty.settings(), before, "{name}");
    }
}

#[test]
fn each_end_of_a_guest_restores_the_terminal() {
    need_kvm!();
    for (guest, args, code) in
        [(&BYE, vec![], 0), (&CRASH, vec![], 121), (&HALT, vec!["--timeout", "100ms"], 124), (&BYE, vec!["-vv"], 0)]
    {
        let pty = Pty::new();
        let before = pty.settings();
        let mut run = run(guest, &args);
        run.command.stdin(pty.stdio());
        let ended = run.end();
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(pty.settings(), before, "{ended:?}");
    }
}

#[test]
fn an_error_restores_the_terminal() {
    need_kvm!();
    let pty = Pty::new();
    let before = pty.settings();
    let mut run = run(&HALT, &[]);
    run.command.stdin(pty.stdio()).stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
    run.end().assert(125, "", &["kickvm: cannot write the guest's output: No space left on device"]);
    assert_eq!(pty.settings(), before);
}

/// Panics on a write if the terminal is raw.
struct Panics;

impl Device for Panics {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) -> Response {
        assert!(!is_raw(&tcgetattr(stdin()).unwrap()), "the terminal is raw");
        Response::Continue(())
    }
}

#[test]
fn a_vcpu_that_panics_restores_the_terminal() {
    need_kvm!();
    const ALONE: &str = "KICKVM_TEST_PANIC";
    if std::env::var_os(ALONE).is_some() {
        kickvm::console::terminal::restore_on_panic();
        let config = VMMConfig { memory: MIN_MEMORY, ..VMMConfig::new(Image::Raw(&TOUCH)) };
        let vmm = VmmBuilder::new(config).unwrap().port_device(0x700, 1, Arc::new(Panics)).unwrap().build();
        std::process::exit(vmm.run().unwrap().reason.code().into());
    }
    let pty = Pty::new();
    let before = pty.settings();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = harness_name(this_test!());
    contained(&mut command).args([test, "--exact", "--nocapture"]).env(ALONE, "1").stdin(pty.stdio());
    let ended = end(command);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(ended.stderr.contains("the terminal is raw"), "{ended:?}");
    assert_eq!(pty.settings(), before);
}

#[test]
fn a_terminal_that_is_not_the_console_stays_unchanged() {
    need_kvm!();
    let dir = TempDir::new();
    let file = format!("file={}", dir.path().join("console").display());
    for console in ["none", &file] {
        let pty = Pty::new();
        let before = pty.settings();
        let mut run = run(&HALT, &["--console", console]);
        run.command.stdin(pty.stdio());
        let running = run.start();
        running.wait_for_thread("vcpu0");
        assert_eq!(pty.settings(), before, "during --console {console}");
        running.signal(Signal::SIGTERM);
        running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
        assert_eq!(pty.settings(), before, "after --console {console}");
    }
}

#[test]
fn without_a_terminal_for_input_the_output_terminal_stays_unchanged() {
    need_kvm!();
    let mut pty = Pty::new();
    let before = pty.settings();
    let mut run = run(&HALT, &[]);
    run.command.stdout(pty.stdio());
    let running = run.start();
    read_until(&mut pty.master, "up", DEADLINE);
    assert_eq!(pty.settings(), before);
    running.signal(Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
    assert_eq!(pty.settings(), before);
}

#[test]
fn a_signal_ends_the_run_although_the_terminal_is_not_read() {
    need_kvm!();
    let mut pty = Pty::new();
    let before = pty.settings();
    let mut run = run(&SPAM, &[]);
    run.command.stdin(pty.stdio()).stdout(pty.stdio());
    let running = run.start();
    read_until(&mut pty.master, "x", DEADLINE);
    // kickvm sleeps when the terminal and its own buffers are full, which blocks the vCPU.
    eventually("the guest to be blocked", || {
        let before = cpu_time(running.child.id());
        std::thread::sleep(std::time::Duration::from_millis(50));
        (cpu_time(running.child.id()) == before).then_some(())
    });
    let start = Instant::now();
    running.signal(Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
    assert!(start.elapsed().as_secs() < 10, "took {:?}", start.elapsed());
    assert_eq!(pty.settings(), before);
}

#[test]
fn a_hang_up_of_the_terminal_ends_the_run() {
    need_kvm!();
    let mut pty = Pty::new();
    let mut run = run(&SPAM, &[]);
    run.command.stdin(pty.stdio()).stdout(pty.stdio());
    let running = run.start();
    read_until(&mut pty.master, "x", DEADLINE);
    drop(pty);
    running.end().assert(125, "", &["kickvm: cannot write the guest's output: Input/output error"]);
}

#[test]
fn a_background_job_does_not_change_the_terminal_and_is_not_stopped() {
    need_kvm!();
    let pty = Pty::new();
    let before = pty.settings();
    let run = run(&HALT, &["--timeout", "300ms"]);
    // A shell with job control, in its own session with this controlling terminal.
    let mut shell = Command::new("setsid");
    shell.args(["--ctty", "bash", "-c", "set -m; \"$0\" \"$@\" & exec 2>/dev/null; wait $!"]);
    shell.arg(run.command.get_program()).args(run.command.get_args());
    shell.stdin(pty.stdio()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = run.start_as(shell).end();
    ended.assert_time_out(&ended.stdout, "300ms");
    assert_eq!(pty.settings(), before);
}

#[test]
fn a_run_that_was_moved_to_the_background_ends() {
    need_kvm!();
    let pty = Pty::new();
    let run = run(&HALT, &["--timeout", "1s"]);
    let mut shell = Command::new("setsid");
    shell.args(["--ctty", "bash", "--norc", "-ic", "\"$0\" \"$@\"; bg >/dev/null; exec 2>/dev/null; wait %1"]);
    shell.arg(run.command.get_program()).args(run.command.get_args());
    shell.stdin(pty.stdio()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = run.start_as(shell);
    eventually("a raw terminal", || is_raw(&pty.settings()).then_some(()));
    let kickvm = child_named(running.pid(), "kickvm").unwrap();
    kill(kickvm, Signal::SIGSTOP).unwrap(); // the shell takes the terminal, and continues it in the background
    let ended = running.end();
    assert_eq!(ended.code, Some(124), "{ended:?}");
}

#[test]
fn a_signal_that_was_ignored_before_stays_ignored() {
    need_kvm!();
    let run = run(&HALT, &[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""]).arg(run.command.get_program());
    contained(shell.args(run.command.get_args()));
    let mut running = run.start_as(shell);
    running.wait_for("up");
    running.signal(Signal::SIGHUP);
    running.signal(Signal::SIGINT);
    running.signal(Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
}
