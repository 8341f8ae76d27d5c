//! A shell session: typed at a terminal, or piped in.

use crate::support::guest::{DRAIN, Guest};
use crate::support::terminal::{CTRL_A, CTRL_C, CTRL_D, Terminal};

/// Types, pastes, interrupts, and leaves the guest in a shell for what comes next.
fn session(guest: Guest) -> Terminal {
    let mut terminal = Terminal::start(guest);
    assert_eq!(terminal.ask("echo $((6 * 7)); uname -m"), ["42", "x86_64"]);
    assert_eq!(terminal.ask("tty; stty size </dev/null 2>/dev/null || echo none"), ["/dev/ttyS0", "none"]);

    paste(&mut terminal);

    // Ctrl-C is for the guest's process, and neither for kickvm nor for the shell.
    terminal.press("sh -c 'echo sleeping; exec sleep 1000'\r");
    terminal.wait_for_line("sleeping");
    terminal.press(CTRL_C);
    terminal.wait_for_prompt();
    assert_eq!(terminal.ask("echo $?"), ["130"]);

    terminal.press(&format!("{CTRL_A}h"));
    terminal.wait_for_complaint("kickvm: Ctrl-A x  leave\n");
    terminal
}

/// 4 KiB in one go arrive whole and in order.
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
    assert_eq!(terminal.ask("wc -lc </tmp/pasted"), ["       64      4096"]);
    let pasted: Vec<&str> = text.split_terminator('\r').collect();
    assert_eq!(terminal.ask("cat /tmp/pasted"), pasted);
}

#[track_caller]
fn leaves(mut terminal: Terminal) {
    terminal.press(&format!("{CTRL_A}x"));
    let ended = terminal.finish();
    ended.assert_code(0);
    let said = ended.stderr.lines().find(|line| !line.is_empty() && !line.starts_with("kickvm: Ctrl-A "));
    assert_eq!(said, None, "only the help was asked for");
}

/// The interrupt of the power button arrives: a stock kernel without modules has no driver that makes more of it.
#[test]
fn on_a_stock_kernel() {
    let mut terminal = session(linux!(Stock));
    assert_eq!(terminal.ask("grep -c ' 0 .*ACPI:Ged' /proc/interrupts"), ["1"]);
    terminal.press(&format!("{CTRL_A}p"));
    assert!(terminal.ask("until grep -q ' 1 .*ACPI:Ged' /proc/interrupts; do :; done").is_empty());
    leaves(terminal);
}

/// The power button becomes an event: type 1 (`EV_KEY`), code 116 (`KEY_POWER`), value 1.
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

/// The guest's own way out of a session; the terminal is restored then too.
#[test]
fn that_ends_with_the_shell() {
    let mut terminal = Terminal::start(linux!(BzImage));
    terminal.press("exit\r");
    terminal.finish().assert(0, &[]);
}

/// Commands from a pipe reach the shell, and the pipe's end is no end of the guest.
#[test]
fn from_a_pipe() {
    let guest = linux!(BzImage);
    let mut running = guest.start();
    running.say("echo $((6 * 7))\n");
    running.wait_for_line("42");
    running.say(&format!("{DRAIN}; exit\n"));
    running.child.stdin = None;
    let ended = running.finish();
    ended.assert(0, &[]);
    ended.assert_line("reboot: Power down");
}
