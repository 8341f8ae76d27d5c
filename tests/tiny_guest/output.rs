//! Where output goes, and what becomes of it when its reader is slow, asleep or gone.

use crate::common::TempDir;
use crate::common::process::{Running, eventually};
use crate::support::guests::{HALT, HELLO, SPAM};
use crate::support::run::run;
use crate::{end_of_interrupt, guest, need_kvm, never, power_off, take_interrupts};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::fs::{self, OpenOptions};
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

// 1 MiB of numbers: 0, 1, 2 and so on, each in four bytes; 64 KiB are made and printed at a time. The first bytes of
// each go out as a polling driver sends them, one at a time when the status says that there is room, and the rest as
// fast as can be. (So most of them wait in KVM's ring, and the whole takes seconds and not minutes.)
guest!(
    FLOOD,
    "xor ebx, ebx",
    "6: mov edi, 0x110000; mov ecx, 0x4000; mov eax, ebx",
    "7: stosd; inc eax; dec ecx; jnz 7b",
    "mov ebx, eax; mov esi, 0x110000; mov ecx, 0x10000",
    "8: mov dx, 0x3fd; in al, dx; test al, 0x20; jz 8b",
    "mov dx, 0x3f8; outsb; dec ecx; cmp cx, 0xff00; ja 8b",
    "rep outsb",
    "cmp ebx, 0x40000; jb 6b",
    power_off!(),
    never!(),
);

// Prints a byte whenever the interrupt says that the last one has left.
guest!(
    INTERRUPTED,
    take_interrupts!(),
    "lea rsi, [rip + 9f]; mov dx, 0x3f9; mov al, 2; out dx, al",
    "6: sti; hlt; jmp 6b",
    "8: mov dx, 0x3fa; in al, dx; and al, 0xf; cmp al, 2; jne 7f",
    "mov dx, 0x3f8; lodsb; test al, al; jz 7f; out dx, al",
    end_of_interrupt!(),
    "jmp 6b",
    "9: .asciz \"By interrupt\\r\\n\"",
    "7:",
    power_off!(),
);

fn numbers(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

/// Starts the flood and waits until the pipe that it goes to is full.
fn dammed_flood() -> (Running, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let mut run = run(&FLOOD, &[]);
    run.command.stdout(writer.try_clone().unwrap());
    let running = run.start(); // the command and its copy of the writer are gone
    eventually("a full pipe", || {
        let ready = poll(&mut [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO).unwrap();
        (ready == 0).then_some(())
    });
    (running, reader)
}

fn read_slowly(source: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut few = [0; 509];
        match source.read(&mut few).unwrap() {
            0 => return all,
            len => all.extend(&few[..len]),
        }
    }
}

#[test]
fn a_mebibyte_arrives_whole_and_in_order_through_a_slow_reader() {
    need_kvm!();
    let (running, mut reader) = dammed_flood();
    let all = read_slowly(&mut reader);
    assert!(all == numbers(MIB), "{} bytes", all.len());
    running.end().assert(0, "", &[]);
}

#[test]
fn an_empty_transmitter_interrupts() {
    need_kvm!();
    run(&INTERRUPTED, &[]).end().assert(0, "By interrupt\r\n", &[]);
}

#[test]
fn a_reader_who_sleeps_does_not_keep_a_signal_from_ending_the_run() {
    need_kvm!();
    let (running, _reader) = dammed_flood();
    let asked = Instant::now();
    running.signal(Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
    // A second each for the last words and for the vCPUs; the rest is for a busy host.
    assert!(asked.elapsed() < Duration::from_secs(10), "took {:?}", asked.elapsed());
}

#[test]
fn a_guest_that_prints_without_end_does_not_keep_the_timeout_from_ending_the_run() {
    need_kvm!();
    let mut run = run(&SPAM, &["--timeout", "300ms"]);
    run.command.stdout(Stdio::null());
    run.end().assert_time_out("", "300ms");
}

#[test]
fn a_reader_who_leaves_ends_the_run() {
    need_kvm!();
    let (running, reader) = dammed_flood();
    drop(reader);
    running.end().assert(125, "", &["kickvm: cannot write the guest's output: Broken pipe"]);
}

#[test]
fn nobody_waits_for_a_standard_error_that_nobody_reads() {
    need_kvm!();
    let (_reader, writer) = pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (&writer).write_all(&[b'x'; 4096]).unwrap();
    let mut run = run(&HALT, &["-v", "--timeout", "300ms"]);
    run.command.stderr(writer);
    assert_eq!(run.end().code, Some(124));
}

#[test]
fn output_that_cannot_be_written_is_an_error_even_if_the_guest_has_ended() {
    need_kvm!();
    for guest in [&HELLO, &HALT] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut run = run(guest, &[]);
        run.command.stdout(full);
        run.end().assert(125, "", &["kickvm: cannot write the guest's output: No space left on device"]);
    }
}

#[test]
fn the_console_can_be_a_file() {
    need_kvm!();
    let dir = TempDir::new();
    let path = dir.file("console", b"what was here before");
    run(&HELLO, &["--console", &format!("file={}", path.display())]).end().assert(0, "", &[]);
    assert_eq!(fs::read_to_string(path).unwrap(), "Hello from a tiny guest\r\n");
}

#[test]
fn the_console_can_be_nowhere() {
    need_kvm!();
    run(&HELLO, &["--console", "none"]).end().assert(0, "", &[]);
}
