//! Standard input, output and error reach the other side byte for byte.

use super::run::Exec;
use crate::common::noise;
use crate::common::process::cpu_time;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

on_both_kernels!(a_hundred_megabytes_of_noise, ten_megabytes_there_and_back);
on_kernel!(stock_only, Stock, a_kernel_that_moves_its_memory);
on_kernel!(
    ours_only,
    BzImage,
    a_reader_who_sleeps_holds_back_the_command_alone,
    a_reader_who_leaves_is_a_broken_pipe_to_the_command,
    input_that_nobody_reads,
    an_idle_command_costs_nothing,
    input_comes_while_it_is_written
);

const MIB: usize = 1 << 20;

/// The guest's own hash of what it sends is compared with the hash of what came.
fn a_hundred_megabytes_of_noise(exec: Exec) {
    let script = "
        busybox mkfifo /run/copy
        busybox md5sum </run/copy >&2 &
        busybox head -c 104857600 /dev/urandom | busybox tee /run/copy
        wait";
    let ended = exec.options(&["--memory", "256M"]).sh(script);
    assert_eq!((ended.status.code(), ended.stdout.len()), (Some(0), 100 * MIB), "{}", ended.stderr);
    assert_eq!(ended.stderr, format!("{}  -\n", hash(&ended.stdout)));
}

/// The channel's pages stay where they are whatever is moved around them; ours has no code for moving.
fn a_kernel_that_moves_its_memory(exec: Exec) {
    let script = "
        while :; do
            busybox head -c 30000000 /dev/zero >/tmp/hole; echo 1 >/proc/sys/vm/compact_memory; busybox rm /tmp/hole
        done &
        busybox cat";
    let input = noise(5 * MIB);
    let ended = exec.options(&["--memory", "256M"]).busybox().start(&["sh", "-c", script]).end_with(&input);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout == input, "{} bytes came back", ended.stdout.len());
}

fn hash(bytes: &[u8]) -> String {
    let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, bytes).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap().stdout;
    String::from_utf8(output).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn ten_megabytes_there_and_back(exec: Exec) {
    let input = noise(10 * MIB);
    let ended = exec.busybox().start(&["busybox", "cat"]).end_with(&input);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout == input, "{} bytes came back", ended.stdout.len());
}

/// What waits for the reader does not keep kickvm from ending at a time-out.
fn a_reader_who_sleeps_holds_back_the_command_alone(exec: Exec) {
    let mut running = exec.options(&["--timeout", "15s"]).busybox().start(&["sh", "-c", "echo on; exec busybox yes"]);
    running.wait_for("on\ny");
    let stdout = running.child.stdout.take(); // open, and not read
    let ended = running.end_with(b"");
    ended.assert_verdict(124, "kickvm: the timeout of 15s ran out");
    drop(stdout);
}

fn a_reader_who_leaves_is_a_broken_pipe_to_the_command(exec: Exec) {
    let mut running = exec.busybox().start(&["busybox", "yes"]);
    running.wait_for("y\n");
    drop(running.child.stdout.take());
    let ended = running.end_with(b"");
    assert!(matches!(ended.status.code(), Some(141 | 1)), "{:?}: {}", ended.status, ended.stderr);
}

fn input_that_nobody_reads(exec: Exec) {
    let ended = exec.busybox().start(&["sh", "-c", "exec <&-; echo on"]).end_with(&noise(MIB));
    ended.assert(0, "on\n", "");
}

/// Neither side polls: over a second kickvm uses next to no processor time.
fn an_idle_command_costs_nothing(exec: Exec) {
    let mut running = exec.busybox().start(&["sh", "-c", "echo on; read line; echo $line"]);
    running.wait_for("on\n");
    let id = running.child.id();
    let quiet = || {
        let before = cpu_time(id);
        thread::sleep(Duration::from_secs(1));
        cpu_time(id) - before
    };
    // A kernel that has just come up has this and that to do.
    assert!((0..30).any(|_| quiet() <= 50), "kickvm is never idle");
    running.end_with(b"off\n").assert(0, "off\n", "");
}

/// A line that is typed is there at once, and not when a buffer is full.
fn input_comes_while_it_is_written(exec: Exec) {
    let mut running = exec.busybox().start(&["busybox", "cat"]);
    let mut stdin = running.child.stdin.take().unwrap();
    for line in ["one\n", "two\n", "three\n"] {
        std::io::Write::write_all(&mut stdin, line.as_bytes()).unwrap();
        running.wait_for(line);
    }
    drop(stdin);
    let mut rest = Vec::new();
    running.child.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    running.end_with(b"").assert(0, "", "");
    assert_eq!(rest, b"");
}
