//! How connections begin and end: half-closed, refused, and with a peer that never reads.

use super::{
    Host, accept_from_guest, accept_in_guest, connect_to_host, echo, expect_echo, in_guest, listen_in_guest,
    wait_for_host,
};
use crate::common::noise;
use crate::support::guest::Guest;
use crate::this_test;
use nix::errno::Errno;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

const HALF_CLOSING: u32 = 1;
const NEVER_READING: u32 = 2;
const ECHOING: u32 = 3;
const UNUSED_PORT: u32 = 4;

/// Sends a question and closes the sending side, then reads the answer to its end.
fn ask(mut stream: UnixStream) {
    stream.write_all(b"question").expect("the stream can be written");
    stream.shutdown(Shutdown::Write).expect("the stream is open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the stream can be read");
    assert_eq!(answer, "answer");
}

/// Reads the question to its end, then sends the answer.
fn answer(mut stream: UnixStream) {
    let mut question = String::new();
    stream.read_to_string(&mut question).expect("the stream can be read");
    assert_eq!(question, "question");
    stream.write_all(b"answer").expect("the stream can be written");
}

/// Writes until the buffers are full, which is when a write blocks for 2 s. Returns the number of bytes.
fn fill(stream: &mut UnixStream) -> usize {
    let block = noise(64 << 10);
    stream.set_write_timeout(Some(std::time::Duration::from_secs(2))).expect("a socket has a time limit");
    let mut total = 0;
    loop {
        match stream.write(&block) {
            Ok(len) => total += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return total,
            Err(error) => panic!("cannot write after {total} bytes: {error}"),
        }
    }
}

/// More than all buffers on the way can hold.
const TOO_MUCH: usize = 4 << 20;

fn guest_part() {
    let [half_closing, never_reading, echoing] = [HALF_CLOSING, NEVER_READING, ECHOING].map(listen_in_guest);
    ask(connect_to_host(HALF_CLOSING).expect("the host listens"));
    assert_eq!(connect_to_host(UNUSED_PORT).err(), Some(Errno::ECONNRESET));
    println!("\nthe guest has asked");
    answer(accept_in_guest(&half_closing));

    let mut stuck = connect_to_host(NEVER_READING).expect("the host listens");
    let room = fill(&mut stuck);
    assert!((64 << 10..TOO_MUCH).contains(&room), "there was room for {room} bytes");
    expect_echo(connect_to_host(ECHOING).expect("the host listens"), &noise(1 << 20));
    println!("\nthe guest goes on");
    drop(stuck);

    let unread = accept_in_guest(&never_reading);
    echo(accept_in_guest(&echoing));
    drop(unread);
    wait_for_host();
}

fn host_part(guest: Guest, test: &str) {
    let host = Host::start(guest, test);
    let [half_closing, never_reading, echoing] = [HALF_CLOSING, NEVER_READING, ECHOING].map(|port| host.listen(port));
    answer(accept_from_guest(&half_closing));
    host.running.wait_for_line("the guest has asked");
    ask(host.connect(HALF_CLOSING));
    for greeting in [&format!("CONNECT {UNUSED_PORT}\n"), "CONNECT x\n", "\n", &"x".repeat(100)] {
        assert_eq!(host.greet(greeting).0, "", "to {greeting:?}");
    }

    let unread = accept_from_guest(&never_reading);
    thread::spawn(move || echo(accept_from_guest(&echoing)));
    host.running.wait_for_line("the guest goes on");
    drop(unread);

    let mut stuck = host.connect(NEVER_READING);
    let room = fill(&mut stuck);
    assert!((64 << 10..TOO_MUCH).contains(&room), "there was room for {room} bytes");
    expect_echo(host.connect(ECHOING), &noise(1 << 20));
    // The connection ends with the guest's program, with data still in transit.
    let _ = stuck.read(&mut [0]);
    host.finish();
}

#[test]
fn a_stock_kernel_half_closes_refuses_and_survives_a_stuck_reader() {
    if in_guest() {
        return guest_part();
    }
    host_part(linux!(Stock), this_test!());
}

#[test]
fn our_kernel_half_closes_refuses_and_survives_a_stuck_reader() {
    if in_guest() {
        return guest_part();
    }
    host_part(linux!(BzImage), this_test!());
}
