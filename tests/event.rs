//! The guarantees of the event floor, one module for each.

#[path = "event/common.rs"]
mod common;

#[path = "event/capacity.rs"]
mod capacity;
#[path = "event/close.rs"]
mod close;
#[path = "event/close_on_exec.rs"]
mod close_on_exec;
#[path = "event/cost.rs"]
mod cost;
#[cfg(feature = "remote_endpoint")]
#[path = "event/endpoint.rs"]
mod endpoint;
#[path = "event/epoll.rs"]
mod epoll;
#[path = "event/hang_up.rs"]
mod hang_up;
#[path = "event/many.rs"]
mod many;
#[path = "event/panics.rs"]
mod panics;
#[path = "event/pending.rs"]
mod pending;
#[path = "event/registering.rs"]
mod registering;
#[path = "event/registry.rs"]
mod registry;
#[path = "event/signals.rs"]
mod signals;
#[path = "event/subscribers.rs"]
mod subscribers;
#[path = "event/timers.rs"]
mod timers;
#[path = "event/triggers.rs"]
mod triggers;
#[path = "event/waiting.rs"]
mod waiting;
