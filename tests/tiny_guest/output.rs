//! Where output goes, and what happens to it when its reader is slow, sleeps or has closed.

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

// Prints 1 MiB of numbers: 0, 1, 2 and so on, four bytes each, in blocks of 64 KiB. The first bytes of a block are sent
// the way a polling driver sends them, one at a time when the line status register allows it, and the rest by one
// string instruction, which is faster because KVM coalesces the writes.
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

// Prints one byte for each transmitter interrupt.
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
    (0u32..).take(bytes / 4).flat_map(u32::to_le_bytes).collect()
}

/// Starts the flood and waits until its output pipe is full.
fn blocked_flood() -> (Running, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let mut run = run(&FLOOD, &[]);
    run.command.stdout(writer.try_clone().unwrap());
    let running = run.start(); // drops the command and its copy of the writer
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
fn a_slow_reader_gets_a_mebibyte_complete_and_in_order() {
    need_kvm!();
    let (running, mut reader) = blocked_flood();
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
fn a_signal_ends_the_run_although_the_output_reader_sleeps() {
    need_kvm!();
    let (running, _reader) = blocked_flood();
    let start = Instant::now();
    running.signal(Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
    // At most a second each for draining the output and for stopping the vCPUs; the rest is for a busy host.
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
}

#[test]
fn endless_output_does_not_delay_the_timeout() {
    need_kvm!();
    let mut run = run(&SPAM, &["--timeout", "300ms"]);
    run.command.stdout(Stdio::null());
    run.end().assert_time_out("", "300ms");
}

#[test]
fn a_reader_that_closes_the_pipe_ends_the_run() {
    need_kvm!();
    let (running, reader) = blocked_flood();
    drop(reader);
    running.end().assert(125, "", &["kickvm: cannot write the guest's output: Broken pipe"]);
}

#[test]
fn a_full_standard_error_does_not_block_the_run() {
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
    let path = dir.file("console", b"the previous content");
    run(&HELLO, &["--console", &format!("file={}", path.display())]).end().assert(0, "", &[]);
    assert_eq!(fs::read_to_string(path).unwrap(), "Hello from a tiny guest\r\n");
}

#[test]
fn the_console_can_be_discarded() {
    need_kvm!();
    run(&HELLO, &["--console", "none"]).end().assert(0, "", &[]);
}
