//! Standard input that is not a terminal. Input of any kind can end, and kickvm never spins on it.

use super::keys::ECHO;
use crate::common::TempDir;
use crate::common::process::{Running, contained};
use crate::common::pty::Pty;
use crate::need_kvm;
use crate::support::guests::HALT;
use crate::support::run::run;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{Write, pipe};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// Starts a guest that halts for ever, with `stdin`, and waits until it runs.
fn halted(stdin: impl Into<Stdio>) -> Running {
    let mut run = run(&HALT, &[]);
    run.command.stdin(stdin);
    let mut running = run.start();
    running.wait_for("up");
    running
}

#[track_caller]
fn idle(running: Running) {
    running.assert_idle();
    running.signal(Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
}

#[test]
fn input_can_come_from_a_file() {
    need_kvm!();
    let dir = TempDir::new();
    let path = dir.file("input", &[&[b'x'; 10_000][..], b"\x04"].concat());
    let mut run = run(&ECHO, &[]);
    run.command.stdin(File::open(path).unwrap());
    run.end().assert(0, &format!("up{}", "x".repeat(10_000)), &[]);
}

#[test]
fn input_can_come_through_a_socket() {
    need_kvm!();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut run = run(&ECHO, &[]);
    run.command.stdin(OwnedFd::from(theirs));
    let mut running = run.start();
    running.wait_for("up");
    ours.write_all(b"a line\n").unwrap();
    assert_eq!(running.wait_for("\n"), "a line\n");
    ours.write_all(b"\x04").unwrap();
    running.end().assert(0, "", &[]);
}

#[test]
fn no_input_leaves_kickvm_idle() {
    need_kvm!();
    idle(halted(Stdio::null()));
    idle(halted(File::open("/").unwrap()));
}

#[test]
fn a_closed_standard_input_leaves_kickvm_idle() {
    need_kvm!();
    let run = run(&HALT, &[]);
    // Started by a shell, because `Command` cannot close standard input.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" <&-"]).arg(run.command.get_program()).args(run.command.get_args());
    contained(&mut shell);
    let mut running = run.start_as(shell);
    running.wait_for("up");
    idle(running);
}

#[test]
fn an_input_at_its_end_leaves_kickvm_idle() {
    need_kvm!();
    let (reader, writer) = pipe().unwrap();
    drop(writer);
    idle(halted(reader));
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    idle(halted(OwnedFd::from(theirs)));
    let pty = Pty::new();
    let running = halted(pty.stdio());
    drop(pty);
    idle(running);
}

#[test]
fn more_input_than_the_guest_reads_leaves_kickvm_idle() {
    need_kvm!();
    idle(halted(File::open("/dev/zero").unwrap()));
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(&[b'x'; 32 << 10]).unwrap();
    idle(halted(reader));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&[b'x'; 32 << 10]).unwrap();
    drop(ours);
    idle(halted(OwnedFd::from(theirs)));
}
