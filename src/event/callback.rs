//! [`Callback`]: a subscriber made of one descriptor and one closure.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};

/// A descriptor that items can be read from: the expirations of a [`Timer`], the numbers of [`Signals`].
pub trait Source: AsRawFd {
    /// The type of an item.
    type Item;

    /// Reads the next item without blocking. Returns `None` if there is no item now.
    ///
    /// # Errors
    ///
    /// Returns the source's error. The end of a file and a hang-up must be errors: after `None` the loop reads again
    /// for as long as the descriptor is ready.
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

impl<T: Source> Source for Arc<T> {
    type Item = T::Item;

    fn read(&self) -> io::Result<Option<T::Item>> {
        T::read(self)
    }
}

/// A subscriber that reads one item of a [`Source`] for each event and passes it to a closure.
///
/// The closure also gets the errors of reading, and the error of the registration if the source cannot be watched.
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
/// manager.add_subscriber(Box::new(Callback::new(signals, |signal, _| println!("signal: {signal:?}"))));
/// manager.add_subscriber(Box::new(Callback::new(timer, |expirations, _| println!("expirations: {expirations:?}"))));
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
    /// Combines a source with the closure that handles its items.
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
