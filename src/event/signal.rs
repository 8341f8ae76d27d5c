//! Signals that are read from a file descriptor (`signalfd(2)`), so that an event loop can wait for them and
//! nothing ever runs in a signal handler.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::sys;

/// Receives signals. Register it level-triggered for [`EventSet::IN`](super::EventSet::IN).
///
/// The signals are *blocked* for the calling thread, and for the threads it starts from then on; a thread that runs
/// already would still be killed by them. So make this before any other thread. They stay blocked after this is
/// dropped.
///
/// ```
/// use kickvm::event::Signals;
///
/// # fn main() -> std::io::Result<()> {
/// let signals = Signals::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT])?;
/// assert_eq!(signals.read()?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Blocks `signals` for this thread, and receives them instead.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a number that is no signal, and the kernel's, when it makes no more descriptors.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        sys::signalfd(signals).map(Signals)
    }

    /// The number of the next pending signal, which is then no longer pending; `None` if there is none. Does not
    /// wait. Several of one kind may come as one.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn read(&self) -> io::Result<Option<i32>> {
        let info = sys::read::<{ size_of::<libc::signalfd_siginfo>() }>(&self.0)?;
        // The number is the record's first field, `ssi_signo`.
        Ok(info.map(|[a, b, c, d, ..]| i32::from_ne_bytes([a, b, c, d])))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
