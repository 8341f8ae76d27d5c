//! The event core: one thread that waits for many file descriptors, and calls whoever is interested.
//!
//! It knows nothing but the kernel's epoll, and comes in three layers; use the lowest that does what you need.
//!
//! - [`epoll`]: the system calls, one to one.
//! - [`poll`]: [`Poll`] waits, [`Registry`] registers from any thread, a [`Token`] says who is ready.
//! - [`EventManager`]: subscribers register descriptors and are called back. The rest of this page is about it.
//!
//! [`Timer`] and [`Signals`] turn time and signals into descriptors; a [`Callback`] makes subscribers of them.
//!
//! # A subscriber
//!
//! A subscriber owns its descriptors. In `init` it says what it wants to hear of, in `process` it is told; both get
//! an [`EventOps`] to change its mind with. Here is one that counts, and a program that runs a few of them:
//!
//! ```
//! use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, Result, SubscriberId, SubscriberOps};
//! use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd}; // Or anything else that is `AsRawFd`.
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
//!                 // Level-triggered: it would be told again and again until somebody reads.
//!                 let _ = self.event_fd.read();
//!             }
//!             // Errors and hang-ups come unasked. Who cannot mend them has to leave, or will hear of them for ever.
//!             other => {
//!                 eprintln!("Got {other:?} on the monitored event");
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
//! - A descriptor belongs to the subscriber that added it; no other can change or remove it. When its subscriber is
//!   removed, so is it. When it is closed, its number is free again, for whoever gets it next.
//! - An event belongs to the registration it was raised for. If that is removed or modified before the event's turn
//!   comes, the event is dropped, even if the descriptor's number is in use again.
//! - Notifications (a kick, a doorbell) are best watched edge-triggered and never read; streams of bytes
//!   level-triggered, with the interest lowered while there is no room for more; timers and signals level-triggered,
//!   and read.
//! - The manager belongs to one thread at a time. Others reach it through a `RemoteEndpoint` (feature
//!   `remote_endpoint`), or through descriptors that subscribers watch.
//! - A panic in a subscriber passes through [`run`](EventManager::run). The manager stays usable, and what was left
//!   of the turn is done by the next one.
//!
//! # Names
//!
//! The upper layer has the names and signatures of rust-vmm's `event-manager` 0.4.2, the lowest those of
//! `vmm-sys-util`: code written for them compiles against this module, unless it matches errors without a `_`. What differs
//! is behaviour, where theirs was at fault: see the rules.

pub mod epoll;
pub mod poll;

mod callback;
#[cfg(feature = "remote_endpoint")]
mod endpoint;
#[cfg(not(feature = "remote_endpoint"))]
#[path = "endpoint_off.rs"]
mod endpoint;
mod error;
mod events;
mod interests;
#[cfg(feature = "remote_endpoint")]
mod mailbox;
mod manager;
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
