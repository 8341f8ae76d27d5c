//! Virtio devices (OASIS virtio 1.3): what makes disks, networks and the like fast in a guest.
//!
//! ```text
//!   guest driver                        event loop
//!     │ writes requests to a ring in RAM
//!     │ QueueNotify ── ioeventfd ──────────▶ Virtio<D>::process
//!     │                                      │  D takes requests, does them, answers
//!     │ interrupt ◀──── irqfd ───────────────┘  unless the driver does not care
//!     │
//!     │ other registers ── exit ──▶ Registers (a Device on the MMIO bus)
//! ```
//!
//! [`Virtio`] is the transport, written once: the registers of virtio over MMIO, version 2. A [`VirtioDevice`] is one file with
//! what is special about it. A [`Virtqueue`] checks all that the driver puts in its rings, so a device sees only requests
//! whose buffers are in RAM; what the requests say is for the device to check.
//!
//! A [`synchronous`](VirtioDevice::synchronous) device has its doorbells among the other registers: the vCPU that rings one does the work.
//!
//! A driver that breaks the rules stops the queue it breaks them on, and is told so by DEVICE_NEEDS_RESET. Other queues and other
//! devices go on.

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

/// The first word of user data that is not the number of a queue. Devices number their own descriptors from here.
pub const BACKEND: u32 = 0x100;

/// What is special about one kind of device.
///
/// All calls are made under one lock, most on the event loop's thread.
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.3, 5).
    const TYPE: u32;
    /// The most entries of each queue, powers of two.
    const QUEUES: &'static [u16];

    /// The features it offers besides those that the transport and the queues have.
    fn features(&self) -> u64 {
        0
    }

    /// Its configuration space.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// The driver writes to the configuration space. Called on a vCPU's thread.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Registers the descriptors that are its own, with user data from [`BACKEND`] on.
    fn init(&mut self, ops: &mut EventOps) {
        let _ = ops;
    }

    /// The driver has negotiated `features` and is ready. Called on a vCPU's thread; every queue's doorbell rings afterwards.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// Forgets all that came from the driver. When this returns, nobody touches guest memory any more. Called on a
    /// vCPU's thread.
    fn reset(&mut self) {}

    /// Whether what a doorbell asks for takes less time than waking the event loop. Then the vCPU that rings it does it itself, by
    /// [`serve`](VirtioDevice::serve): an exit to user space, but neither a thread to wake nor a vCPU to put to sleep.
    fn synchronous(&self) -> bool {
        false
    }

    /// Handles the doorbells of a [`synchronous`](VirtioDevice::synchronous) device. Called on a vCPU's thread.
    fn serve(&mut self, queues: &mut [Virtqueue]) {
        let _ = queues;
    }

    /// Handles one event: the doorbell of the queue whose number is the user data, or one of its own
    /// descriptors.
    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>);
}

/// What a device has at hand while it handles an event.
#[derive(Debug)]
pub struct DeviceContext<'a, 'b> {
    /// The queues, as many as [`VirtioDevice::QUEUES`]; none while the driver is not ready.
    pub queues: &'a mut [Virtqueue],
    /// To register descriptors with.
    pub ops: &'a mut EventOps<'b>,
    /// To be set when [`VirtioDevice::config`] returns something new.
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
    /// An interrupt that `irqfd` raises: a thread of the kernel's does it.
    pub fn new(irqfd: EventFd) -> Self {
        Self(Raise::Irqfd(irqfd))
    }

    /// An interrupt that `raise` raises. Right for a [`synchronous`](VirtioDevice::synchronous) device, whose driver waits on this very thread.
    pub fn direct(raise: impl Fn() + Send + 'static) -> Self {
        Self(Raise::Call(Box::new(raise)))
    }

    fn raise(&self) {
        match &self.0 {
            Raise::Irqfd(irqfd) => drop(irqfd.write(1)), // if the counter is full, it has been raised
            Raise::Call(raise) => raise(),
        }
    }
}
