//! What the guest can access: a file or folder for each device, and the [`Bus`] that maps addresses to devices.
//!
//! vCPU threads share the bus without a lock; each [`Device`] locks its own state. A write that ends the machine
//! (power-off, reset, exit status, panic) returns a [`GuestRequest`], so the vCPU executes no further instruction.
//!
//! This floor may import `event`, `sys` and `memory`.
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//!
//! use kickvm::device::{Bus, Device, GuestRequest, Response};
//!
//! /// Reads as its offset; a write to it powers the machine off.
//! struct Example;
//!
//! impl Device for Example {
//!     fn read(&self, offset: u64, data: &mut [u8]) {
//!         data[0] = offset as u8;
//!     }
//!
//!     fn write(&self, _offset: u64, _data: &[u8]) -> Response {
//!         ControlFlow::Break(GuestRequest::PowerOff)
//!     }
//! }
//!
//! let mut bus = Bus::default();
//! bus.insert(0x300, 4, Arc::new(Example))?;
//! let mut data = [0; 2];
//! bus.read(0x302, &mut data);
//! assert_eq!(data, [2, 0xff]);
//! assert_eq!(bus.write(0x300, &[0]), ControlFlow::Break(GuestRequest::PowerOff));
//! # Ok::<(), kickvm::device::BusError>(())
//! ```

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

/// A request of the guest, made by a write to a device, that ends the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Power off (ACPI S5).
    PowerOff,
    /// Restart (i8042 or the ACPI reset register).
    Reset,
    /// End with this status, 0 to 119 (exit port).
    Exit(u8),
    /// The guest kernel panicked (pvpanic).
    Panic,
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

/// A device on a [`Bus`]. Any vCPU thread may access it, so a device locks its own state.
pub trait Device: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from the start of the device's range. `data` is all ones at first; bytes
    /// that the device does not fill stay so, as on an open bus.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]) -> Response;
}
