//! Virtio devices (OASIS virtio 1.3): disk, network, socket, console, entropy and balloon.
//!
//! ```text
//!   guest driver                        event loop
//!     │ writes requests to a ring in RAM
//!     │ QueueNotify ── ioeventfd ──────────▶ Virtio<D>::process
//!     │                                      │  D takes requests, executes them, returns them
//!     │ interrupt ◀──── irqfd ───────────────┘  unless the driver suppresses it
//!     │
//!     │ other registers ── exit ──▶ Registers (a Device on the MMIO bus)
//! ```
//!
//! [`Virtio`] is the transport that all devices share: the registers of virtio over MMIO, version 2. A [`VirtioDevice`]
//! implements one device type. A [`Virtqueue`] validates what the driver writes into its rings, so a device gets only
//! requests whose buffers are in RAM; their content is for the device to validate.
//!
//! The queues of a [`synchronous`](VirtioDevice::synchronous) device are processed by the vCPU that writes QueueNotify.
//!
//! A driver that violates the specification stops the queue concerned and gets DEVICE_NEEDS_RESET. Other queues and other
//! devices continue.
//!
//! A driver's reset can take time (2.4.2): while a device still has I/O in flight, the status register does not read 0.
//! [`VirtioDevice::reset`] explains this.

pub mod balloon;
pub mod block;
pub mod console;
pub mod net;
pub mod rng;
#[cfg(test)]
mod testing;
mod transport;
pub mod vsock;

pub use crate::sys::vectored_io::Buffer;
pub use transport::{
    Buffers, Chain, INT_VRING, INTERRUPT_ACK, QUEUE_NOTIFY, REGISTERS, RegisterPage, Registers, Virtio, Virtqueue,
};

use std::fmt;

use vmm_sys_util::eventfd::EventFd;

use crate::event::{EventOps, Events};

/// The smallest user data that is not the number of a queue. Devices number their own descriptors from here.
pub const BACKEND: u32 = 0x100;

/// Whether a device has been reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetState {
    /// It has, and accesses no guest memory any more.
    Done,
    /// It still has I/O in flight.
    Pending,
}

/// A device type.
///
/// All methods are called under one lock, most of them on the event loop's thread.
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.3, 5).
    const TYPE: u32;
    /// The maximum size of each queue, powers of two.
    const QUEUES: &'static [u16];

    /// The feature bits of this device type that are offered.
    fn features(&self) -> u64 {
        0
    }

    /// The configuration space.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// Called when the driver writes to the configuration space, on a vCPU's thread.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Registers the device's own descriptors, with user data from [`BACKEND`] on.
    fn init(&mut self, ops: &mut EventOps) {
        let _ = ops;
    }

    /// Called when the driver has negotiated `features` and sets DRIVER_OK, on a vCPU's thread. All queues are notified
    /// afterwards.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// Resets the device to the state before [`activate`](VirtioDevice::activate). Called on a vCPU's thread. It must not
    /// wait: if I/O that may access guest memory is in flight, it returns [`Pending`](ResetState::Pending), and is called
    /// again after each event of the device, on the event loop's thread, until it returns [`Done`](ResetState::Done). In
    /// between the driver reads a status other than 0, its writes are ignored, and the device gets no queues.
    fn reset(&mut self) -> ResetState {
        ResetState::Done
    }

    /// Whether the vCPU that writes QueueNotify processes the queue itself, by
    /// [`process_inline`](VirtioDevice::process_inline), because that takes less time than waking the event loop.
    fn synchronous(&self) -> bool {
        false
    }

    /// Processes the queues of a [`synchronous`](VirtioDevice::synchronous) device. Called on a vCPU's thread.
    fn process_inline(&mut self, queues: &mut [Virtqueue]) {
        let _ = queues;
    }

    /// Handles one event: a notification of the queue whose number is the user data, or one of the device's own
    /// descriptors.
    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>);
}

/// What a device can access while it handles an event.
#[derive(Debug)]
pub struct DeviceContext<'a, 'b> {
    /// The queues, as many as [`VirtioDevice::QUEUES`]; empty before DRIVER_OK and during a reset.
    pub queues: &'a mut [Virtqueue],
    /// Registers descriptors.
    pub ops: &'a mut EventOps<'b>,
    /// Set by the device when [`VirtioDevice::config`] has changed.
    pub config_changed: bool,
}

/// The device's interrupt line.
pub struct Interrupt(Raise);

enum Raise {
    Irqfd(EventFd),
    Call(Box<dyn Fn() + Send>),
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt").finish_non_exhaustive()
    }
}

impl Interrupt {
    /// An interrupt that a kernel thread injects when `irqfd` is written.
    pub fn new(irqfd: EventFd) -> Self {
        Self(Raise::Irqfd(irqfd))
    }

    /// An interrupt that `raise` injects. For a [`synchronous`](VirtioDevice::synchronous) device, whose driver waits on the
    /// calling thread.
    pub fn direct(raise: impl Fn() + Send + 'static) -> Self {
        Self(Raise::Call(Box::new(raise)))
    }

    fn raise(&self) {
        match &self.0 {
            Raise::Irqfd(irqfd) => drop(irqfd.write(1)), // a full counter has been written already
            Raise::Call(raise) => raise(),
        }
    }
}
