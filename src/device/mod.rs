//! The devices that the guest can access, one per file, each on a [`Bus`].
//!
//! A device locks itself; the bus does not. A write that ends the machine (power-off, reset, exit status, panic)
//! returns a [`GuestRequest`], so the vCPU that made it stops at this instruction.

pub mod acpi_pm;
mod bus;
pub mod cmos;
mod console_port;
pub mod exit_port;
pub mod i8042;
pub mod pvpanic;
pub mod serial;
pub mod virtio;

pub use bus::{Bus, BusError};
pub use console_port::{ConsolePort, FLUSH_DELAY, INPUT_LIMIT, Pending};

use std::fmt;
use std::ops::ControlFlow;

/// What a guest can request of its machine by an access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Turn the machine off (ACPI S5).
    PowerOff,
    /// Restart the machine (i8042 or the ACPI reset register).
    Reset,
    /// End with this status, 0–119 (the exit port).
    Exit(u8),
    /// The guest kernel reports that it panicked.
    Panic,
}

impl GuestRequest {
    /// Whether the machine was turned off or restarted, as at any end of work.
    pub fn is_ordinary_end(self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset)
    }
}

impl fmt::Display for GuestRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest requested a reset"),
            Self::Exit(status) => write!(f, "the guest ended with status {status}"),
            Self::Panic => f.write_str("the guest kernel panicked"),
        }
    }
}

/// `Continue`, or `Break` with the guest's request.
pub type Response = ControlFlow<GuestRequest>;

/// A device on a [`Bus`]. Accesses come from any vCPU thread, so a device guards its own state.
pub trait Device: Send + Sync {
    /// Reads `data` at `offset` bytes from the start of the device's range. All bits of `data` are 1 before the call;
    /// bytes that the device does not write are read as on an open bus.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` bytes from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]) -> Response;
}
