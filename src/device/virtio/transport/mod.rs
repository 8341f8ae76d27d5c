//! The transport that all virtio devices share: registers over MMIO, virtqueues, and descriptor chains.

mod chain;
mod mmio;
mod queue;

pub use chain::{Buffers, Chain};
pub use mmio::{INT_VRING, INTERRUPT_ACK, QUEUE_NOTIFY, REGISTERS, RegisterPage, Registers, Virtio};
pub use queue::Virtqueue;
