//! A subscriber that is one descriptor and one closure.

use std::io;
use std::os::fd::AsRawFd;

use super::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};

/// A descriptor that something can be read from: how often a [`Timer`] expired, which of the [`Signals`] came.
pub trait Source: AsRawFd {
    /// What is read.
    type Item;

    /// Reads the next item, or `None` if there is none now. Must not wait. The end of a file and a hang-up must come as errors: after a
    /// `None` the loop asks again for as long as the descriptor is ready.
    ///
    /// # Errors
    ///
    /// The source's own.
    fn read(&self) -> io::Result<Option<Self::Item>>;
}

impl Source for Timer {
    type Item = u64;

    fn read(&self) -> io::Result<Option<u64>> {
        Timer::read(self)
    }
}

impl Source for Signals {
    type Item = i32;

    fn read(&self) -> io::Result<Option<i32>> {
        Signals::read(self)
    }
}

/// A subscriber that reads a [`Source`], one item a turn, and passes it to a closure.
///
/// The closure also gets the errors: of reading, and first of all that the source could not be registered.
///
/// ```
/// use std::time::Duration;
/// use kickvm::event::{Callback, EventManager, MutEventSubscriber, Signals, SubscriberOps, Timer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let signals = Signals::new(&[libc::SIGTERM])?;
/// let timer = Timer::new()?;
/// timer.arm(Duration::from_millis(1))?;
///
/// let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new()?;
/// manager.add_subscriber(Box::new(Callback::new(signals, |signal, _| println!("Signal {signal:?}"))));
/// manager.add_subscriber(Box::new(Callback::new(timer, |expirations, _| println!("Expired {expirations:?} times"))));
/// assert_eq!(manager.run(), Ok(1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Callback<T, F> {
    source: T,
    call: F,
}

impl<T: Source, F: FnMut(io::Result<T::Item>, &mut EventOps)> Callback<T, F> {
    /// Pairs a source with the closure that gets what is read from it.
    pub fn new(source: T, call: F) -> Self {
        Callback { source, call }
    }
}

impl<T: Source, F: FnMut(io::Result<T::Item>, &mut EventOps)> MutEventSubscriber for Callback<T, F> {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.source, EventSet::IN)) {
            (self.call)(Err(error.into()), ops);
        }
    }

    fn process(&mut self, _: Events, ops: &mut EventOps) {
        if let Some(item) = self.source.read().transpose() {
            (self.call)(item, ops);
        }
    }
}
