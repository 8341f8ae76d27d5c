//! Where the port's writes wait while the guest polls: KVM's coalescing ring, or a stand-in in tests.

use std::io;

use crate::sys::coalesced_port::CoalescedPort;

/// Guest writes to COM1's data port that the hypervisor held back.
pub trait Coalescer: Send {
    /// Holds writes back from now on, or no longer.
    fn set(&mut self, on: bool) -> io::Result<()>;
    /// The oldest byte held back.
    fn pop(&mut self) -> Option<u8>;
}

impl Coalescer for CoalescedPort {
    fn set(&mut self, on: bool) -> io::Result<()> {
        CoalescedPort::set(self, on)
    }

    fn pop(&mut self) -> Option<u8> {
        CoalescedPort::pop(self)
    }
}
