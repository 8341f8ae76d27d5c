//! The socket device: drivers that send it invalid packets, and the socket file's life.

use crate::common::TempDir;
use crate::common::process::eventually;
use crate::support::guests::SPIN;
use crate::support::run::{Run, run};
use crate::{guest, need_kvm};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

const DONE: i32 = 1;
const NEEDS_RESET: i32 = 2;

/// Sets up queue 1, the transmit queue.
macro_rules! sending_queue {
    () => {
        concat!(
            reg!("0x30", "1"),
            reg!("0x38", "4"),
            reg!("0x80", "0x100640"),
            reg!("0x84", "0"),
            reg!("0x90", "0x1006a0"),
            reg!("0x94", "0"),
            reg!("0xa0", "0x100700"),
            reg!("0xa4", "0"),
            reg!("0x44", "1"),
        )
    };
}

/// A guest that offers the device one receive buffer of `$room` bytes and sends one packet of `$len` bytes, whose
/// header ends with the 28 bytes `$rest`, from the field `len` on. Its exit codes are those of the drivers in `virtio`.
macro_rules! sender {
    ($name:ident, $room:literal, $len:literal, $rest:literal) => {
        guest!(
            $name,
            "6:",
            negotiate!(),
            good_queue!(),
            sending_queue!(),
            driver_ok!(),
            reg!("0x50", "0"),
            reg!("0x50", "1"),
            "mov ecx, 20000;",
            // A packet arrives or the device needs a reset. The device has consumed the sent packet in both cases.
            "2: mov al, 1; cmp word ptr [0x1006c2], 0; jne 3f;",
            "mov al, 2; test byte ptr [rbx + 0x70], 0x40; jnz 3f;",
            "loop 2b; mov al, 3;",
            "3: out 0xf4, al;",
            ".org 6b + 0x600, 0;",
            concat!(".quad 0x101000; .long ", $room, "; .short 2, 0;"),
            ".org 6b + 0x640, 0;",
            concat!(".quad 0x100740; .long ", $len, "; .short 0, 0;"),
            ".org 6b + 0x680, 0; .short 0, 1, 0;",
            ".org 6b + 0x6a0, 0; .short 0, 1, 0;",
            ".org 6b + 0x740, 0; .quad 3, 2; .long 1000, 52;", // guest to host, no program listens
            $rest,
        );
    };
}

sender!(REQUEST, "64", "44", ".long 0; .short 1, 1; .long 0, 1000, 0;");
sender!(UNKNOWN, "64", "44", ".long -1; .short -1, -1; .long -1, -1, -1;");
sender!(SHORT, "64", "43", ".long 0; .short 1, 1; .long 0, 1000, 0;");
sender!(NO_ROOM, "44", "44", ".long 0; .short 1, 1; .long 0, 1000, 0;");

/// A run of `guest` with a socket device, and the path of its socket.
fn with_socket(guest: &[u8], dir: &TempDir) -> (Run, PathBuf) {
    let socket = dir.path().join("socket");
    (run(guest, &["--vsock", &format!("cid=3,socket={}", socket.display())]), socket)
}

#[track_caller]
fn ends(guest: &[u8], code: i32) {
    let dir = TempDir::new();
    let (run, socket) = with_socket(guest, &dir);
    run.end().assert(code, "", &[]);
    assert!(!socket.exists());
}

#[test]
fn a_request_to_a_port_without_a_listener_is_reset() {
    need_kvm!();
    ends(&REQUEST, DONE);
}

#[test]
fn a_packet_of_an_unknown_type_is_reset() {
    need_kvm!();
    ends(&UNKNOWN, DONE);
}

#[test]
fn a_truncated_packet_header_gets_no_reply() {
    need_kvm!();
    ends(&SHORT, 3);
}

#[test]
fn a_receive_buffer_that_is_too_small_stops_its_queue() {
    need_kvm!();
    ends(&NO_ROOM, NEEDS_RESET);
}

#[test]
fn the_socket_file_is_removed_at_the_end_and_a_stale_one_is_replaced() {
    need_kvm!();
    let dir = TempDir::new();
    let (run, socket) = with_socket(&SPIN, &dir);
    let mut killed = run.start();
    eventually("the socket", || UnixStream::connect(&socket).ok());
    killed.signal(Signal::SIGKILL);
    killed.child.wait().unwrap();
    assert!(socket.exists());

    let mut stopped = with_socket(&SPIN, &dir).0.start();
    stopped.wait_for("up");
    assert!(socket.exists());
    stopped.signal(Signal::SIGTERM);
    stopped.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
    assert!(!socket.exists());
}
