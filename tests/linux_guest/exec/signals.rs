//! Signals to kickvm are forwarded to the command first. Concurrent runs are independent.

use super::run::Exec;
use crate::common::process::wait_for_thread;
use crate::common::read_report;
use crate::support::assets::Kernel;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Instant;

on_both_kernels!(a_command_that_handles_sigterm);
on_kernel!(
    ours_only,
    BzImage,
    a_command_that_does_not,
    a_signal_decides_the_code_if_codes_are_reserved,
    a_second_signal,
    a_signal_before_the_command_starts,
    eight_runs_at_once
);

fn a_command_that_handles_sigterm(exec: Exec) {
    let script = "trap 'echo caught; exit 9' TERM; echo on; while :; do busybox sleep 1000 & wait; done";
    let mut running = exec.busybox().start(&["sh", "-c", script]);
    running.wait_for("on\n");
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    running.end_with(b"").assert(9, "caught\n", "");
}

/// Statuses 0 and 143 of a command that was sent SIGTERM are no verdict: it may have ended early.
fn a_signal_decides_the_code_if_codes_are_reserved(exec: Exec) {
    drop(exec);
    for (action, status) in [("trap 'exit 0' TERM; ", 0), ("", 143)] {
        let exec = Exec::new(Kernel::BzImage).unwrap();
        let report = exec.scratch.path().join("report");
        let options = ["--reserve-codes".as_ref(), "--report".as_ref(), report.as_os_str()];
        let script = format!("{action}echo on; while :; do busybox sleep 1000 & wait; done");
        let mut running = exec.options(&options).busybox().start(&["sh", "-c", &script]);
        running.wait_for("on\n");
        kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        let ended = running.end_with(b"");
        ended.assert(143, "", "kickvm: stopped by SIGTERM\n");
        let report = read_report(&report);
        assert_eq!((&report["outcome"], &report["command_status"]), (&"signal".into(), &status.into()));
    }
}

fn a_command_that_does_not(exec: Exec) {
    let exec = exec.options(&["--kill-after", "2s"]).busybox();
    let mut running = exec.start(&["sh", "-c", "trap '' TERM; echo on; while :; do busybox sleep 1; done"]);
    running.wait_for("on\n");
    let before = Instant::now();
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    running.end_with(b"").assert_verdict(143, "kickvm: stopped by SIGTERM");
    assert!(before.elapsed().as_secs() >= 2);
}

fn a_second_signal(exec: Exec) {
    let exec = exec.options(&["--kill-after", "1h"]).busybox();
    let mut running = exec.start(&["sh", "-c", "trap 'echo caught' TERM; echo on; while :; do busybox sleep 1; done"]);
    running.wait_for("on\n");
    let id = Pid::from_raw(running.child.id().cast_signed());
    kill(id, Signal::SIGTERM).unwrap();
    running.wait_for("caught\n");
    kill(id, Signal::SIGINT).unwrap();
    let ended = running.end_with(b"");
    assert_eq!(ended.status.code(), Some(130));
    // A shell may print before it how its child ended.
    assert!(ended.stderr.ends_with("kickvm: stopped by SIGINT\n"), "{}", ended.stderr);
}

fn a_signal_before_the_command_starts(exec: Exec) {
    let running = exec.busybox().start(&["busybox", "sleep", "1000"]);
    let id = running.child.id();
    // The vCPU runs, and Linux takes seconds to boot here.
    wait_for_thread(id, "vcpu0");
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM).unwrap();
    running.end_with(b"").assert_verdict(143, "kickvm: stopped by SIGTERM");
}

fn eight_runs_at_once(exec: Exec) {
    let kernel = exec.assets.kernel.clone();
    drop(exec);
    let one = |n: i32| {
        let exec = Exec::new(crate::support::assets::Kernel::BzImage).unwrap();
        assert_eq!(exec.assets.kernel, kernel);
        let script = format!("busybox cat; echo {n} >&2; exit {n}");
        let input = crate::common::noise(100_000 + n.cast_unsigned() as usize);
        let ended = exec.options(&["--memory", "128M"]).busybox().start(&["sh", "-c", &script]).end_with(&input);
        assert_eq!((ended.status.code(), ended.stderr), (Some(n), format!("{n}\n")));
        assert!(ended.stdout == input, "run {n}");
    };
    std::thread::scope(|scope| (1..=8).for_each(|n| drop(scope.spawn(move || one(n)))));
}
