//! Coalesced output: the writes of a guest that polls wait in KVM's ring instead of causing an exit each.

use crate::sys::coalesced_port::Coalescer;

/// Bytes that the guest writes after an LSR read each, in a row, before coalescing is switched on.
pub(super) const POLLED_BYTES: u32 = 8;
/// Timer periods without output after which coalescing is switched off.
pub(super) const SILENT_PERIODS: u32 = 100;
/// Maximum number of bytes taken from the ring at once: more than it holds, so that it is emptied, but not endless
/// while other vCPUs write.
pub(super) const BATCH: usize = 256;

/// Decides when writes are coalesced.
#[derive(Debug, Default)]
pub(super) struct Coalescing {
    pub ring: Option<Box<dyn Coalescer>>,
    pub on: bool,
    polled: u32,     // bytes written after an LSR read each, in a row
    pub silent: u32, // timer periods since the last byte
}

impl Coalescing {
    pub fn pop(&mut self) -> Option<u8> {
        self.ring.as_mut()?.pop()
    }

    /// The guest has written a byte by an exit, perhaps immediately after an LSR read. Returns whether coalescing has
    /// been switched on.
    pub fn on_write(&mut self, after_lsr_read: bool) -> bool {
        self.polled = if after_lsr_read { self.polled.saturating_add(1) } else { 0 };
        self.polled >= POLLED_BYTES && !self.on && self.set(true)
    }

    /// Returns whether coalescing has been switched off because the guest has written nothing for [`SILENT_PERIODS`].
    pub fn on_timer(&mut self) -> bool {
        self.silent += u32::from(self.on);
        self.silent > SILENT_PERIODS && !self.set(false)
    }

    /// Switches coalescing on or off. Returns whether it is on.
    fn set(&mut self, on: bool) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        self.on = ring.set(on).is_ok() && on;
        (self.polled, self.silent) = (0, 0);
        self.on
    }
}
