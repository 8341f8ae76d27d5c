//! Ports and memory as a guest reads them. Each guest counts its checks in EBX and ends with the number of the first
//! that failed, or 0.

use crate::support::run::run;
use crate::{guest, need_kvm};

macro_rules! check {
    ($($code:literal),*) => {
        concat!("inc ebx; ", $($code, "; ",)* "jne 9f")
    };
}

macro_rules! end_of_checks {
    () => {
        "xor ebx, ebx; 9: mov eax, ebx; out 0xf4, al"
    };
}

guest!(
    UNCLAIMED,
    "mov dx, 0x1234; xor ebx, ebx; xor eax, eax; out dx, al",
    check!("in al, dx", "cmp al, 0xff"),
    check!("xor eax, eax; in ax, dx", "cmp ax, 0xffff"),
    check!("xor eax, eax; in eax, dx", "cmp eax, 0xffffffff"),
    check!("in al, 0xf5", "cmp al, 0xff"), // the port after the exit port
    "mov ecx, 0xd0000000; mov qword ptr [rcx], 0",
    check!("mov al, [rcx]", "cmp al, 0xff"),
    check!("mov ax, [rcx]", "cmp ax, 0xffff"),
    check!("mov eax, [rcx]", "cmp eax, 0xffffffff"),
    check!("mov rax, [rcx]", "cmp rax, -1"),
    check!("mov eax, [rcx + 1]", "cmp eax, 0xffffffff"),
    end_of_checks!(),
);

guest!(
    NOT_BUSY,
    "xor ebx, ebx; mov al, 0x0a; out 0x70, al",
    check!("in al, 0x71", "test al, 0x80"), // an update in progress
    "mov al, 0x0d; out 0x70, al",
    check!("in al, 0x71", "cmp al, 0x80"), // the time is valid
    check!("in al, 0x64", "test al, 3"),   // neither buffer is full
    "mov dx, 0x3fd",
    check!("in al, dx", "cmp al, 0x60"), // the transmitter is empty, and no data was received
    end_of_checks!(),
);

#[test]
fn unclaimed_ports_and_mmio_read_as_all_ones() {
    need_kvm!();
    run(&UNCLAIMED, &[]).end().assert(0, "", &[]);
}

#[test]
fn clock_keyboard_controller_and_serial_port_read_as_ready() {
    need_kvm!();
    run(&NOT_BUSY, &[]).end().assert(0, "", &[]);
}
