//! A kernel panic is exit code 120, whether the kernel then reboots or waits for ever. Its messages are on standard
//! output.

use crate::support::guest::{DRAIN, Guest};

const NO_ROOT: &str = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
/// A kernel command line with which the kernel waits for ever after a panic.
const WAIT: &str = "console=ttyS0 quiet panic=0";

#[track_caller]
fn panics(guest: Guest, lines: &[&str]) {
    let ended = guest.run();
    ended.assert(120, &["kickvm: the guest kernel panicked"]);
    lines.iter().for_each(|line| ended.assert_line(line));
}

#[track_caller]
fn panics_and_reboots(guest: Guest) {
    panics(guest.without_initramfs(), &[NO_ROOT]);
}

#[track_caller]
fn panics_by_sysrq(guest: Guest) {
    panics(guest.job("echo c >/proc/sysrq-trigger"), &["Kernel panic - not syncing: sysrq triggered crash"]);
}

#[test]
fn a_stock_kernel_without_a_root_that_reboots() {
    panics_and_reboots(linux!(Stock));
}

/// kickvm recognizes the end of a panic by its last line.
#[test]
fn a_stock_kernel_without_a_root_that_waits() {
    let end = format!("---[ end {NO_ROOT} ]---");
    panics(linux!(Stock).without_initramfs().cmdline(WAIT), &[NO_ROOT, &end]);
}

#[test]
fn our_kernel_without_a_root_that_reboots() {
    panics_and_reboots(linux!(BzImage));
}

/// It has the driver of the pvpanic device, which reports the panic at once.
#[test]
fn our_kernel_without_a_root_that_waits() {
    panics(linux!(Pvh).without_initramfs().cmdline(WAIT), &[NO_ROOT]);
}

#[test]
fn a_stock_kernel_by_sysrq() {
    panics_by_sysrq(linux!(Stock));
}

#[test]
fn our_kernel_by_sysrq_with_4_cpus() {
    panics_by_sysrq(linux!(BzImage).cpus(4));
}

/// The kernel writes behind the prompt. It has no panic device, so only the console shows the panic.
#[test]
fn a_stock_kernel_behind_a_prompt() {
    let script = format!("printf 'guest# '\n{DRAIN}\necho c >/proc/sysrq-trigger");
    let ended = linux!(Stock).job(&script).run();
    ended.assert(120, &["kickvm: the guest kernel panicked"]);
    assert!(ended.stdout.contains("guest# ["), "{}", ended.stdout);
}

#[test]
fn a_program_that_prints_a_panic_of_a_stock_kernel_is_0() {
    let script = "echo 'Kernel panic - not syncing: in a program'; reboot -f";
    linux!(Stock).append("loglevel=7").job(script).run().assert(0, &[]);
}
