//! If kickvm's input and output are a terminal, so are the command's.

use super::run::{Exec, PATIENCE};
use crate::common::process::read_until;
use crate::common::pty::{Pty, is_raw};
use crate::support::terminal::take_terminal;
use nix::sys::termios::Termios;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

on_both_kernels!(a_shell_with_ctrl_c_and_a_size);

/// Starts kickvm in its own session with a terminal for its input and output.
fn start(exec: Exec, words: &[&str]) -> (Child, File, Pty, Termios) {
    let (mut command, _scratch) = exec.busybox().command(words);
    let pty = Pty::new();
    set_size(&pty, 33, 111);
    let before = pty.settings();
    command.stdin(pty.stdio()).stdout(pty.stdio()).stderr(Stdio::piped());
    // SAFETY: `take_terminal` makes only system calls, which is allowed between fork and exec.
    unsafe { command.pre_exec(take_terminal) };
    let child = command.spawn().unwrap();
    let screen = pty.master.try_clone().unwrap();
    (child, screen, pty, before)
}

fn set_size(pty: &Pty, rows: u16, columns: u16) {
    let size = format!("rows {rows} cols {columns}");
    let mut stty = std::process::Command::new("stty");
    assert!(stty.args(size.split(' ')).stdin(pty.stdio()).status().unwrap().success());
}

fn a_shell_with_ctrl_c_and_a_size(exec: Exec) {
    let script = "busybox stty size; busybox tty; trap 'echo caught' INT; \
        sh -c 'echo ready; exec busybox sleep 1000'; echo after; echo apart >&2; read line; busybox stty size; exit $line";
    let (child, mut screen, pty, before) = start(exec, &["sh", "-c", script]);
    let output = read_until(&mut screen, "ready\r\n", PATIENCE);
    assert!(output.ends_with("33 111\r\n/dev/pts/0\r\nready\r\n"), "{output:?}");
    assert!(is_raw(&pty.settings()), "the terminal is not raw");
    screen.write_all(b"\x03").unwrap(); // a byte for kickvm, and a signal for the guest terminal's foreground process
    read_until(&mut screen, "caught\r\nafter\r\n", PATIENCE);
    set_size(&pty, 44, 122);
    screen.write_all(b"17\n").unwrap();
    read_until(&mut screen, "17\r\n44 122\r\n", PATIENCE);
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(17), &b"apart\n"[..]));
    assert!(pty.settings() == before, "the terminal is not restored");
}
