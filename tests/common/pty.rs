//! A pseudo-terminal: the master is the user's side, the slave is the terminal of the program under test.

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

pub struct Pty {
    pub master: File,
    pub slave: File,
}

impl Pty {
    /// A terminal with unusual settings, so that restoring a default would be noticed.
    pub fn new() -> Self {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname_r(&master).unwrap();
        let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
        let mut odd = tcgetattr(&slave).unwrap();
        odd.local_flags.remove(LocalFlags::ECHOE);
        odd.input_flags.insert(InputFlags::IUTF8);
        odd.input_flags.remove(InputFlags::IXON);
        tcsetattr(&slave, SetArg::TCSANOW, &odd).unwrap();
        // SAFETY: `into_raw_fd` has just given up the ownership of this open descriptor.
        let master = File::from(unsafe { OwnedFd::from_raw_fd(master.into_raw_fd()) });
        Self { master, slave }
    }

    pub fn stdio(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    pub fn settings(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }
}

/// Returns whether keys reach the program unprocessed, and its output the screen.
pub fn is_raw(settings: &Termios) -> bool {
    let cooked = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN;
    !settings.local_flags.intersects(cooked)
        && !settings.input_flags.intersects(InputFlags::ICRNL | InputFlags::IXON)
        && !settings.output_flags.contains(OutputFlags::OPOST)
}
