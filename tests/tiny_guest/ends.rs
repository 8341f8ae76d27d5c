//! Each way in which a guest or its user can end a run.

use crate::common::process::{end, kickvm};
use crate::support::guests::{HALT, HELLO, SPIN};
use crate::support::run::{in_own_process, run};
use crate::{guest, halt, need_kvm, never, outb, print_serial, this_test};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, wait};

guest!(RESET_BY_I8042, outb!("0x64", "0xfe"), never!(),);
guest!(RESET_BY_ACPI, outb!("0x602", "1"), never!(),);
guest!(TRIPLE_FAULT, print_serial!(r"going\r\n"), "ud2", never!(),);

// KVM's emulator does not implement this instruction, so even a hardware-backed KVM cannot execute it on an MMIO
// address.
guest!(NO_SUCH_INSTRUCTION, "mov edi, 0xd0000000", "lock cmpxchg16b [rdi]", never!(),);

guest!(
    PANIC_THEN_HALT,
    print_serial!(r"[    1.0] Kernel panic - not syncing: VFS\r\n"),
    print_serial!(r"[    1.1] ---[ end Kernel panic - not syncing: VFS ]---\r\n"),
    halt!(),
);
guest!(
    PANIC_THEN_RESET,
    print_serial!(r"[    1.0] Kernel panic - not syncing: VFS\r\n"),
    outb!("0x602", "1"),
    never!(),
);
guest!(PANIC_THEN_CRASH, print_serial!(r"[    1.0] Kernel panic - not syncing: VFS\r\n"), "ud2", never!(),);
guest!(PVPANIC, "mov dx, 0x505; in al, dx; cmp al, 1; jne 6f", outb!("0x505", "1"), "6:", never!(),);

#[test]
fn a_guest_prints_and_powers_off() {
    need_kvm!();
    run(&HELLO, &[]).end().assert(0, "Hello from a tiny guest\r\n", &[]);
}

#[test]
fn the_process_that_waits_for_kvm_ends_soon_after_the_run() {
    need_kvm!();
    in_own_process(this_test!(), || {
        set_child_subreaper(true).unwrap(); // so that its parent is this process
        run(&HELLO, &[]).end().assert(0, "Hello from a tiny guest\r\n", &[]);
        assert!(matches!(wait(), Ok(WaitStatus::Exited(_, 0))));
        assert_eq!(wait(), Err(Errno::ECHILD));
    });
}

#[test]
fn both_resets_end_the_run_before_the_next_instruction() {
    need_kvm!();
    for guest in [&RESET_BY_I8042, &RESET_BY_ACPI] {
        run(guest, &[]).end().assert(0, "", &[]);
    }
}

#[test]
fn the_exit_port_takes_a_status_up_to_119() {
    need_kvm!();
    for (written, code) in [(0, 0), (7, 7), (119, 119), (120, 119), (255, 119)] {
        let mov_al_out_0xf4 = [0xb0, written, 0xe6, 0xf4];
        run(&mov_al_out_0xf4, &[]).end().assert(code, "", &[]);
    }
}

#[test]
fn a_triple_fault_is_code_121() {
    need_kvm!();
    let ended = run(&TRIPLE_FAULT, &[]).end();
    let mut line = ended.stderr.lines();
    let first = line.next().unwrap();
    assert!(first.starts_with("kickvm: the guest crashed: triple fault on vCPU 0 (RIP 0x"), "{first}");
    assert_eq!((ended.code, ended.stdout.as_str(), line.next()), (Some(121), "going\r\n", None));
}

#[test]
fn an_internal_error_is_reported_with_rip_and_instruction_bytes() {
    need_kvm!();
    let ended = run(&NO_SUCH_INSTRUCTION, &[]).end();
    let mut lines = ended.stderr.lines();
    let line = lines.next().unwrap();
    let expected = "kickvm: the guest could not continue: vCPU 0 at RIP 0x100005: KVM_EXIT_INTERNAL_ERROR, suberror 1, \
                    emulation failure, code f0 48 0f c7 0f";
    assert!(line.starts_with(expected), "{line}");
    assert_eq!((ended.code, ended.stdout.as_str(), lines.next()), (Some(122), "", None));
}

#[test]
fn a_kernel_panic_on_the_console_is_code_120_whatever_the_guest_does_next() {
    need_kvm!();
    for guest in [&PANIC_THEN_HALT, &PANIC_THEN_RESET, &PANIC_THEN_CRASH] {
        let ended = run(guest, &[]).end();
        assert!(ended.stdout.starts_with("[    1.0] Kernel panic - not syncing: VFS\r\n"), "{ended:?}");
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(120), "kickvm: the guest kernel panicked\n"));
    }
}

#[test]
fn pvpanic_reports_its_events_and_ends_the_run() {
    need_kvm!();
    run(&PVPANIC, &[]).end().assert(120, "", &["kickvm: the guest kernel panicked"]);
}

#[test]
fn each_signal_ends_a_guest_that_spins_or_halts() {
    need_kvm!();
    for guest in [&SPIN, &HALT] {
        for (signal, code, name) in [
            (Signal::SIGTERM, 143, "SIGTERM"),
            (Signal::SIGINT, 130, "SIGINT"),
            (Signal::SIGHUP, 129, "SIGHUP"),
            (Signal::SIGQUIT, 131, "SIGQUIT"),
        ] {
            let mut running = run(guest, &[]).start();
            assert_eq!(running.wait_for("up"), "up");
            running.signal(signal);
            running.end().assert(code, "", &[&format!("kickvm: stopped by {name}")]);
        }
    }
}

#[test]
fn the_timeout_ends_a_guest_that_spins_or_halts() {
    need_kvm!();
    for guest in [&SPIN, &HALT] {
        let ended = run(guest, &["--timeout", "200ms"]).end();
        // On a busy host the timeout may expire before the guest prints.
        assert!("up".starts_with(&ended.stdout), "{ended:?}");
        ended.assert_time_out(&ended.stdout, "200ms");
    }
}

#[test]
fn the_demonstration_prints_its_guests_lines_and_logs_each_step() {
    need_kvm!();
    end(kickvm(&["demo"])).assert(
        0,
        "Hello from the guest: I run in 64-bit mode on a virtual CPU.\r\n\
         Each byte you read is an OUT to port 0x3f8, which exits to the VMM.\r\n\
         Now I power off: an OUT of 0x34 to port 0x600.\r\n",
        &[
            "kickvm: Vmm::try_from: the machine is built; the exit handler is the event manager's first subscriber",
            "kickvm: boot protocol: ELF, 64-bit entry, entry at 0x100000",
            "kickvm: command line: console=ttyS0 panic=-1",
            "kickvm: KvmVm::run: starting one thread per vCPU",
            "kickvm: loop: event_mgr.run() waits",
            "kickvm: loop: kicked because the guest powered off; keep_running() is false, break",
            "kickvm: vm.shutdown(): every vCPU has left the guest, every thread is joined",
            "kickvm: the guest powered off",
        ],
    );
}
