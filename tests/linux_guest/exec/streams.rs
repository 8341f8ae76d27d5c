//! Standard input, output and error are transferred unchanged.

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
    a_sleeping_reader_blocks_only_the_command,
    a_reader_that_closes_is_a_broken_pipe_in_the_command,
    input_that_the_command_does_not_read,
    an_idle_command_uses_no_processor_time,
    input_arrives_while_it_is_written
);

const MIB: usize = 1 << 20;

/// Compares the guest's hash of the data it sends with the hash of the data that arrived.
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

/// Compaction never moves the channel's pages. Our own kernel has no compaction.
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

/// Output that waits for the reader does not delay the timeout.
fn a_sleeping_reader_blocks_only_the_command(exec: Exec) {
    let mut running = exec.options(&["--timeout", "15s"]).busybox().start(&["sh", "-c", "echo on; exec busybox yes"]);
    running.wait_for("on\ny");
    let stdout = running.child.stdout.take(); // open, but not read
    let ended = running.end_with(b"");
    ended.assert_verdict(124, "kickvm: the timeout of 15s expired");
    drop(stdout);
}

fn a_reader_that_closes_is_a_broken_pipe_in_the_command(exec: Exec) {
    let mut running = exec.busybox().start(&["busybox", "yes"]);
    running.wait_for("y\n");
    drop(running.child.stdout.take());
    let ended = running.end_with(b"");
    assert!(matches!(ended.status.code(), Some(141 | 1)), "{:?}: {}", ended.status, ended.stderr);
}

fn input_that_the_command_does_not_read(exec: Exec) {
    let ended = exec.busybox().start(&["sh", "-c", "exec <&-; echo on"]).end_with(&noise(MIB));
    ended.assert(0, "on\n", "");
}

/// Neither side polls: in one second kickvm uses at most 50 ms of processor time.
fn an_idle_command_uses_no_processor_time(exec: Exec) {
    let mut running = exec.busybox().start(&["sh", "-c", "echo on; read line; echo $line"]);
    running.wait_for("on\n");
    let id = running.child.id();
    let quiet = || {
        let before = cpu_time(id);
        thread::sleep(Duration::from_secs(1));
        cpu_time(id) - before
    };
    // A kernel that has just booted still does background work.
    assert!((0..30).any(|_| quiet() <= 50), "kickvm is never idle");
    running.end_with(b"off\n").assert(0, "off\n", "");
}

/// A line arrives when it is written, and not only when a buffer is full.
fn input_arrives_while_it_is_written(exec: Exec) {
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
