//! Four vCPUs. The first starts the others as on a PC, by its local APIC.

use crate::common::process::Running;
use crate::support::run::run;
use crate::{guest, need_kvm, print_serial};
use nix::sys::signal::Signal;

// The word at 0x50000 counts the vCPUs that run; each waits until the byte at 0x50004 is set. The first letter of the
// kernel command line selects what they do then: (s)pin, all (e)xit at once, (o)ne exits.
guest!(
    FOUR,
    "lea rsi, [rip + 8f]; mov edi, 0x40000; mov ecx, 128; rep movsb", // copy the others' code below 1 MiB
    "mov eax, 0xfee00300",                                            // the low half of the interrupt command register
    "mov dword ptr [rax], 0xc4500",                                   // INIT, to all but self
    "mov dword ptr [rax], 0xc4640",                                   // start-up at page 0x40, to all but self
    "mov ebx, 0x50000",
    "6: cmp dword ptr [rbx], 3; jne 6b",
    print_serial!(r"all up\r\n"),
    "mov byte ptr [rbx + 4], 1",
    "cmp byte ptr [0x20000], 'e'; jne 7f",
    "mov al, 5; out 0xf4, al",
    "7: jmp 7b",
    ".code16",
    "8: mov ax, 0x5000; mov ds, ax",
    "mov eax, 1; lock xadd [0], eax",
    "6: cmp byte ptr [4], 0; je 6b",
    "mov bx, 0x2000; mov ds, bx",
    "cmp byte ptr [0], 'e'; je 9f",
    "cmp byte ptr [0], 's'; je 7f",
    "cmp al, 2; je 9f",
    "7: jmp 7b",
    "9: mov al, 5; out 0xf4, al",
    ".code64",
);

fn four(plan: &str) -> Running {
    let mut running = run(&FOUR, &["--cpus", "4", "--cmdline", plan]).start();
    assert_eq!(running.wait_for("\n"), "all up\r\n");
    running
}

#[test]
fn a_signal_ends_four_spinning_vcpus() {
    need_kvm!();
    let running = four("spin");
    running.signal(Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
}

#[test]
fn the_timeout_ends_four_spinning_vcpus() {
    need_kvm!();
    let mut running = run(&FOUR, &["--cpus", "4", "--cmdline", "spin", "--timeout", "2s"]).start();
    running.wait_for("\n");
    running.end().assert_time_out("", "2s");
}

#[test]
fn four_vcpus_that_exit_at_once_end_the_run_once() {
    need_kvm!();
    four("exit").end().assert(5, "", &[]);
}

#[test]
fn one_vcpu_that_exits_ends_the_run_of_all() {
    need_kvm!();
    four("one").end().assert(5, "", &[]);
}

#[test]
fn vcpus_that_were_never_started_do_not_delay_the_end() {
    need_kvm!();
    for cpus in ["2", "254"] {
        run(&[0xb0, 7, 0xe6, 0xf4], &["--cpus", cpus]).end().assert(7, "", &[]);
    }
}
