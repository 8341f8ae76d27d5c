//! The [`RemoteEndpoint`]: other threads send requests to the loop.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use super::channel::{Channel, SendError, Waker};
use super::registrations::{MANAGER, Registrations};
use super::{Error, EventManager, EventSet, Events, MutEventSubscriber, Result, SubscriberOps, sys};

/// A closure that the loop runs on its own thread.
type Request<S> = Box<dyn FnOnce(&mut dyn SubscriberOps<Subscriber = S>) + Send>;

/// A handle to an [`EventManager`] that runs on another thread, created by
/// [`remote_endpoint`](EventManager::remote_endpoint).
///
/// A request is a closure. The loop runs it on its own thread, with the manager as [`SubscriberOps`], after the events
/// of a `run`. Requests therefore add, change and remove subscribers without a lock, and subscribers need not be
/// [`Send`] unless a request carries them. A request that is sent while the loop dispatches is run by the next `run`.
///
/// If a request panics, the panic propagates through the loop's `run`. Its caller gets an error, and the requests after
/// it remain for the next `run`. When the manager is dropped, all blocked callers get an error.
///
/// ```
/// use kickvm::event::{
///     EventManager, EventOps, EventSet, Events, MutEventSubscriber, Result, SubscriberId, SubscriberOps,
/// };
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::thread;
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// struct Painter {
///     strokes: usize,
/// }
///
/// impl MutEventSubscriber for Painter {
///     fn init(&mut self, _ops: &mut EventOps) {}
///
///     fn process(&mut self, events: Events, ops: &mut EventOps) {
///         self.strokes += 1;
///         ops.remove(events).expect("a descriptor with an event is registered");
///     }
/// }
///
/// # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// let mut event_manager = EventManager::<Painter>::new()?;
/// let endpoint = event_manager.remote_endpoint();
///
/// // Move the manager to a new thread and run the loop there.
/// let keep_running = Arc::new(AtomicBool::new(true));
/// let running = Arc::clone(&keep_running);
/// let thread_handle = thread::spawn(move || -> Result<()> {
///     while running.load(Ordering::Acquire) {
///         event_manager.run()?;
///     }
///     Ok(())
/// });
///
/// // The subscriber moves to the manager on the other thread. The identifier is the result.
/// let subscriber = Painter { strokes: 0 };
/// let id = endpoint
///     .call_blocking(move |sub_ops| -> Result<SubscriberId> { Ok(sub_ops.add_subscriber(subscriber)) })?;
///
/// // Register a descriptor for that subscriber, without waiting for the result.
/// let event_fd = EventFd::new(EFD_NONBLOCK)?;
/// let events = Events::new(&event_fd, EventSet::OUT);
/// endpoint.fire(move |sub_ops| {
///     sub_ops.event_ops(id).and_then(|mut ops| ops.add(events)).unwrap_or_else(|error| eprintln!("{error}"));
/// })?;
///
/// # while endpoint.call_blocking(move |sub_ops| sub_ops.subscriber_mut(id).map(|painter| painter.strokes))? == 0 {}
/// // Remove the subscriber and take it back.
/// let painter = endpoint.call_blocking(move |sub_ops| sub_ops.remove_subscriber(id))?;
/// assert_eq!(painter.strokes, 1);
///
/// // End the loop: clear the flag first, then kick.
/// keep_running.store(false, Ordering::Release);
/// endpoint.kick()?;
/// thread_handle.join().expect("the loop does not panic")?;
/// # Ok(())
/// # }
/// ```
pub struct RemoteEndpoint<S> {
    shared: Arc<Shared<S>>,
}

impl<S: MutEventSubscriber> EventManager<S> {
    /// Creates a handle that lets other threads send requests to this manager.
    pub fn remote_endpoint(&self) -> RemoteEndpoint<S> {
        RemoteEndpoint { shared: Arc::clone(&self.requests.shared) }
    }
}

impl<S: MutEventSubscriber> RemoteEndpoint<S> {
    /// Sends `f` to the loop, waits until the loop has run it, and returns its result.
    ///
    /// The wait has no time limit. On the loop's own thread between two runs it would never end; use the manager
    /// itself there.
    ///
    /// # Errors
    ///
    /// Returns the error of `f`. Also returns [`WouldDeadlock`](Error::WouldDeadlock) on the loop's own thread while it
    /// runs, [`ChannelSend`](Error::ChannelSend) if the manager was dropped, and [`ChannelRecv`](Error::ChannelRecv) if
    /// it was dropped before it ran `f`, or if `f` panicked.
    pub fn call_blocking<F, O, E>(&self, f: F) -> result::Result<O, E>
    where
        F: FnOnce(&mut dyn SubscriberOps<Subscriber = S>) -> result::Result<O, E> + Send + 'static,
        O: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        if self.shared.looping_thread.load(Ordering::Relaxed) == this_thread() {
            return Err(Error::WouldDeadlock.into());
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(Box::new(move |ops| drop(sender.send(f(ops)))))?; // the receiver is below, so the reply arrives
        receiver.recv().unwrap_or(Err(Error::ChannelRecv.into()))
    }

    /// Sends `f` to the loop and returns without waiting. It may be called on the loop's own thread. A request that
    /// fires another request, or itself again, is followed by that request in the next `run`.
    ///
    /// # Errors
    ///
    /// Returns [`ChannelSend`](Error::ChannelSend) if the manager was dropped.
    pub fn fire<F>(&self, f: F) -> Result<()>
    where
        F: FnOnce(&mut dyn SubscriberOps<Subscriber = S>) + Send + 'static,
    {
        self.send(Box::new(f))
    }

    /// Makes the loop's `run` return, now or the next time that it would wait. Several kicks may count as one. Returns
    /// `Ok` if the manager was dropped.
    ///
    /// # Errors
    ///
    /// Returns [`EventFd`](Error::EventFd) with the kernel's error. It is not expected in practice.
    pub fn kick(&self) -> Result<()> {
        self.shared.channel.waker.wake().map_err(|error| Error::EventFd(error.into()))
    }

    fn send(&self, request: Request<S>) -> Result<()> {
        self.shared.channel.send(request).map_err(|error| match error {
            SendError::Closed => Error::ChannelSend,
            SendError::Wake(error) => Error::EventFd(error.into()),
        })
    }
}

impl<S> Clone for RemoteEndpoint<S> {
    fn clone(&self) -> Self {
        RemoteEndpoint { shared: Arc::clone(&self.shared) }
    }
}

impl<S> fmt::Debug for RemoteEndpoint<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteEndpoint").finish_non_exhaustive()
    }
}

/// The state that the manager shares with its endpoints.
struct Shared<S> {
    channel: Channel<Request<S>, EventFdWaker>,
    /// The thread that runs the manager now, as returned by [`this_thread`], or 0.
    looping_thread: AtomicUsize,
}

/// The manager's end of the channel. Dropping it ends the wait of all blocked callers.
pub(super) struct RequestQueue<S> {
    shared: Arc<Shared<S>>,
    /// The loop was woken and has not received the messages yet.
    woken: bool,
    /// Received requests that have not run yet.
    batch: VecDeque<Request<S>>,
}

impl<S> RequestQueue<S> {
    /// Creates the channel and registers its eventfd.
    pub fn new(registrations: &mut Registrations) -> Result<Self> {
        let eventfd = sys::eventfd().map_err(|error| Error::EventFd(error.into()))?;
        registrations.add(MANAGER, Events::new(&eventfd, EventSet::IN | EventSet::EDGE_TRIGGERED))?;
        let shared = Shared { channel: Channel::new(EventFdWaker(eventfd)), looping_thread: AtomicUsize::new(0) };
        Ok(RequestQueue { shared: Arc::new(shared), woken: false, batch: VecDeque::new() })
    }

    /// Records an event of the eventfd.
    pub fn mark_woken(&mut self) {
        self.woken = true;
    }

    /// The next request of this `run`. Requests that arrive in the meantime are left to the next `run`.
    pub fn pop(&mut self) -> Option<Request<S>> {
        if std::mem::take(&mut self.woken) {
            self.shared.channel.receive_all(&mut self.batch);
        }
        self.batch.pop_front()
    }

    /// Whether there are requests to run now. Before a wait this is the case only after a panic.
    pub fn has_pending(&self) -> bool {
        self.woken || !self.batch.is_empty()
    }

    /// Marks this thread as the one that runs the manager. Returns the previous value for
    /// [`leave_dispatch`](Self::leave_dispatch).
    pub fn enter_dispatch(&self) -> usize {
        let previous = self.shared.looping_thread.load(Ordering::Relaxed);
        // No other thread stores a value in between: dispatching requires exclusive access to the manager.
        self.shared.looping_thread.store(this_thread(), Ordering::Relaxed);
        previous
    }

    pub fn leave_dispatch(&self, previous: usize) {
        self.shared.looping_thread.store(previous, Ordering::Relaxed);
    }
}

impl<S> Drop for RequestQueue<S> {
    fn drop(&mut self) {
        drop(self.shared.channel.close());
    }
}

/// Wakes the loop through an eventfd. It is watched edge-triggered, so that each write is an event and no read is
/// needed.
#[derive(Debug)]
struct EventFdWaker(File);

impl Waker for EventFdWaker {
    fn wake(&self) -> io::Result<()> {
        match (&self.0).write(&1u64.to_ne_bytes()) {
            // The counter is at its maximum. The write that brought it there has woken the loop.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(drop),
        }
    }
}

/// A number that identifies this thread among the living ones, and is never 0: the address of a thread-local variable.
fn this_thread() -> usize {
    thread_local!(static MARK: Cell<u8> = const { Cell::new(0) });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}
