//! The size of a terminal.

use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use std::io;
use std::os::fd::AsFd;

/// Lines, and characters a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// The size of `terminal`; an error if it is none.
pub fn size(terminal: impl AsFd) -> io::Result<Size> {
    let size = tcgetwinsize(terminal)?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Changes the size of `terminal`, of which the programs in it are told.
pub fn set_size(terminal: impl AsFd, size: Size) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_the_size_it_was_given_and_a_file_has_none() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let given = Size { rows: 50, columns: 132 };
        set_size(&pty.master, given).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), given);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(size(&file).is_err() && set_size(&file, given).is_err());
    }
}
