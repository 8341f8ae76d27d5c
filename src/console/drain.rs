//! How long a run that has ended waits for the readers of its output.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::KernelLog;

/// How long a reader may take nothing before the rest of the output is given up.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The least of [`STALL_TIMEOUT`] that is left when the vCPUs took long to stop.
const MIN_STALL_TIMEOUT: Duration = Duration::from_millis(200);
/// How long the last output of a run that the user, a signal or a timeout ended is examined.
const URGENT_EXAMINE_TIME: Duration = Duration::from_millis(100);
/// The time from the kick to the end of the output, which leaves time for the reports and messages.
const TEARDOWN_TIME: Duration = Duration::from_millis(1500);

/// The limits that all output streams of one run share.
///
/// A run that the guest ended waits as long as its readers make progress. A run that the user, a signal or a timeout
/// ended waits for a second in all. A signal turns the first into the second.
#[derive(Debug)]
pub struct Drain<'a> {
    /// Readable when a signal requests the end.
    stop: BorrowedFd<'a>,
    stall: Duration,
    give_up_at: Instant,
    deadline: Option<Instant>,
    urgent: bool,
    /// Remarks for the outcome.
    pub notes: Vec<String>,
    /// Whether the last line of an output has no end.
    pub unterminated: bool,
    /// The log of the guest's kernel, if the guest has sent it.
    pub kernel_log: Option<KernelLog>,
}

impl<'a> Drain<'a> {
    /// Limits for a run that was kicked at `kicked`. `urgent` means that not the guest ended it. `stop` is readable
    /// when a signal requests the end. At `deadline` readers that make progress are given up, too.
    pub fn new(kicked: Instant, urgent: bool, stop: BorrowedFd<'a>, deadline: Option<Instant>) -> Self {
        let stall = TEARDOWN_TIME.saturating_sub(kicked.elapsed()).clamp(MIN_STALL_TIMEOUT, STALL_TIMEOUT);
        let give_up_at = Instant::now() + stall;
        let deadline = deadline.map(|deadline| deadline.max(give_up_at));
        Self { stop, stall, give_up_at, deadline, urgent, notes: Vec::new(), unterminated: false, kernel_log: None }
    }

    /// Whether the run was ended by the user, a signal or a timeout. Then output that is lost is not an error.
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// The time until the rest of the output is given up.
    pub(super) fn time_left(&self) -> Duration {
        self.give_up_at.saturating_duration_since(Instant::now())
    }

    /// A reader has taken something.
    pub(super) fn on_progress(&mut self) {
        if !self.urgent {
            let extended = Instant::now() + self.stall;
            self.give_up_at = self.deadline.map_or(extended, |deadline| deadline.min(extended));
        }
    }

    /// Waits until `output` takes bytes or reports an error, or a signal interrupts the wait or requests the end.
    ///
    /// # Errors
    ///
    /// `TimedOut` if no time is left.
    pub(super) fn wait_for_room(&mut self, output: BorrowedFd<'_>) -> io::Result<()> {
        let left = self.time_left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut fds = vec![PollFd::new(output, PollFlags::POLLOUT)];
        if !self.urgent {
            fds.push(PollFd::new(self.stop, PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds.get(1).is_some_and(|stop| stop.any() == Some(true)) {
            self.urgent = true;
            self.give_up_at = self.give_up_at.min(Instant::now() + self.stall);
        }
        Ok(())
    }

    /// How long the monitor may examine the last output: as long as it takes, unless the end is urgent.
    pub(super) fn examine_time(&self) -> Duration {
        if self.urgent { URGENT_EXAMINE_TIME } else { Duration::MAX }
    }
}
