//! The transport: registers of virtio over MMIO, version 2 (virtio 1.3, 4.2.2).
//!
//! What the driver can read is one page of memory. Reads that exit are answered from it, and a hypervisor may show it to the
//! guest read-only: then only writes exit. So it is up to date at all times.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use vm_memory::{Bytes, GuestMemoryMmap, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use super::super::{DeviceContext, Interrupt, VirtioDevice};
use super::Virtqueue;
use crate::device::{Device, Response};
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber};

/// Bytes of registers, a page.
pub const REGISTERS: u64 = 0x1000;
/// Offset of the register whose writes ring doorbells: the value is the number of the queue. An ioeventfd may take them.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Offset of the register by which the driver acknowledges an interrupt. Writes of [`INT_VRING`] change nothing.
pub const INTERRUPT_ACK: u64 = VIRTIO_MMIO_INTERRUPT_ACK as u64;
/// The interrupt's usual cause.
pub const INT_VRING: u32 = VIRTIO_MMIO_INT_VRING;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"kick");
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What a driver can read of a device: one of the pages of a mapping.
#[derive(Clone, Debug)]
pub struct RegisterPage {
    pages: Arc<MmapRegion>,
    start: usize,
}

impl RegisterPage {
    /// RegisterPage number `index` of `pages`, if it is that long.
    pub fn new(pages: Arc<MmapRegion>, index: usize) -> Self {
        Self { pages, start: index * REGISTERS as usize }
    }

    // Nobody but the device writes the page. Accesses outside of the mapping are none.

    fn store(&self, offset: u32, value: u32) {
        let at = self.start + offset as usize;
        let _ = self.pages.as_volatile_slice().store(value.to_le(), at, Ordering::Release);
    }

    fn load(&self, offset: u32) -> u32 {
        let at = self.start + offset as usize;
        self.pages.as_volatile_slice().load(at, Ordering::Relaxed).map_or(0, u32::from_le)
    }

    fn write(&self, offset: u32, data: &[u8]) {
        let _ = self.pages.as_volatile_slice().write(data, self.start + offset as usize);
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let _ = self.pages.as_volatile_slice().read(data, self.start + offset as usize);
    }
}

/// A device with its queues and registers: a subscriber of the event loop.
pub struct Virtio<D> {
    device: D,
    queues: Vec<Virtqueue>,
    queue_configs: Vec<QueueConfig>,
    interrupt: Interrupt,
    page: RegisterPage,
    on_driver_ok: Option<Box<dyn Fn() + Send>>,
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

/// What the driver has written about a queue that is not ready yet.
#[derive(Clone, Copy, Debug, Default)]
struct QueueConfig {
    size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl<D> fmt::Debug for Virtio<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Virtio").field("status", &self.status).field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl<D: VirtioDevice> Virtio<D> {
    /// Puts `device` behind registers that the driver has not touched yet.
    ///
    /// Fails when the host has no more descriptors or memory.
    pub fn new(device: D, memory: &GuestMemoryMmap, interrupt: Interrupt, page: RegisterPage) -> io::Result<Self> {
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
            on_driver_ok: None,
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        };
        virtio.show(VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        virtio.show(VIRTIO_MMIO_VERSION, VERSION);
        virtio.show(VIRTIO_MMIO_DEVICE_ID, D::TYPE);
        virtio.show(VIRTIO_MMIO_VENDOR_ID, VENDOR);
        // There is no shared memory: all of its four registers are ones.
        (VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4).for_each(|at| virtio.show(at, u32::MAX));
        virtio.show_config();
        virtio.reset();
        Ok(virtio)
    }

    /// Has `call` called on the driver's thread each time that it is ready.
    pub fn on_driver_ok(&mut self, call: Box<dyn Fn() + Send>) {
        self.on_driver_ok = Some(call);
    }

    /// Whether doorbells should reach [`Registers`] instead of the event loop.
    pub fn synchronous(&self) -> bool {
        self.device.synchronous()
    }

    /// What rings when a queue is notified, in the order of the queues.
    pub fn doorbells(&self) -> impl Iterator<Item = &EventFd> {
        self.queues.iter().map(Virtqueue::doorbell)
    }

    fn show(&self, offset: u32, value: u32) {
        self.page.store(offset, value);
    }

    fn shown(&self, offset: u32) -> u32 {
        self.page.load(offset)
    }

    fn show_config(&self) {
        self.page.write(VIRTIO_MMIO_CONFIG, self.device.config());
    }

    /// Shows a new configuration. The driver sees the generation change before and after, so it reads again if it was between.
    fn config_changed(&mut self) {
        self.show(VIRTIO_MMIO_CONFIG_GENERATION, self.shown(VIRTIO_MMIO_CONFIG_GENERATION).wrapping_add(1));
        self.show_config();
        self.show(VIRTIO_MMIO_CONFIG_GENERATION, self.shown(VIRTIO_MMIO_CONFIG_GENERATION).wrapping_add(1));
        self.announce_config();
    }

    fn announce_config(&self) {
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.show(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
            self.interrupt.raise();
        }
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn set_status(&mut self, status: u32) {
        self.status = status;
        self.show(VIRTIO_MMIO_STATUS, status);
    }

    fn features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn needs_reset(&mut self) {
        self.set_status(self.status | VIRTIO_CONFIG_S_NEEDS_RESET);
        self.announce_config();
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Virtqueue::reset);
        self.queue_configs.fill(QueueConfig::default());
        self.driver_features = 0;
        (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
        self.set_status(0);
        // Used buffers are announced by edges and the line is the device's own, so its driver may look each time.
        self.show(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
        self.show(VIRTIO_MMIO_DEVICE_FEATURES, self.features() as u32);
        self.show_queue();
    }

    fn show_queue(&self) {
        let queue = self.queues.get(self.queue_sel as usize);
        self.show(VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |queue| queue.max_size().into()));
        self.show(VIRTIO_MMIO_QUEUE_READY, queue.is_some_and(Virtqueue::ready).into());
    }

    /// Follows the driver through the steps of its initialization (3.1.1).
    fn write_status(&mut self, status: u32) {
        if status == 0 {
            return self.reset();
        }
        let mut new = status & !self.status & !VIRTIO_CONFIG_S_NEEDS_RESET; // bits are set one by one, and stay
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
            if let Some(call) = &self.on_driver_ok {
                call();
            }
            // What is in the queues already was not worth a notification.
            self.doorbells().for_each(|doorbell| drop(doorbell.write(1)));
        }
    }

    fn write_queue_ready(&mut self, ready: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else { return };
        let QueueConfig { size, descriptors, available, used } = self.queue_configs[self.queue_sel as usize];
        if ready & 1 == 0 {
            queue.reset();
        } else if !queue.ready() && queue.configure(size, descriptors, available, used).is_err() {
            self.needs_reset();
        }
        self.show_queue();
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let negotiating = !self.has(VIRTIO_CONFIG_S_FEATURES_OK);
        let running = self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => {
                self.device_features_sel = value;
                self.show(VIRTIO_MMIO_DEVICE_FEATURES, half(self.features(), value));
            }
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if negotiating => {
                set_half(&mut self.driver_features, self.driver_features_sel, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => {
                self.queue_sel = value;
                self.show_queue();
            }
            VIRTIO_MMIO_QUEUE_READY if !running => self.write_queue_ready(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_INTERRUPT_ACK if value & VIRTIO_MMIO_INT_CONFIG != 0 => {
                self.show(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
            }
            _ => self.write_queue_register(offset, value),
        }
    }

    /// Notes what the driver says of a queue. It counts when the queue becomes ready, and never again.
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        if offset == VIRTIO_MMIO_QUEUE_NOTIFY {
            if self.device.synchronous() && self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
                self.take_turn(|device, queues| device.serve(queues));
            } else if let Some(queue) = self.queues.get(value as usize) {
                let _ = queue.doorbell().write(1); // where no ioeventfd takes it
            }
            return;
        }
        let Some(queue_configs) = self.queue_configs.get_mut(self.queue_sel as usize) else { return };
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue_configs.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue_configs.descriptors, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue_configs.descriptors, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue_configs.available, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue_configs.available, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue_configs.used, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue_configs.used, 1, value),
            _ => {}
        }
    }

    /// Lets the device have its ctx, and the driver on_byte of it.
    fn take_turn(&mut self, turn: impl FnOnce(&mut D, &mut [Virtqueue])) {
        // Before DRIVER_OK no request is looked at, though its queue may be ready.
        let running = self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        let queues = if running { &mut self.queues[..] } else { &mut [] };
        queues.iter_mut().for_each(Virtqueue::begin_turn);
        turn(&mut self.device, queues);
        self.queues.iter_mut().for_each(|queue| queue.end_turn(&self.interrupt));
        if self.queues.iter_mut().filter_map(Virtqueue::take_fault).count() > 0 {
            self.show_queue();
            self.needs_reset();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = u32::try_from(offset) else { return };
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG) {
            self.device.write_config(at as usize, data);
            self.show_config();
        } else if let Ok(value) = data.try_into() {
            self.write_register(offset, u32::from_le_bytes(value)); // control registers are words (4.2.2.2)
        }
    }
}

/// A word of a 64-bit register; those above the first two are zero.
fn half(register: u64, select: u32) -> u32 {
    register.checked_shr(select.saturating_mul(32)).unwrap_or(0) as u32
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
        self.take_turn(|device, queues| {
            let mut ctx = DeviceContext { queues, ops, config_changed };
            device.process(events, &mut ctx);
            config_changed = ctx.config_changed;
        });
        if config_changed {
            self.config_changed();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (index, queue) in (0..).zip(&self.queues) {
            let events = Events::with_data(queue.doorbell(), index, EventSet::IN | EventSet::EDGE_TRIGGERED);
            // The number of descriptors is bounded by the kernel's limits; one that was just made can be watched unless it is
            // out of memory, and then this queue is dead.
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
}

impl<D: VirtioDevice> Registers<D> {
    /// The registers of `virtio`.
    pub fn new(virtio: Arc<Mutex<Virtio<D>>>) -> Self {
        let page = lock(&virtio).page.clone();
        Self { virtio, page }
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
        lock(&self.virtio).write(offset, data);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
