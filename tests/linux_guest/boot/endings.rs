//! Each way in which Linux ends a machine, and its exit code. Nearly all other tests end by init's `poweroff -f`, which
//! is code 0.

use crate::support::guest::Guest;

const CRASH: &str = "kickvm: the guest crashed: triple fault on vCPU 0 (RIP ";

/// `reboot -f`, by the kernel's default method.
#[track_caller]
fn reboots(guest: Guest) {
    let ended = guest.job("reboot -f").run();
    ended.assert(0, &[]);
    ended.assert_line("reboot: Restarting system");
}

#[track_caller]
fn crashes(guest: Guest) {
    let ended = guest.append("reboot=t").job("reboot -f").run();
    ended.assert_code(121);
    ended.assert_line("reboot: Restarting system");
    assert!(ended.stderr.starts_with(CRASH) && ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

#[test]
fn power_off_is_0() {
    let ended = linux!(BzImage).job("poweroff -f").run();
    ended.assert(0, &[]);
    ended.assert_line("reboot: Power down");
}

#[test]
fn power_off_of_4_cpus_is_0() {
    let ended = linux!(Stock).cpus(4).job("poweroff -f").run();
    ended.assert(0, &[]);
    ended.assert_line("reboot: Power down");
}

#[test]
fn reboot_of_a_stock_kernel_is_0() {
    reboots(linux!(Stock));
}

#[test]
fn reboot_of_our_kernel_is_0() {
    reboots(linux!(BzImage).cpus(2));
}

#[test]
fn reboot_by_the_keyboard_controller_is_0() {
    reboots(linux!(BzImage).append("reboot=k"));
}

#[test]
fn reboot_of_a_stock_kernel_by_the_keyboard_controller_is_0() {
    reboots(linux!(Stock).append("reboot=k"));
}

#[test]
fn reboot_of_a_stock_kernel_by_the_acpi_register_is_0() {
    reboots(linux!(Stock).append("reboot=a"));
}

#[test]
fn reboot_by_triple_fault_is_121() {
    crashes(linux!(BzImage));
}

#[test]
fn reboot_of_a_stock_kernel_by_triple_fault_is_121() {
    crashes(linux!(Stock));
}

/// Nothing announces it, as nothing announces the reset of a panic that the console does not show.
#[track_caller]
fn resets(guest: Guest, code: i32, stderr: &[&str]) {
    guest.job("echo b >/proc/sysrq-trigger").run().assert(code, stderr);
}

#[test]
fn a_reset_by_sysrq_is_123() {
    let why = "kickvm: the guest reset, although no program had requested it (--fail-on reset); \
               '--fail-on -reset' accepts that";
    resets(linux!(Stock).append("loglevel=7"), 123, &[why]);
}

/// The kernel prints no message of its level, and an orderly end would be one of the highest.
#[test]
fn a_reset_that_a_quiet_console_does_not_explain_is_123() {
    let why = "kickvm: the guest reset, and its console does not show whether a program had requested it \
               (--fail-on reset); '--fail-on -reset' accepts that";
    resets(linux!(BzImage).append("quiet loglevel=1"), 123, &[why]);
    resets(linux!(Elf).append("quiet loglevel=1"), 123, &[why]);
}

#[test]
fn a_reset_by_sysrq_that_is_accepted_is_0() {
    resets(linux!(Stock).append("loglevel=7").options(&["--fail-on", "-reset"]), 0, &[]);
}
