//! The size of a terminal window (`TIOCGWINSZ` and `TIOCSWINSZ`, ioctl_tty(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// The size of a terminal window in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WinSize {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub cols: u16,
}

impl WinSize {
    /// Returns the size of `terminal`.
    ///
    /// # Errors
    ///
    /// `terminal` is not a terminal.
    pub fn of(terminal: impl AsFd) -> io::Result<Self> {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call writes a `winsize`, which is a live local.
        Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) })?;
        Ok(Self { rows: size.ws_row, cols: size.ws_col })
    }

    /// Sets the size of `terminal`. The kernel sends SIGWINCH to its foreground process group.
    ///
    /// # Errors
    ///
    /// `terminal` is not a terminal.
    pub fn set(self, terminal: impl AsFd) -> io::Result<()> {
        let size = libc::winsize { ws_row: self.rows, ws_col: self.cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call reads a `winsize`, which is a live local.
        Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_the_size_it_was_given_and_a_file_has_none() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let given = WinSize { rows: 50, cols: 132 };
        given.set(&pty.master).unwrap();
        assert_eq!(WinSize::of(&pty.slave).unwrap(), given);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(WinSize::of(&file).is_err() && given.set(&file).is_err());
    }
}
