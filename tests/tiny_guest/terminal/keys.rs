//! Keys for the guest, escape keys for kickvm, and pasted text.

use crate::common::TempDir;
use crate::common::process::{DEADLINE, Running, kickvm, read_some, start};
use crate::common::pty::Pty;
use crate::support::guests::{HALT, SPAM};
use crate::support::images;
use crate::support::run::run;
use crate::{end_of_interrupt, guest, need_kvm, power_off, print_serial, take_interrupts};
use std::io::{Write, pipe};
use std::thread;

// Echoes its input until Ctrl-D.
guest!(
    ECHO,
    print_serial!("up"),
    "6: mov dx, 0x3fd; in al, dx; test al, 1; jz 6b",
    "mov dx, 0x3f8; in al, dx; cmp al, 4; je 7f",
    "out dx, al; jmp 6b",
    "7:",
    power_off!(),
);
// Echoes a byte for each interrupt, and disables and re-enables the receive interrupt before the next one. A lost
// interrupt would stop it for ever.
guest!(
    MASKING_ECHO,
    take_interrupts!(),
    print_serial!("up"),
    "mov dx, 0x3f9; mov al, 1; out dx, al",
    "6: sti; hlt; jmp 6b",
    "8: mov dx, 0x3fa; in al, dx; and al, 0xf; cmp al, 4; jne 9f", // received data available
    "mov dx, 0x3f9; mov al, 0; out dx, al",
    "mov dx, 0x3fd; in al, dx; test al, 1; jz 9f",
    "mov dx, 0x3f8; in al, dx; cmp al, 4; je 7f; out dx, al",
    "9: mov dx, 0x3f9; mov al, 1; out dx, al",
    end_of_interrupt!(),
    "jmp 6b",
    "7:",
    power_off!(),
);
guest!(
    POWER_BUTTON,
    take_interrupts!(),
    print_serial!("up"),
    "6: sti; hlt; jmp 6b; 8:",
    print_serial!("pressed"),
    power_off!(),
);

/// Starts a guest with a terminal as its input, and waits until it runs.
fn at_terminal(guest: &[u8]) -> (Running, Pty) {
    let pty = Pty::new();
    let mut run = run(guest, &[]);
    run.command.stdin(pty.stdio());
    let mut running = run.start();
    assert_eq!(running.wait_for("up"), "up");
    (running, pty)
}

#[test]
fn ctrl_a_x_ends_exec_before_the_command_has_started() {
    need_kvm!();
    let mut pty = Pty::new();
    let before = pty.settings();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&HALT));
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).args(["--", "true"]).stdin(pty.stdio()).stdout(pty.stdio());
    let running = start(command);
    running.wait_for_thread("vcpu0");
    pty.master.write_all(b"\x01x").unwrap();
    running.end().assert(0, "", &[]);
    assert_eq!(pty.settings(), before);
}

#[test]
fn ctrl_a_x_ends_the_run() {
    need_kvm!();
    let (running, mut pty) = at_terminal(&ECHO);
    let before = pty.settings();
    pty.master.write_all(b"\x01x").unwrap();
    running.end().assert(0, "", &[]);
    assert_ne!(pty.settings(), before, "it was raw and has been restored");
}

#[test]
fn ctrl_a_x_ends_the_run_of_a_guest_that_reads_no_input() {
    need_kvm!();
    let (running, mut pty) = at_terminal(&HALT);
    pty.master.write_all(&[b'x'; 64 << 10]).unwrap();
    pty.master.write_all(b"\x01x").unwrap();
    running.end().assert(0, "", &[]);
}

#[test]
fn ctrl_a_x_ends_the_run_although_the_output_is_not_read() {
    need_kvm!();
    let mut pty = Pty::new();
    let mut run = run(&SPAM, &[]);
    run.command.stdin(pty.stdio());
    let mut running = run.start();
    running.wait_for("x");
    pty.master.write_all(b"\x01x").unwrap();
    let ended = running.end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn ctrl_a_p_presses_the_power_button() {
    need_kvm!();
    let (running, mut pty) = at_terminal(&POWER_BUTTON);
    pty.master.write_all(b"\x01p").unwrap();
    running.end().assert(0, "pressed", &[]);
}

#[test]
fn ctrl_a_h_prints_help_and_does_not_reach_the_guest() {
    need_kvm!();
    let (mut running, mut pty) = at_terminal(&ECHO);
    pty.master.write_all(b"a\x01hb").unwrap();
    running.wait_for("b");
    pty.master.write_all(b"\x01x").unwrap();
    running.end().assert(
        0,
        "",
        &[
            "kickvm: Ctrl-A x  leave",
            "kickvm: Ctrl-A p  press the power button",
            "kickvm: Ctrl-A h  this help",
            "kickvm: Ctrl-A Ctrl-A  send Ctrl-A",
        ],
    );
}

#[test]
fn all_other_keys_reach_the_guest() {
    need_kvm!();
    let (mut running, mut pty) = at_terminal(&ECHO);
    let keys = "\x03\x1c\x1a\x13\x11\r\n\x7f"; // Ctrl-C, Ctrl-\, Ctrl-Z, Ctrl-S, Ctrl-Q, Enter, Ctrl-J, Backspace
    pty.master.write_all(keys.as_bytes()).unwrap();
    pty.master.write_all(b"\x01\x01\x01e.\x04").unwrap(); // Ctrl-A twice, Ctrl-A with a key that has no meaning
    assert_eq!(running.wait_for("."), format!("{keys}\x01\x01e."));
    running.end().assert(0, "", &[]);
}

#[test]
fn without_a_terminal_kickvm_has_no_escape_keys() {
    need_kvm!();
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(b"a\x01xb\x01h.\x04").unwrap();
    let mut run = run(&ECHO, &[]);
    run.command.stdin(reader);
    run.end().assert(0, "upa\x01xb\x01h.", &[]);
}

/// Writes `len` bytes to `input`, as many at a time as it accepts, and asserts that all come back in order.
fn paste(mut running: Running, input: impl Write + Send, len: usize) {
    let text: Vec<u8> = (0..len).map(|n| b"abcdefghijklmnopqrstuvwxyz"[n * 7 / 5 % 26]).collect();
    let mut back = Vec::new();
    thread::scope(|scope| {
        let text = &text;
        let mut input = input;
        scope.spawn(move || {
            input.write_all(text).unwrap();
            input.write_all(b"\x04").unwrap();
        });
        let stdout = running.child.stdout.as_mut().unwrap();
        while back.len() < len {
            let part = read_some(stdout, DEADLINE);
            assert!(!part.is_empty(), "ended after {} bytes", back.len());
            back.extend(part);
        }
    });
    assert!(back == text, "{} bytes came back changed", back.len());
    running.end().assert(0, "", &[]);
}

#[test]
fn text_pasted_at_a_terminal_arrives_complete() {
    need_kvm!();
    for len in [4 << 10, 64 << 10] {
        let (running, pty) = at_terminal(&ECHO);
        paste(running, &pty.master, len);
    }
}

#[test]
fn text_pasted_through_a_pipe_arrives_complete() {
    need_kvm!();
    for len in [4 << 10, 64 << 10] {
        let (reader, writer) = pipe().unwrap();
        let mut run = run(&ECHO, &[]);
        run.command.stdin(reader);
        let mut running = run.start();
        running.wait_for("up");
        paste(running, writer, len);
    }
}

#[test]
fn pasted_text_arrives_complete_in_a_guest_that_masks_its_interrupts() {
    need_kvm!();
    for len in [4 << 10, 16 << 10] {
        let (running, pty) = at_terminal(&MASKING_ECHO);
        paste(running, &pty.master, len);
    }
}
