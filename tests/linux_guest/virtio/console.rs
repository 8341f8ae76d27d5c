//! The virtio console on standard input and output.

use crate::common::pty::Pty;
use crate::support::devices::job;
use crate::support::guest::Guest;
use crate::support::terminal::{CTRL_A, Terminal};
use crate::support::transcript::lines;
use kickvm::sys::winsize::WinSize;

/// A stock kernel has no console before its driver is loaded.
const ON_HVC: &str = "exec </dev/hvc0 >/dev/hvc0 2>&1";

fn virtio(guest: Guest) -> Guest {
    guest.options(&["--console", "virtio", "-v"])
}

/// The number of exits to user space that `-v` printed.
fn exits(stderr: &str) -> u64 {
    let line = stderr.lines().find_map(|line| line.strip_prefix("kickvm: ")?.split_once(" exits: "));
    line.expect("exits are counted").0.parse().expect("a number")
}

#[track_caller]
fn reads_and_writes_lines(guest: Guest) {
    let script = format!("{ON_HVC}; tty; read line; echo got $line; seq 1 2000; stty opost");
    let mut guest = job(virtio(guest), &script).start();
    guest.wait_for_line("/dev/hvc0");
    guest.write("a line\n");
    let ended = guest.finish();
    ended.assert_code(0);
    let lines = lines(&ended.stdout);
    let from = lines.iter().position(|line| *line == "got a line").expect("the line came back");
    let numbers = lines[from + 1..].iter().take(2000).map(|line| line.parse::<u32>().ok());
    assert!(numbers.eq((1..=2000).map(Some)), "{lines:?}");
    // 2,000 lines of 4 bytes are at least 8,000 exits on a serial port.
    assert!(exits(&ended.stderr) < 3_000, "{}", ended.stderr);
}

#[test]
fn a_stock_kernel_reads_and_writes_lines() {
    reads_and_writes_lines(linux!(Stock));
}

#[test]
fn our_kernel_reads_and_writes_lines() {
    reads_and_writes_lines(linux!(BzImage));
}

/// As in `echo … | kickvm run --console virtio`.
#[track_caller]
fn keeps_early_input(guest: Guest) {
    let mut guest = job(virtio(guest), "read line </dev/hvc0; echo got $line >/dev/hvc0").start();
    guest.write("a line\n");
    let ended = guest.finish();
    ended.assert_code(0);
    assert!(lines(&ended.stdout).contains(&"got a line"), "{}", ended.stdout);
}

#[test]
fn a_stock_kernel_reads_input_from_before_its_driver_was_loaded() {
    keeps_early_input(linux!(Stock));
}

#[test]
fn our_kernel_reads_input_from_before_its_driver_started() {
    keeps_early_input(linux!(BzImage));
}

#[track_caller]
fn follows_the_terminal(guest: Guest) {
    let script = format!(
        "{ON_HVC}
until [ \"$(stty size)\" = '40 100' ]; do usleep 10000; done 2>/dev/null; echo sized
until [ \"$(stty size)\" = '50 132' ]; do usleep 10000; done; echo resized
stty opost"
    );
    let size = |rows, cols| WinSize { rows, cols };
    let pty = Pty::new();
    size(40, 100).set(&pty.master).expect("a terminal has a size");
    let host = pty.master.try_clone().expect("cannot duplicate a descriptor");
    let mut terminal = Terminal::start_on(pty, job(virtio(guest), &script));
    terminal.wait_for_line("sized");
    size(50, 132).set(&host).expect("a terminal has a size");
    terminal.wait_for_line("resized");
    drop(host);
    terminal.finish().assert_code(0);
}

#[test]
fn the_size_of_the_terminal_reaches_a_stock_kernel_when_it_starts_and_when_it_changes() {
    follows_the_terminal(linux!(Stock));
}

#[test]
fn the_size_of_the_terminal_reaches_our_kernel_when_it_starts_and_when_it_changes() {
    follows_the_terminal(linux!(BzImage));
}

/// Init's console is the virtio console, so its shell runs there.
#[test]
fn a_shell_on_it_works_and_ctrl_a_x_leaves_it() {
    let mut terminal = Terminal::start(virtio(linux!(BzImage)));
    assert_eq!(terminal.run("tty"), ["/dev/hvc0"]);
    terminal.press(&format!("{CTRL_A}x"));
    terminal.finish().assert_code(0);
}

#[test]
fn a_panic_on_the_virtio_console_is_code_120() {
    let guest = virtio(linux!(BzImage)).job("echo c >/proc/sysrq-trigger");
    let ended = guest.run();
    ended.assert_code(120);
    ended.assert_line("Kernel panic - not syncing: sysrq triggered crash");
}
