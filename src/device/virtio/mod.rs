//! Virtio devices (OASIS virtio 1.3): disk, network, socket, file system, console, entropy and balloon.
//!
//! ```text
//!   guest driver                        event loop
//!     │ writes requests to a ring in RAM
//!     │ QueueNotify ── ioeventfd or exit ──▶ Virtio<D>::process
//!     │                                      │  D takes requests, executes them, returns them
//!     │ interrupt ◀──── irqfd ───────────────┘  unless the driver suppresses it
//!     │
//!     │ other registers ── exit ──▶ Registers (a Device on the MMIO bus)
//! ```
//!
//! [`Virtio`] is the transport that all devices share: the registers of virtio over MMIO, version 2. A [`VirtioDevice`]
//! implements one device type. A [`Virtqueue`] validates what the driver writes into its rings, so a device gets only
//! requests whose buffers are in RAM; the device validates their content.
//!
//! The queues of a [`synchronous`](VirtioDevice::synchronous) device are processed by the vCPU that writes QueueNotify.
//!
//! A driver that violates the specification stops the queue concerned and gets DEVICE_NEEDS_RESET. Other queues and
//! other devices continue.
//!
//! A driver's reset can take time (2.4.2): while a device still has I/O in flight, the status register does not read 0.
//! `transport/mmio/reset.rs` has the details.

pub mod balloon;
pub mod block;
pub mod console;
pub mod fs;
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
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Registers the device's own descriptors, with user data from [`BACKEND`] on.
    fn init(&mut self, _ops: &mut EventOps) {}

    /// Called when the driver has negotiated these features and sets DRIVER_OK, on a vCPU's thread. All queues are
    /// notified afterwards.
    fn activate(&mut self, _features: u64) {}

    /// Resets the device to the state before [`activate`](VirtioDevice::activate). Called on a vCPU's thread. It must
    /// not wait: while [`has_io_in_flight`](VirtioDevice::has_io_in_flight), it is called again after each event of the
    /// device, on the event loop's thread. In between the driver reads a status other than 0, its writes are ignored,
    /// and the device gets no queues.
    fn reset(&mut self) {}

    /// Whether I/O that may access guest memory is in flight, so that a reset is not complete.
    fn has_io_in_flight(&self) -> bool {
        false
    }

    /// Whether the vCPU that writes QueueNotify processes the queue itself, by
    /// [`process_inline`](VirtioDevice::process_inline), because that takes less time than waking the event loop.
    fn synchronous(&self) -> bool {
        false
    }

    /// Whether threads of the device process the queues, by [`Virtio::work`]. Then the event loop does not.
    fn has_workers(&self) -> bool {
        false
    }

    /// Processes the queues of a [`synchronous`](VirtioDevice::synchronous) device. Called on a vCPU's thread.
    fn process_inline(&mut self, _queues: &mut [Virtqueue]) {}

    /// Handles one event: a notification of the queue whose number is the user data, or one of the device's own
    /// descriptors. By default, it processes all queues as [`process_inline`](VirtioDevice::process_inline) does.
    fn process(&mut self, _events: Events, ctx: &mut DeviceContext<'_, '_>) {
        self.process_inline(ctx.queues);
    }
}

/// Why a file, interface or socket of the host cannot be used for a device, with a remedy if one is known.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

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

/// How the device's interrupt is raised.
pub enum Interrupt {
    /// A write of 1 to this irqfd.
    Irqfd(EventFd),
    /// A call, for a [`synchronous`](VirtioDevice::synchronous) device: its driver waits on the calling thread, and the
    /// interrupt of an irqfd is injected by a thread of the kernel.
    Inject(Box<dyn Fn() + Send>),
}

impl Interrupt {
    fn raise(&self) {
        match self {
            Self::Irqfd(irqfd) => drop(irqfd.write(1)), // if the counter is full, the interrupt is pending already
            Self::Inject(inject) => inject(),
        }
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt").finish_non_exhaustive()
    }
}
