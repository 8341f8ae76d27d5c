//! The [`RemoteEndpoint`]: other threads ask the loop to do something with its subscribers.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::interests::{Interests, MANAGER};
use super::mailbox::{Doorbell, Mailbox, SendError, answer};
use super::{Error, EventManager, EventSet, Events, MutEventSubscriber, Result, SubscriberOps, sys};

/// A request: a closure the loop runs on its thread.
type Request<S> = Box<dyn FnOnce(&mut dyn SubscriberOps<Subscriber = S>) + Send>;

/// A handle to an [`EventManager`] that runs on another thread; made by
/// [`remote_endpoint`](EventManager::remote_endpoint).
///
/// A request is a closure. The loop runs it on its own thread, with the manager's [`SubscriberOps`], after the
/// events of a turn: subscribers can so be added, changed and removed without a lock, and need not be [`Send`]
/// unless a request carries them. A request made while the loop dispatches is run by its next turn.
///
/// A request that panics lets the panic pass through the loop's `run`; its caller gets an error, and the requests
/// behind it stay for the next `run`. When the manager is dropped, all who wait get an error.
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
///         ops.remove(events).expect("the painter was told of it, so it is registered");
///     }
/// }
///
/// # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// let mut event_manager = EventManager::<Painter>::new()?;
/// let endpoint = event_manager.remote_endpoint();
///
/// // Move the manager to a thread of its own, and run the loop there.
/// let keep_running = Arc::new(AtomicBool::new(true));
/// let running = Arc::clone(&keep_running);
/// let thread_handle = thread::spawn(move || -> Result<()> {
///     while running.load(Ordering::Acquire) {
///         event_manager.run()?;
///     }
///     Ok(())
/// });
///
/// // The subscriber moves to the manager, on the other thread. We get the identifier to speak of it by.
/// let subscriber = Painter { strokes: 0 };
/// let id = endpoint
///     .call_blocking(move |sub_ops| -> Result<SubscriberId> { Ok(sub_ops.add_subscriber(subscriber)) })?;
///
/// // Later, register a descriptor in its name, without waiting for that.
/// let event_fd = EventFd::new(EFD_NONBLOCK)?;
/// let events = Events::new(&event_fd, EventSet::OUT);
/// endpoint.fire(move |sub_ops| {
///     sub_ops.event_ops(id).and_then(|mut ops| ops.add(events)).unwrap_or_else(|error| eprintln!("{error}"));
/// })?;
///
/// # while endpoint.call_blocking(move |sub_ops| sub_ops.subscriber_mut(id).map(|painter| painter.strokes))? == 0 {}
/// // Whatever is asked for is done between turns.
/// let painter = endpoint.call_blocking(move |sub_ops| sub_ops.remove_subscriber(id))?;
/// assert_eq!(painter.strokes, 1);
///
/// // End the loop: say so, then kick.
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
    /// Makes a handle for other threads to reach the subscribers with.
    pub fn remote_endpoint(&self) -> RemoteEndpoint<S> {
        RemoteEndpoint { shared: Arc::clone(&self.inbox.shared) }
    }
}

impl<S: MutEventSubscriber> RemoteEndpoint<S> {
    /// Has `f` run by the loop, and waits for its result, for as long as that takes: for ever on the loop's own thread between two
    /// runs, where the manager itself is at hand.
    ///
    /// # Errors
    ///
    /// Those of `f`; and [`WouldDeadlock`](Error::WouldDeadlock) on the loop's own thread while it runs,
    /// [`ChannelSend`](Error::ChannelSend) if the manager is gone, [`ChannelRecv`](Error::ChannelRecv) if it was
    /// dropped before it ran `f`, or if `f` panicked.
    pub fn call_blocking<F, O, E>(&self, f: F) -> result::Result<O, E>
    where
        F: FnOnce(&mut dyn SubscriberOps<Subscriber = S>) -> result::Result<O, E> + Send + 'static,
        O: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        if self.shared.looping_thread.load(Ordering::Relaxed) == this_thread() {
            return Err(Error::WouldDeadlock.into());
        }
        let (answer, answerer) = answer();
        self.send(Box::new(move |ops| answerer.give(f(ops))))?;
        answer.wait().unwrap_or(Err(Error::ChannelRecv.into()))
    }

    /// Has `f` run by the loop some time, and does not wait. May be called on the loop's thread too; a request that
    /// fires another, or itself again, has that run by the next turn.
    ///
    /// # Errors
    ///
    /// [`ChannelSend`](Error::ChannelSend) if the manager is gone.
    pub fn fire<F>(&self, f: F) -> Result<()>
    where
        F: FnOnce(&mut dyn SubscriberOps<Subscriber = S>) + Send + 'static,
    {
        self.send(Box::new(f))
    }

    /// Makes the loop's `run` return, now or the next time it would wait. Several kicks may count as one.
    ///
    /// # Errors
    ///
    /// [`EventFd`](Error::EventFd) with the kernel's reason; none is known. That the manager is gone is none.
    pub fn kick(&self) -> Result<()> {
        self.shared.mailbox.doorbell.ring().map_err(|error| Error::EventFd(error.into()))
    }

    fn send(&self, request: Request<S>) -> Result<()> {
        self.shared.mailbox.send(request).map_err(|error| match error {
            SendError::Closed => Error::ChannelSend,
            SendError::Doorbell(error) => Error::EventFd(error.into()),
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

/// What the manager and its endpoints have in common.
struct Shared<S> {
    mailbox: Mailbox<Request<S>, EventFd>,
    /// The thread that is inside the manager now, as [`this_thread`] has it, or 0.
    looping_thread: AtomicUsize,
}

/// The manager's end. Dropping it answers all who wait.
pub(super) struct Inbox<S> {
    shared: Arc<Shared<S>>,
    /// The doorbell has rung, and nobody has collected yet.
    rung: bool,
    /// Requests on their way to the subscribers.
    batch: VecDeque<Request<S>>,
}

impl<S> Inbox<S> {
    /// Makes a mailbox, and registers its doorbell.
    pub fn new(interests: &mut Interests) -> Result<Self> {
        let doorbell = sys::eventfd().map_err(|error| Error::EventFd(error.into()))?;
        interests.add(MANAGER, Events::new(&doorbell, EventSet::IN | EventSet::EDGE_TRIGGERED))?;
        let shared = Shared { mailbox: Mailbox::new(EventFd(doorbell)), looping_thread: AtomicUsize::new(0) };
        Ok(Inbox { shared: Arc::new(shared), rung: false, batch: VecDeque::new() })
    }

    /// Notes that the doorbell has rung.
    pub fn rang(&mut self) {
        self.rung = true;
    }

    /// The next request of this turn. What comes in meanwhile has to wait for the next one.
    pub fn next(&mut self) -> Option<Request<S>> {
        if std::mem::take(&mut self.rung) {
            self.shared.mailbox.collect(&mut self.batch);
        }
        self.batch.pop_front()
    }

    /// Whether a panic kept the last turn from running all its requests.
    pub fn is_pending(&self) -> bool {
        self.rung || !self.batch.is_empty()
    }

    /// Notes that this thread is inside the manager, and returns what to [`leave`](Inbox::leave) with.
    pub fn enter(&self) -> usize {
        let before = self.shared.looping_thread.load(Ordering::Relaxed);
        // No other thread stores here meanwhile: entering takes the manager, which only one can have.
        self.shared.looping_thread.store(this_thread(), Ordering::Relaxed);
        before
    }

    /// Notes who was inside before.
    pub fn leave(&self, before: usize) {
        self.shared.looping_thread.store(before, Ordering::Relaxed);
    }
}

impl<S> Drop for Inbox<S> {
    fn drop(&mut self) {
        drop(self.shared.mailbox.close());
    }
}

/// The doorbell. It is watched edge-triggered, so that each write wakes the loop and nobody has to read.
#[derive(Debug)]
struct EventFd(File);

impl Doorbell for EventFd {
    fn ring(&self) -> io::Result<()> {
        match (&self.0).write(&1u64.to_ne_bytes()) {
            // The counter is full: it has rung, 2⁶⁴ times.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(drop),
        }
    }
}

/// A number no other living thread has, and never 0: the address of something only this thread has.
fn this_thread() -> usize {
    thread_local!(static MARK: Cell<u8> = const { Cell::new(0) });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}
