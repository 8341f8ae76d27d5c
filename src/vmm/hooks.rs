//! What can live with a machine besides its devices: a subscriber that has a say in how the run ends.

use std::fmt;
use std::time::Instant;

use super::outcome::ExitReason;
use crate::event::{MutEventSubscriber, Signals};

/// A subscriber of the event loop that is asked when a signal comes, and when the guest has stopped.
pub trait Companion: MutEventSubscriber + Send + fmt::Debug {
    /// The signal `number` asks to stop. Returns whether that is taken care of; otherwise the run ends now.
    fn on_signal(&mut self, number: i32) -> bool;

    /// The guest has stopped because of `reason`: does what is left to do, until `deadline`, or a second from when `stop` is
    /// readable. If there is a `hurry`, what cannot be done soon is not done. Returns the reason that counts.
    fn finish(&mut self, reason: ExitReason, stop: &Signals, deadline: Option<Instant>, hurry: bool) -> ExitReason;
}
