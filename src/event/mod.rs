//! The event floor: one thread that waits for many file descriptors and calls the subscribers that registered them.
//!
//! It is the event loop of the VMM, and can be used without KVM: it is what remains of the crate without default
//! features. It is the lowest floor and imports nothing of this crate, only std, `libc` and `bitflags`. All its
//! `unsafe` code is in `epoll.rs` and `sys.rs`.
//!
//! There are three layers. Use the lowest one that is sufficient.
//!
//! - [`epoll`]: the system calls, one to one.
//! - [`poll`]: [`Poll`] waits, [`Registry`] registers from any thread, a [`Token`] identifies what is ready.
//! - [`EventManager`]: subscribers register descriptors and are called back. The rest of this page describes it.
//!
//! [`Timer`] and [`Signals`] turn time and signals into descriptors. A [`Callback`] makes a subscriber of a descriptor
//! and a closure.
//!
//! # A subscriber
//!
//! A subscriber owns its descriptors. It registers them in `init` and handles their events in `process`. Both get an
//! [`EventOps`], which changes the registrations of that subscriber. This subscriber counts its events:
//!
//! ```
//! use kickvm::event::{
//!     EventManager, EventOps, EventSet, Events, MutEventSubscriber, Result, SubscriberId, SubscriberOps,
//! };
//! use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd}; // Any type that implements `AsRawFd` can be used.
//!
//! pub struct CounterSubscriber {
//!     event_fd: EventFd,
//!     counter: u64,
//! }
//!
//! impl CounterSubscriber {
//!     pub fn new() -> std::io::Result<Self> {
//!         Ok(Self { event_fd: EventFd::new(EFD_NONBLOCK)?, counter: 0 })
//!     }
//! }
//!
//! impl MutEventSubscriber for CounterSubscriber {
//!     fn init(&mut self, ops: &mut EventOps) {
//!         ops.add(Events::new(&self.event_fd, EventSet::IN)).expect("a new eventfd can be registered");
//!     }
//!
//!     fn process(&mut self, events: Events, ops: &mut EventOps) {
//!         match events.event_set() {
//!             EventSet::IN => {
//!                 self.counter += 1;
//!                 // Level-triggered: without the read, every run would report the event again.
//!                 let _ = self.event_fd.read();
//!             }
//!             // Errors and hang-ups are reported without being registered, and by every run until the descriptor is
//!             // removed.
//!             other => {
//!                 eprintln!("unexpected event {other:?}");
//!                 let _ = ops.remove(events);
//!             }
//!         }
//!     }
//! }
//!
//! struct App {
//!     event_manager: EventManager<CounterSubscriber>,
//!     subscribers_id: Vec<SubscriberId>,
//! }
//!
//! impl App {
//!     fn new() -> Result<Self> {
//!         Ok(Self { event_manager: EventManager::new()?, subscribers_id: vec![] })
//!     }
//!
//!     fn add_subscriber(&mut self) -> std::io::Result<()> {
//!         let counter_subscriber = CounterSubscriber::new()?;
//!         self.subscribers_id.push(self.event_manager.add_subscriber(counter_subscriber));
//!         Ok(())
//!     }
//!
//!     fn run(&mut self) -> Result<usize> {
//!         self.event_manager.run_with_timeout(100)
//!     }
//! }
//!
//! # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//! let mut app = App::new()?;
//! for _ in 0..3 {
//!     app.add_subscriber()?;
//! }
//! let second = app.subscribers_id[1];
//! app.event_manager.subscriber_mut(second)?.event_fd.write(1)?;
//! assert_eq!(app.run()?, 1);
//! assert_eq!(app.event_manager.remove_subscriber(second)?.counter, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! - A descriptor belongs to the subscriber that added it. No other subscriber can modify or remove it. It is removed
//!   together with its subscriber. When it is closed, its number can be registered again by any subscriber.
//! - An event belongs to the registration that it was raised for. If that registration is removed or modified before
//!   the event is dispatched, the event is dropped, even if the descriptor number is in use again.
//! - Watch notifications (a kick, a doorbell) edge-triggered and do not read them. Watch byte streams level-triggered
//!   and drop the interest while there is no room for more. Watch timers and signals level-triggered and read them.
//! - The manager belongs to one thread at a time. Other threads reach it through a `RemoteEndpoint` (feature
//!   `remote_endpoint`), or through descriptors that subscribers watch.
//! - A panic in a subscriber propagates through [`run`](EventManager::run). The manager stays usable, and the next
//!   `run` dispatches the remaining events.
//!
//! # Seeds
//!
//! The names and signatures are those of rust-vmm's `event-manager` 0.4.2, of `vmm-sys-util`'s epoll wrapper and of a
//! subset of mio's API. Code written for `event-manager` compiles against this module, unless it matches errors without
//! a `_`.
//!
//! | seed | names | files |
//! |---|---|---|
//! | the event-manager README | `EventManager`, `SubscriberOps`, subscriber traits | `manager.rs`, `subscriber.rs` |
//! | its design | `Events`, `EventOps` | `events.rs`, `registrations.rs` |
//! | its design | `RemoteEndpoint` | `endpoint.rs`, `channel.rs` |
//! | the epoll wrapper | `Epoll`, `EpollEvent`, `EventSet`, `ControlOperation` | `epoll.rs` |
//! | Poll, Registry and Token | `Poll`, `Registry`, `Token` | `poll.rs` |
//!
//! These behaviours differ:
//!
//! - **The event-manager README.** `run` counts only the events that it delivered; before, also those that it
//!   discarded. A panic in `init` or `process` loses no event and leaves no registration behind. A capacity of 0, with
//!   which every run would fail, is rejected. The example reads its eventfd, because a level-triggered event is
//!   reported until it is read. `READ_HANG_UP` must be registered; only `ERROR` and `HANG_UP` are always reported. The
//!   wrappers implement `MutEventSubscriber` one by one: a blanket implementation would exclude
//!   `Box<dyn MutEventSubscriber>`.
//! - **Its design, events.** The identity is the registration, not the descriptor number: the kernel reuses numbers, so
//!   that events reached the wrong subscriber and closed numbers stayed blocked. Only the owner modifies or removes a
//!   descriptor. `modify` and `remove` drop pending events. One table indexed by descriptor replaces two hash maps, so
//!   that dispatching does not hash. The table also holds the user data: the epoll data word holds the generation.
//! - **Its design, endpoint.** A blocking call on the loop's own thread is an error instead of a deadlock. A request
//!   that sends itself again runs once in each `run`, and a panic of a request does not block those after it. The
//!   eventfd is
//!   close-on-exec.
//! - **The epoll wrapper.** Event bits without a name are preserved instead of causing a panic. [`Epoll::fill`] waits
//!   into memory that is not initialised, so that an unused capacity needs no physical memory.
//! - **Poll, Registry and Token.** A cloned `Registry` has its own epoll descriptor and needs no `Arc`. Timeouts are
//!   rounded up, so that no caller wakes early, and an interruption by a signal handler is not an error.

pub mod epoll;
pub mod poll;

mod callback;
#[cfg(feature = "remote_endpoint")]
mod channel;
#[cfg(feature = "remote_endpoint")]
mod endpoint;
#[cfg(not(feature = "remote_endpoint"))]
#[path = "endpoint_stub.rs"]
mod endpoint;
mod error;
mod events;
mod manager;
mod registrations;
mod signal;
mod subscriber;
mod subscribers;
#[cfg(feature = "remote_endpoint")]
mod sync;
mod sys;
mod timer;

pub use callback::{Callback, Source};
#[cfg(feature = "remote_endpoint")]
pub use endpoint::RemoteEndpoint;
pub use epoll::{ControlOperation, Epoll, EpollEvent, EventSet, MAX_READY_EVENTS_CAPACITY};
pub use error::{Errno, Error, Result};
pub use events::{EventOps, Events};
pub use manager::{EventManager, SubscriberOps};
pub use poll::{Poll, Registry, Token};
pub use signal::Signals;
pub use subscriber::{EventSubscriber, MutEventSubscriber};
pub use subscribers::SubscriberId;
pub use timer::Timer;
