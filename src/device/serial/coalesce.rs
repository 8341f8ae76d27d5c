//! Coalesced output: the writes of a guest that polls wait in KVM's ring instead of causing an exit each.

use std::io;

use crate::sys::coalesced_port::CoalescedPort;

/// Bytes that the guest writes after an LSR read each, in a row, before coalescing is switched on.
pub(super) const POLLED_BYTES: u32 = 8;
/// Timer periods without output after which coalescing is switched off.
pub(super) const SILENT_PERIODS: u32 = 100;
/// Bytes taken from the ring at once: more than it holds, and a bound on what other vCPUs can keep this one busy with.
pub(super) const BATCH: usize = 256;

/// Guest writes to the data port that the hypervisor holds back.
pub trait Coalescer: Send {
    /// Switches coalescing on or off.
    ///
    /// # Errors
    ///
    /// The hypervisor refuses.
    fn set(&mut self, on: bool) -> io::Result<()>;
    /// Takes the oldest byte out of the ring.
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

/// Decides when writes are coalesced.
#[derive(Default)]
pub(super) struct Coalescing {
    ring: Option<Box<dyn Coalescer>>,
    on: bool,
    lsr_read: bool, // the last access was a read of LSR
    polled: u32,    // bytes written behind an LSR read each, in a row
    silent: u32,    // timer periods since the last byte
}

impl Coalescing {
    pub fn new(ring: Box<dyn Coalescer>) -> Self {
        Self { ring: Some(ring), ..Self::default() }
    }

    pub fn is_on(&self) -> bool {
        self.on
    }

    pub fn pop(&mut self) -> Option<u8> {
        self.ring.as_mut()?.pop()
    }

    pub fn on_read(&mut self, lsr: bool) {
        self.lsr_read = lsr;
    }

    pub fn on_output(&mut self) {
        self.silent = 0;
    }

    /// The guest wrote a byte by an exit. Returns whether coalescing has been switched on.
    pub fn on_write(&mut self) -> bool {
        self.polled = if std::mem::take(&mut self.lsr_read) { self.polled.saturating_add(1) } else { 0 };
        self.polled >= POLLED_BYTES && !self.on && self.set(true)
    }

    /// Returns whether coalescing has been switched off because the guest is silent.
    pub fn on_timer(&mut self) -> bool {
        self.silent += u32::from(self.on);
        let off = self.silent > SILENT_PERIODS;
        if off {
            self.set(false);
        }
        off
    }

    fn set(&mut self, on: bool) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        self.on = ring.set(on).is_ok() && on;
        (self.polled, self.silent) = (0, 0);
        self.on
    }
}
