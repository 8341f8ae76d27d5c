//! A timer that is a file descriptor (`timerfd(2)`), so that an event loop can wait for it.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::sys;

/// A timer on the monotonic clock. It is readable from its expiration until [`read`](Timer::read): register it
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
    /// Creates a timer that is not armed.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: too many open files, or no memory.
    pub fn new() -> io::Result<Self> {
        sys::timerfd().map(Timer)
    }

    /// Arms the timer to expire once after `delay`, at once if `delay` is zero. Replaces an earlier setting.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error. It is not expected in practice.
    pub fn arm(&self, delay: Duration) -> io::Result<()> {
        sys::set_timer(&self.0, delay.max(MIN_DELAY), Duration::ZERO)
    }

    /// Arms the timer to expire after every `period`, of at least one nanosecond.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error. It is not expected in practice.
    pub fn arm_periodic(&self, period: Duration) -> io::Result<()> {
        sys::set_timer(&self.0, period.max(MIN_DELAY), period.max(MIN_DELAY))
    }

    /// Stops the timer and discards an expiration that has not been read.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error. It is not expected in practice.
    pub fn disarm(&self) -> io::Result<()> {
        sys::set_timer(&self.0, Duration::ZERO, Duration::ZERO)
    }

    /// Reads the number of expirations since the timer was last armed or read, without blocking. Returns `None` if it
    /// has not expired.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error. It is not expected in practice.
    pub fn read(&self) -> io::Result<Option<u64>> {
        Ok(sys::read_record(&self.0)?.map(u64::from_ne_bytes))
    }
}

/// A delay of zero would disarm the timer.
const MIN_DELAY: Duration = Duration::from_nanos(1);

sys::impl_as_fd!(Timer, 0);
