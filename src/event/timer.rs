//! A timer that is a file descriptor (`timerfd(2)`), so that an event loop can wait for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::sys;

/// A timer of the monotonic clock. It is readable from its expiry until [`read`](Timer::read): register it
/// level-triggered for [`EventSet::IN`](super::EventSet::IN).
///
/// ```
/// use std::time::Duration;
/// use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps, Timer};
///
/// struct Deadline(Timer, bool);
///
/// impl MutEventSubscriber for Deadline {
///     fn init(&mut self, ops: &mut EventOps) {
///         ops.add(Events::new(&self.0, EventSet::IN)).expect("a new descriptor can be registered");
///     }
///
///     fn process(&mut self, _: Events, _: &mut EventOps) {
///         self.1 = matches!(self.0.read(), Ok(Some(_)));
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let timer = Timer::new()?;
/// timer.arm(Duration::from_millis(1))?;
/// let mut manager = EventManager::new()?;
/// let deadline = manager.add_subscriber(Deadline(timer, false));
/// manager.run()?;
/// assert!(manager.subscriber_mut(deadline)?.1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Timer(File);

impl Timer {
    /// Makes a timer that is not armed.
    ///
    /// # Errors
    ///
    /// The kernel's: too many open files, or no memory.
    pub fn new() -> io::Result<Self> {
        sys::timerfd().map(Timer)
    }

    /// Lets the timer expire once, `after` so long; at once if that is zero. Replaces what it was armed for.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn arm(&self, after: Duration) -> io::Result<()> {
        sys::set_timer(&self.0, after.max(SOON), Duration::ZERO)
    }

    /// Lets the timer expire again and again, every `period`, which is at least one nanosecond.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn arm_periodic(&self, period: Duration) -> io::Result<()> {
        sys::set_timer(&self.0, period.max(SOON), period.max(SOON))
    }

    /// Stops the timer, and takes back an expiry nobody has read yet.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn disarm(&self) -> io::Result<()> {
        sys::set_timer(&self.0, Duration::ZERO, Duration::ZERO)
    }

    /// How often the timer has expired since it was last armed or read; `None` if it has not. Does not wait.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn read(&self) -> io::Result<Option<u64>> {
        Ok(sys::read(&self.0)?.map(u64::from_ne_bytes))
    }
}

/// Zero would disarm.
const SOON: Duration = Duration::from_nanos(1);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
