//! One virtqueue (virtio 1.3, 2.7): the device takes requests from its available ring and returns them in its used
//! ring.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, Fault};
use crate::device::virtio::Interrupt;

/// Maximum number of requests that a queue returns in one turn of the event loop, as a multiple of its size, so that
/// other devices have their turn.
const ROUNDS: u32 = 2;

/// The driver's configuration of a queue, in effect when the queue becomes ready.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueueConfig {
    pub size: u32,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// A virtqueue with the eventfd that notifies it.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    memory: GuestMemoryMmap,
    pub(super) doorbell: EventFd,
    fault: Option<Fault>,
    budget: u32,
    pending_used: u16,            // used entries without an interrupt, modulo 2^16
    notifications_disabled: bool, // in the used ring's flags
}

impl Virtqueue {
    /// A queue of at most `max_size` entries, which is notified by `doorbell`.
    ///
    /// # Errors
    ///
    /// `max_size` is not a power of two.
    pub(super) fn new(max_size: u16, memory: GuestMemoryMmap, doorbell: EventFd) -> Result<Self, virtio_queue::Error> {
        let queue = Queue::new(max_size)?;
        Ok(Self { queue, memory, doorbell, fault: None, budget: 0, pending_used: 0, notifications_disabled: false })
    }

    // ---- For the transport ----

    pub(in crate::device::virtio) fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// Validates the driver's configuration and makes the queue ready.
    ///
    /// # Errors
    ///
    /// The size is not valid, or a ring is not in RAM, not aligned, or overlaps another one.
    pub(super) fn configure(&mut self, config: &QueueConfig) -> Result<(), Fault> {
        let QueueConfig { size, descriptors, available, used } = *config;
        let size = u16::try_from(size).ok().filter(|size| self.queue.try_set_size(*size).is_ok());
        let Some(size) = size else { return Err("a queue's size is not a power of two, or too large") };
        // Table 2.7: bytes an entry, bytes besides, alignment.
        let parts = [(descriptors, 16, 0, 16), (available, 2, 6, 2), (used, 8, 6, 4)];
        let ranges = parts.map(|(start, entry, rest, alignment)| {
            let len = usize::from(size) * entry + rest;
            let valid = start % alignment == 0 && self.memory.get_slice(GuestAddress(start), len).is_ok();
            valid.then(|| (start, start + len as u64)) // does not overflow, being in RAM
        });
        let [Some(a), Some(b), Some(c)] = ranges else { return Err("a queue's ring is not in RAM, or not aligned") };
        if [(a, b), (a, c), (b, c)].into_iter().any(|(x, y)| x.0 < y.1 && y.0 < x.1) {
            return Err("a queue's rings overlap");
        }
        let aligned = self.queue.try_set_desc_table_address(GuestAddress(descriptors)).is_ok()
            && self.queue.try_set_avail_ring_address(GuestAddress(available)).is_ok()
            && self.queue.try_set_used_ring_address(GuestAddress(used)).is_ok();
        self.queue.set_ready(aligned);
        Ok(())
    }

    pub(super) fn set_event_idx(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.fault = None;
        self.pending_used = 0;
        self.notifications_disabled = false;
    }

    /// To be called before the device processes the queue.
    pub(super) fn begin_turn(&mut self) {
        self.budget = u32::from(self.queue.size()).saturating_mul(ROUNDS);
    }

    /// Interrupts the driver for the used entries that were added, unless it suppresses that. To be called after the
    /// device has processed the queue.
    pub(super) fn end_turn(&mut self, interrupt: &Interrupt) {
        let added = std::mem::take(&mut self.pending_used);
        if added > 0 && self.needs_interrupt(added).unwrap_or(true) {
            interrupt.raise();
        }
    }

    /// Whether the driver requires an interrupt for one of the last `added` entries (virtio 1.3, 2.7.7.2).
    fn needs_interrupt(&self, added: u16) -> Result<bool, vm_memory::GuestMemoryError> {
        if !self.queue.event_idx_enabled() {
            return Ok(true);
        }
        fence(Ordering::SeqCst); // the driver sees the entries before `used_event` is read
        // It follows the entries of the available ring, which `configure` has checked to be in RAM.
        let at = self.queue.avail_ring() + 4 + 2 * u64::from(self.queue.size());
        let event = u16::from_le(self.memory.load(GuestAddress(at), Ordering::Relaxed)?);
        Ok(self.queue.next_used().wrapping_sub(event).wrapping_sub(1) < added)
    }

    /// Stops the queue if the driver has violated the specification. Returns the reason once.
    pub(super) fn take_fault(&mut self) -> Option<Fault> {
        let fault = self.fault.take_if(|_| self.queue.ready())?;
        log::debug!("a virtio queue stops: {fault}");
        self.queue.set_ready(false);
        Some(fault)
    }

    // ---- For the device ----

    /// The guest memory in which the buffers of a chain are.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the driver's next request into `chain`. Returns false when none is available; then the driver notifies the
    /// queue of the next one. A queue that is not ready or has failed has no requests.
    pub fn pop(&mut self, chain: &mut Chain) -> bool {
        while self.usable() {
            if self.budget == 0 {
                self.notify(); // the rest is for the next turn
                return false;
            }
            match self.try_pop(chain) {
                Ok(true) => {
                    self.budget -= 1;
                    return true;
                }
                Ok(false) => match self.queue.enable_notification(&self.memory) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.notifications_disabled = false;
                        return false;
                    }
                    Err(_) => self.fail("a queue's ring cannot be reached"),
                },
                Err(fault) => self.fail(fault),
            }
        }
        false
    }

    /// Makes the driver notify the queue of its next request, although the last one is not complete. Notifies the queue
    /// itself if there is one already.
    pub fn rearm(&mut self) {
        self.notifications_disabled = false;
        if self.queue.enable_notification(&self.memory).unwrap_or(false) {
            self.notify();
        }
    }

    fn try_pop(&mut self, chain: &mut Chain) -> Result<bool, Fault> {
        let size = self.queue.size();
        let Ok(mut available) = self.queue.iter(&self.memory) else {
            return Err("a queue has more requests than entries");
        };
        match available.next() {
            None => return Ok(false),
            Some(descriptors) => chain.fill(descriptors, size)?,
        }
        if !self.notifications_disabled {
            // No notification is needed while requests are taken. With VIRTIO_F_EVENT_IDX this has no effect.
            let _ = self.queue.disable_notification(&self.memory);
            self.notifications_disabled = true;
        }
        Ok(true)
    }

    /// Makes the request that was taken last available again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Notifies the queue, as the driver does.
    pub fn notify(&self) {
        let _ = self.doorbell.write(1); // a full counter is readable
    }

    /// Returns the chain that begins at descriptor `head`, after `written` bytes were written to its buffers.
    pub fn push(&mut self, head: u16, written: usize) {
        self.push_all([(head, written)].into_iter());
    }

    /// Returns several chains (head and bytes written), of which the driver sees all or none.
    pub fn push_all(&mut self, entries: impl Iterator<Item = (u16, usize)>) {
        if !self.usable() {
            return;
        }
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut next = self.queue.next_used();
        let mut result = Ok(());
        for (head, written) in entries {
            // 32 bits each for the head and the length, which is less than 2^32 for any chain. `configure` has checked
            // that the ring is in RAM.
            let entry = u64::from(u32::try_from(written).unwrap_or(u32::MAX)) << 32 | u64::from(head);
            let at = GuestAddress(ring + 4 + 8 * u64::from(next % size));
            result = result.and(self.memory.write_obj(entry.to_le(), at));
            next = next.wrapping_add(1);
        }
        let index = GuestAddress(ring + 2);
        if result.and_then(|()| self.memory.store(next.to_le(), index, Ordering::Release)).is_err() {
            return self.fail("a queue's ring cannot be reached");
        }
        self.pending_used = self.pending_used.wrapping_add(next.wrapping_sub(self.queue.next_used()));
        self.queue.set_next_used(next);
    }

    /// Stops the queue because its driver has violated the specification.
    pub fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    fn usable(&self) -> bool {
        self.queue.ready() && self.fault.is_none()
    }
}
