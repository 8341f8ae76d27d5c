//! A shell session at a terminal or through a pipe.

use crate::support::guest::{DRAIN, Guest};
use crate::support::terminal::{CTRL_A, CTRL_C, CTRL_D, Terminal};

/// Types, pastes and interrupts, and returns the terminal with the shell at its prompt.
fn session(guest: Guest) -> Terminal {
    let mut terminal = Terminal::start(guest);
    assert_eq!(terminal.run("echo $((6 * 7)); uname -m"), ["42", "x86_64"]);
    assert_eq!(terminal.run("tty; stty size </dev/null 2>/dev/null || echo none"), ["/dev/ttyS0", "none"]);

    paste(&mut terminal);

    // Ctrl-C interrupts the guest's process, and neither kickvm nor the shell.
    terminal.press("sh -c 'echo sleeping; exec sleep 1000'\r");
    terminal.wait_for_line("sleeping");
    terminal.press(CTRL_C);
    terminal.wait_for_prompt();
    assert_eq!(terminal.run("echo $?"), ["130"]);

    terminal.press(&format!("{CTRL_A}h"));
    terminal.wait_for_message("kickvm: Ctrl-A x  leave\n");
    terminal
}

/// 4 KiB written at once arrive complete and in order.
fn paste(terminal: &mut Terminal) {
    let text: String =
        (0..64).map(|n| format!("{n:02} the quick brown fox jumps over a lazy dog, again and again..\r")).collect();
    assert_eq!(text.len(), 4096);
    terminal.press("echo ready; cat >/tmp/pasted; echo done\r");
    terminal.wait_for_line("ready");
    terminal.press(&text);
    terminal.press(CTRL_D);
    terminal.wait_for_line("done");
    terminal.wait_for_prompt();
    assert_eq!(terminal.run("wc -lc </tmp/pasted"), ["       64      4096"]);
    let pasted: Vec<&str> = text.split_terminator('\r').collect();
    assert_eq!(terminal.run("cat /tmp/pasted"), pasted);
}

#[track_caller]
fn leaves(mut terminal: Terminal) {
    terminal.press(&format!("{CTRL_A}x"));
    let ended = terminal.finish();
    ended.assert_code(0);
    let other = ended.stderr.lines().find(|line| !line.is_empty() && !line.starts_with("kickvm: Ctrl-A "));
    assert_eq!(other, None, "a message other than the help");
}

/// The interrupt of the power button arrives. Without modules a stock kernel has no driver that handles it further.
#[test]
fn on_a_stock_kernel() {
    let mut terminal = session(linux!(Stock));
    assert_eq!(terminal.run("grep -c ' 0 .*ACPI:Ged' /proc/interrupts"), ["1"]);
    terminal.press(&format!("{CTRL_A}p"));
    assert!(terminal.run("until grep -q ' 1 .*ACPI:Ged' /proc/interrupts; do :; done").is_empty());
    leaves(terminal);
}

/// The power button becomes an input event: type 1 (`EV_KEY`), code 116 (`KEY_POWER`), value 1.
#[test]
fn on_our_kernel() {
    let mut terminal = session(linux!(BzImage));
    terminal.press("{ echo ready >&2; head -c 24; } </dev/input/event0 | od -j16 -tu2\r");
    terminal.wait_for_line("ready");
    terminal.press(&format!("{CTRL_A}p"));
    terminal.wait_for_line("0000020     1   116     1     0");
    terminal.wait_for_prompt();
    leaves(terminal);
}

/// The terminal is restored, too, when the guest ends the session.
#[test]
fn that_ends_with_the_shell() {
    let mut terminal = Terminal::start(linux!(BzImage));
    terminal.press("exit\r");
    terminal.finish().assert(0, &[]);
}

/// Commands from a pipe reach the shell, and the end of the pipe does not end the guest.
#[test]
fn from_a_pipe() {
    let guest = linux!(BzImage);
    let mut running = guest.start();
    running.write("echo $((6 * 7))\n");
    running.wait_for_line("42");
    running.write(&format!("{DRAIN}; exit\n"));
    running.child.stdin = None;
    let ended = running.finish();
    ended.assert(0, &[]);
    ended.assert_line("reboot: Power down");
}
