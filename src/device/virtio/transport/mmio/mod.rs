//! The registers of virtio over MMIO, version 2 (virtio 1.3, 4.2.2).
//!
//! All that the driver can read is one page of memory, which the device keeps current. A read that exits copies from
//! it. If the page is mapped read-only into the guest, only writes exit.

mod reset;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestMemoryMmap, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use super::super::{DeviceContext, Interrupt, VirtioDevice};
use super::queue::{QueueConfig, Virtqueue};
use crate::device::{Device, Response};
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber};

/// Bytes of the registers, a page.
pub const REGISTERS: usize = 0x1000;
/// Offset of QueueNotify: the value written is the number of the queue. An ioeventfd may handle it.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Offset of InterruptACK. Writes of [`INT_VRING`] have no effect.
pub const INTERRUPT_ACK: u64 = VIRTIO_MMIO_INTERRUPT_ACK as u64;
/// The bit of InterruptStatus for used buffers.
pub const INT_VRING: u32 = VIRTIO_MMIO_INT_VRING;

const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The registers of a device as the driver reads them: one of the pages of a mapping.
#[derive(Clone, Debug)]
pub struct RegisterPage {
    pages: Arc<MmapRegion>,
    start: usize,
}

impl RegisterPage {
    /// Page number `index` of `pages`.
    pub fn new(pages: Arc<MmapRegion>, index: usize) -> Self {
        Self { pages, start: index * REGISTERS }
    }

    // Only the device writes the page. Accesses outside of the mapping have no effect.

    fn store(&self, offset: u32, value: u32) {
        let at = self.start + offset as usize;
        let _ = self.pages.as_volatile_slice().store(value.to_le(), at, Ordering::Release);
    }

    fn write(&self, offset: u32, data: &[u8]) {
        let _ = self.pages.as_volatile_slice().write(data, self.start + offset as usize);
    }

    #[expect(clippy::cast_possible_truncation, reason = "the bus checks that the offset is in the page")]
    fn read(&self, offset: u64, data: &mut [u8]) {
        let _ = self.pages.as_volatile_slice().read(data, self.start + offset as usize);
    }
}

/// A device with its queues and registers; a subscriber of the event loop.
pub struct Virtio<D> {
    /// The device.
    pub device: D,
    queues: Vec<Virtqueue>,
    queue_configs: Vec<QueueConfig>,
    interrupt: Interrupt,
    page: RegisterPage,
    on_driver_ok: Box<dyn Fn() + Send>,
    status: u32,     // 0 during a reset, though the driver reads the old one
    resetting: bool, // the device has I/O of the last driver in flight
    reset_done: Arc<Condvar>,
    config_generation: u32,
    driver_features: u64,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl<D> fmt::Debug for Virtio<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Virtio").field("status", &self.status).field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl<D: VirtioDevice> Virtio<D> {
    /// Puts `device` behind registers in the state after a reset. Calls `on_driver_ok` each time that the driver sets
    /// DRIVER_OK, on its vCPU's thread.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors or memory.
    pub fn new(
        device: D,
        memory: &GuestMemoryMmap,
        interrupt: Interrupt,
        page: RegisterPage,
        on_driver_ok: Box<dyn Fn() + Send>,
    ) -> io::Result<Self> {
        let queues = D::QUEUES.iter().map(|&size| {
            let doorbell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            Virtqueue::new(size, memory.clone(), doorbell).map_err(io::Error::other)
        });
        let queues = queues.collect::<io::Result<Vec<_>>>()?;
        let queue_configs = vec![QueueConfig::default(); queues.len()];
        let mut virtio = Self {
            device,
            queues,
            queue_configs,
            interrupt,
            page,
            on_driver_ok,
            status: 0,
            resetting: false,
            reset_done: Arc::default(),
            config_generation: 0,
            driver_features: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        };
        let page = &virtio.page;
        page.store(VIRTIO_MMIO_MAGIC_VALUE, u32::from_le_bytes(*b"virt"));
        page.store(VIRTIO_MMIO_VERSION, 2);
        page.store(VIRTIO_MMIO_DEVICE_ID, D::TYPE);
        page.store(VIRTIO_MMIO_VENDOR_ID, u32::from_le_bytes(*b"kick"));
        // No shared memory region: all bits of the length and of the address are set.
        (VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4).for_each(|at| page.store(at, u32::MAX));
        virtio.store_config();
        virtio.reset();
        Ok(virtio)
    }

    /// The queues' eventfds, in order. Writing one notifies the queue.
    pub fn doorbells(&self) -> impl Iterator<Item = &EventFd> {
        self.queues.iter().map(|queue| &queue.doorbell)
    }

    /// The descriptors that the device's workers need: those of [`doorbells`](Virtio::doorbells), and the irqfd.
    pub(in crate::device::virtio) fn descriptors(&self) -> Vec<RawFd> {
        let irqfd = if let Interrupt::Irqfd(irqfd) = &self.interrupt { Some(irqfd) } else { None };
        self.doorbells().chain(irqfd).map(AsRawFd::as_raw_fd).collect()
    }

    /// Processes the queues on a thread of the device. They are empty before DRIVER_OK and during a reset.
    pub fn work(&mut self, turn: impl FnOnce(&mut D, &mut [Virtqueue])) {
        self.take_turn(turn);
        if self.resetting {
            self.try_complete_reset();
        }
    }

    fn store_config(&self) {
        self.page.write(VIRTIO_MMIO_CONFIG, self.device.config());
    }

    /// Publishes a new configuration. The generation changes before and after, so a driver that read in between tries
    /// again.
    fn config_changed(&mut self) {
        self.increment_generation();
        self.store_config();
        self.increment_generation();
        self.notify_config();
    }

    fn increment_generation(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.page.store(VIRTIO_MMIO_CONFIG_GENERATION, self.config_generation);
    }

    fn notify_config(&self) {
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.page.store(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
            self.interrupt.raise();
        }
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn set_status(&mut self, status: u32) {
        self.status = status;
        self.page.store(VIRTIO_MMIO_STATUS, status);
    }

    fn features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn needs_reset(&mut self) {
        self.set_status(self.status | VIRTIO_CONFIG_S_NEEDS_RESET);
        self.notify_config();
    }

    fn store_queue(&self) {
        let selected = self.queue_sel as usize;
        self.page.store(VIRTIO_MMIO_QUEUE_NUM_MAX, D::QUEUES.get(selected).map_or(0, |&max_size| max_size.into()));
        self.page.store(VIRTIO_MMIO_QUEUE_READY, self.queues.get(selected).is_some_and(Virtqueue::ready).into());
    }

    /// The steps of the driver's initialization (3.1.1).
    fn write_status(&mut self, status: u32) {
        if status == 0 {
            self.reset();
            return self.queues.first().map_or((), Virtqueue::notify); // what the device stopped may continue
        }
        let mut new = status & !self.status & !VIRTIO_CONFIG_S_NEEDS_RESET; // only a reset clears bits
        let features = self.driver_features;
        if features & !self.features() != 0 || features & 1 << VIRTIO_F_VERSION_1 == 0 {
            new &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if (self.status | new) & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            new &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.set_status(self.status | new);
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
            self.queues.iter_mut().for_each(|queue| queue.set_event_idx(event_idx));
            self.device.activate(features);
            (self.on_driver_ok)();
            // Requests that were made available before were not notified.
            self.queues.iter().for_each(Virtqueue::notify);
        }
    }

    fn write_queue_ready(&mut self, ready: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else { return };
        let config = &self.queue_configs[self.queue_sel as usize];
        if ready & 1 == 0 {
            queue.reset();
        } else if !queue.ready() && queue.configure(config).is_err() {
            self.needs_reset();
        }
        self.store_queue();
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let negotiating = !self.has(VIRTIO_CONFIG_S_FEATURES_OK);
        let running = self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => {
                self.page.store(VIRTIO_MMIO_DEVICE_FEATURES, half(self.features(), value));
            }
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if negotiating => {
                set_half(&mut self.driver_features, self.driver_features_sel, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => {
                self.queue_sel = value;
                self.store_queue();
            }
            VIRTIO_MMIO_QUEUE_READY if !running => self.write_queue_ready(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_INTERRUPT_ACK if value & VIRTIO_MMIO_INT_CONFIG != 0 => {
                self.page.store(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
            }
            VIRTIO_MMIO_QUEUE_NOTIFY if running && self.device.synchronous() => self.take_turn(D::process_inline),
            // No ioeventfd has handled it.
            VIRTIO_MMIO_QUEUE_NOTIFY => self.queues.get(value as usize).map_or((), Virtqueue::notify),
            _ => self.write_queue_register(offset, value),
        }
    }

    /// Stores the driver's configuration of a queue until the queue becomes ready.
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let Some(config) = self.queue_configs.get_mut(self.queue_sel as usize) else { return };
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => config.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut config.descriptors, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut config.descriptors, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut config.available, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut config.available, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut config.used, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut config.used, 1, value),
            _ => {}
        }
    }

    /// Lets the device process its queues, then interrupts the driver if it has to.
    fn take_turn(&mut self, turn: impl FnOnce(&mut D, &mut [Virtqueue])) {
        // Before DRIVER_OK no request is processed, though its queue may be ready.
        let running = self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        let queues = if running { &mut self.queues[..] } else { &mut [] };
        queues.iter_mut().for_each(Virtqueue::begin_turn);
        turn(&mut self.device, queues);
        self.queues.iter_mut().for_each(|queue| queue.end_turn(&self.interrupt));
        if self.queues.iter_mut().filter_map(Virtqueue::take_fault).count() > 0 {
            self.store_queue();
            self.needs_reset();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = u32::try_from(offset) else { return };
        if self.resetting {
            return;
        }
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG) {
            self.device.write_config(at as usize, data);
            self.store_config();
        } else if let Ok(value) = data.try_into() {
            self.write_register(offset, u32::from_le_bytes(value)); // control registers have 32 bits (4.2.2.2)
        }
    }
}

/// 32 bits of a 64-bit register. They are zero if `select` is larger than 1.
fn half(register: u64, select: u32) -> u32 {
    (register.checked_shr(select.saturating_mul(32)).unwrap_or(0) & 0xffff_ffff) as u32
}

fn set_half(register: &mut u64, select: u32, value: u32) {
    match select {
        0 => *register = *register >> 32 << 32 | u64::from(value),
        1 => *register = *register & u64::from(u32::MAX) | u64::from(value) << 32,
        _ => {}
    }
}

impl<D: VirtioDevice> MutEventSubscriber for Virtio<D> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut config_changed = false;
        self.work(|device, queues| {
            let mut ctx = DeviceContext { queues, ops, config_changed };
            device.process(events, &mut ctx);
            config_changed = ctx.config_changed;
        });
        if config_changed {
            self.config_changed();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (index, queue) in (0..).zip(&self.queues).filter(|_| !self.device.has_workers()) {
            let events = Events::with_data(&queue.doorbell, index, EventSet::IN | EventSet::EDGE_TRIGGERED);
            // Fails only if the kernel is out of memory; then this queue is not served.
            let _ = ops.add(events);
        }
        self.device.init(ops);
    }
}

/// The registers of a device, on the MMIO bus.
#[derive(Debug)]
pub struct Registers<D> {
    virtio: Arc<Mutex<Virtio<D>>>,
    page: RegisterPage,
    reset_done: Arc<Condvar>,
    pub(in crate::device::virtio) reset_wait: Duration,
}

impl<D: VirtioDevice> Registers<D> {
    /// The registers of `virtio`.
    pub fn new(virtio: Arc<Mutex<Virtio<D>>>) -> Self {
        let (page, reset_done) = {
            let virtio = lock(&virtio);
            (virtio.page.clone(), virtio.reset_done.clone())
        };
        Self { virtio, page, reset_done, reset_wait: reset::RESET_WAIT }
    }
}

fn lock<D>(virtio: &Mutex<Virtio<D>>) -> MutexGuard<'_, Virtio<D>> {
    virtio.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: VirtioDevice> Device for Registers<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.page.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Response {
        let mut virtio = lock(&self.virtio);
        virtio.write(offset, data);
        if virtio.resetting && offset == u64::from(VIRTIO_MMIO_STATUS) {
            // Without the lock, which the event loop needs to complete the reset.
            let _ = self.reset_done.wait_timeout_while(virtio, self.reset_wait, |virtio| virtio.resetting);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
