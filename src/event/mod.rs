//! The event core: one thread that waits for many file descriptors, and calls whoever is interested.
//!
//! It knows nothing but the kernel's epoll, and comes in three layers; use the lowest that does what you need.
//!
//! - [`epoll`]: the system calls, one to one.
//! - [`poll`]: [`Poll`] waits, [`Registry`] registers from any thread, a [`Token`] says who is ready.
//! - [`EventManager`]: subscribers register descriptors and are called back.
//!
//! [`Timer`] and [`Signals`] turn time and signals into descriptors.
//!
//! The names and signatures of the upper layer are those of rust-vmm's `event-manager` 0.4.2, and of the lowest
//! those of `vmm-sys-util`.

pub mod epoll;
pub mod poll;

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
