//! A driver for tests, which can also violate the specification.

#![expect(clippy::cast_possible_truncation, reason = "indices are small, and 64-bit values are written in halves")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, REGISTERS, RegisterPage, Registers, Virtio, VirtioDevice};
use crate::device::Device;
use crate::event::{EventManager, SubscriberOps};

pub const RAM: usize = 1 << 20;
/// Entries of each queue.
pub const SIZE: u16 = 16;
/// The address of memory for buffers.
pub const BUFFERS: u64 = 0x8_0000;

// Registers (virtio 1.3, table 4.1).
pub const DEVICE_FEATURES: u64 = 0x10;
pub const DEVICE_FEATURES_SEL: u64 = 0x14;
pub const DRIVER_FEATURES: u64 = 0x20;
pub const DRIVER_FEATURES_SEL: u64 = 0x24;
pub const QUEUE_SEL: u64 = 0x30;
pub const QUEUE_NUM_MAX: u64 = 0x34;
pub const QUEUE_NUM: u64 = 0x38;
pub const QUEUE_READY: u64 = 0x44;
pub const QUEUE_NOTIFY: u64 = 0x50;
pub const INTERRUPT_STATUS: u64 = 0x60;
pub const INTERRUPT_ACK: u64 = 0x64;
pub const STATUS: u64 = 0x70;
pub const QUEUE_DESC: u64 = 0x80;
pub const QUEUE_AVAIL: u64 = 0x90;
pub const QUEUE_USED: u64 = 0xa0;
pub const CONFIG: u64 = 0x100;

// Status bits.
pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
pub const RUNNING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;

// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

pub struct Driver<D> {
    pub memory: GuestMemoryMmap,
    pub registers: Registers<D>,
    pub virtio: Arc<Mutex<Virtio<D>>>,
    pub manager: EventManager<Arc<Mutex<Virtio<D>>>>,
    irq: EventFd,
}

/// The guest's memory.
pub fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
}

/// The addresses of a queue's rings.
pub fn rings(queue: u32) -> [u64; 3] {
    let base = 0x1000 + u64::from(queue) * 0x1000;
    [base, base + 0x400, base + 0x800]
}

impl<D: VirtioDevice> Driver<D> {
    /// A device before its initialization.
    pub fn new(device: D) -> Self {
        Self::with_memory(device, ram())
    }

    /// A device before its initialization, which uses `memory`.
    pub fn with_memory(device: D, memory: GuestMemoryMmap) -> Self {
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let page = RegisterPage::new(Arc::new(MmapRegion::new(REGISTERS).unwrap()), 0);
        let interrupt = Interrupt::Irqfd(irq.try_clone().unwrap());
        let virtio = Virtio::new(device, &memory, interrupt, page, Box::new(|| {})).unwrap();
        let virtio = Arc::new(Mutex::new(virtio));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(virtio.clone());
        let mut registers = Registers::new(virtio.clone());
        registers.reset_wait = Duration::ZERO; // the loop runs on the same thread
        Self { memory, registers, virtio, manager, irq }
    }

    /// An initialized device with `features` and all its queues.
    pub fn running(device: D, features: u64) -> Self {
        let mut driver = Self::new(device);
        driver.start(features);
        driver
    }

    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        (0..D::QUEUES.len() as u32).for_each(|queue| {
            let rings = rings(queue);
            self.memory.write_slice(&[0; 0x1000], GuestAddress(rings[0])).unwrap();
            self.set_up(queue, SIZE, rings);
        });
        self.write(STATUS, RUNNING);
        assert_eq!(self.read(STATUS), RUNNING);
        self.run();
    }

    /// Resets the device, and waits until that is done.
    pub fn reset(&mut self) {
        self.write(STATUS, 0);
        self.wait_for(|driver| driver.read(STATUS) == 0);
    }

    pub fn negotiate(&self, features: u64) {
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (half, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, bits);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    pub fn set_up(&self, queue: u32, size: u16, rings: [u64; 3]) {
        self.write(QUEUE_SEL, queue);
        self.write(QUEUE_NUM, size.into());
        for (register, address) in [QUEUE_DESC, QUEUE_AVAIL, QUEUE_USED].into_iter().zip(rings) {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        assert!(self.registers.write(offset, &value.to_le_bytes()).is_continue());
    }

    pub fn write_bytes(&self, offset: u64, data: &[u8]) {
        assert!(self.registers.write(offset, data).is_continue());
    }

    pub fn put_descriptor(&self, at: u64, (address, len, flags, next): Descriptor) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub fn offer(&self, queue: u32, head: u16) {
        let [_, available, _] = rings(queue);
        let index: u16 = self.memory.read_obj(GuestAddress(available + 2)).unwrap();
        self.memory.write_obj(head, GuestAddress(available + 4 + u64::from(index % SIZE) * 2)).unwrap();
        self.memory.write_obj(index.wrapping_add(1), GuestAddress(available + 2)).unwrap();
    }

    /// Writes `chain` into the descriptor table from its first entry on, and makes it available.
    pub fn send(&mut self, queue: u32, chain: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(chain) {
            self.put_descriptor(rings(queue)[0] + index * 16, *descriptor);
        }
        self.offer(queue, 0);
        self.notify(queue);
    }

    /// Makes a chain of device-readable and device-writable buffers available.
    pub fn request(&mut self, queue: u32, readable: &[(u64, u32)], writable: &[(u64, u32)]) {
        let buffers = readable.iter().map(|buffer| (buffer, 0)).chain(writable.iter().map(|buffer| (buffer, WRITE)));
        let count = readable.len() + writable.len();
        let chain = buffers.enumerate().map(|(index, (&(address, len), flags))| {
            let next = if index + 1 < count { NEXT } else { 0 };
            (address, len, flags | next, index as u16 + 1)
        });
        let chain: Vec<_> = chain.collect();
        self.send(queue, &chain);
    }

    pub fn notify(&mut self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
        self.run();
    }

    /// Runs the event loop until no event is pending.
    pub fn run(&mut self) {
        for _ in 0..1000 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device keeps the loop busy");
    }

    /// Runs the event loop until `done`.
    pub fn wait_for(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            self.run();
            if done(self) {
                return;
            }
            self.manager.run_with_timeout(30).unwrap();
        }
        panic!("the device does not finish; the first queue's used index is {}", self.used_index(0));
    }

    /// Runs the event loop until `enough` is true for the number of used entries since DRIVER_OK, modulo 2^16.
    pub fn wait_until(&mut self, queue: u32, enough: impl Fn(u16) -> bool) {
        self.wait_for(|driver| enough(driver.used_index(queue)));
    }

    /// The number of used entries since DRIVER_OK, modulo 2^16.
    pub fn used_index(&self, queue: u32) -> u16 {
        self.memory.read_obj(GuestAddress(rings(queue)[2] + 2)).unwrap()
    }

    /// The used entries: head and length of each, in order.
    pub fn used(&self, queue: u32) -> Vec<(u32, u32)> {
        let [_, _, used] = rings(queue);
        let entry = |index: u16| {
            let at = used + 4 + u64::from(index % SIZE) * 8;
            let word = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
            (word(at), word(at + 4))
        };
        (0..self.used_index(queue)).map(entry).collect()
    }

    /// The number of interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}
