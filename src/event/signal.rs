//! Signals that are read from a file descriptor (`signalfd(2)`), so that an event loop can wait for them and no code
//! runs in a signal handler.

use std::fs::File;
use std::io;

use super::sys;

/// Receives signals. Register it level-triggered for [`EventSet::IN`](super::EventSet::IN).
///
/// The signals are *blocked* for the calling thread and for the threads that it starts later. They would still kill a
/// thread that is already running, so create this object before any other thread. They stay blocked after it is
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
    /// Blocks `signals` for this thread and receives them instead.
    ///
    /// # Errors
    ///
    /// Returns `InvalidInput` for an invalid signal number, and the kernel's error if there are too many open files.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        sys::signalfd(signals).map(Signals)
    }

    /// Reads and clears the next pending signal, without blocking. Returns its number, or `None` if no signal is
    /// pending. Several standard signals of one number may be read as one.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error. It is not expected in practice.
    pub fn read(&self) -> io::Result<Option<i32>> {
        let info = sys::read_record::<{ size_of::<libc::signalfd_siginfo>() }>(&self.0)?;
        // The number is the first field of the record, `ssi_signo`.
        Ok(info.map(|[a, b, c, d, ..]| i32::from_ne_bytes([a, b, c, d])))
    }
}

sys::impl_as_fd!(Signals, 0);
