//! What spares a running virtio device its exits: doorbells and acknowledgements stay in the kernel, registers are read as memory.
//!
//! KVM waits for a grace period at each of these, some milliseconds in all. So they are not part of setting the machine up: the
//! first driver that is ready has them made, on a thread of its own, while the guest goes on by exits. Should one fail, it does
//! so for good.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_bindings::KVM_CAP_READONLY_MEM;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::layout::VIRTIO_REGISTERS;
use crate::device::virtio::{INT_VRING, INTERRUPT_ACK, QUEUE_NOTIFY, REGISTERS};
use crate::memory::GuestRam;

/// The fast_path of one machine.
pub struct FastPath {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    registers: Arc<MmapRegion>,
    devices: Mutex<Vec<Doorbells>>,
    begun: AtomicBool,
    cancelled: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Where a device is, and what rings when its queues are notified, in order.
#[derive(Debug)]
struct Doorbells {
    registers: u64,
    events: Vec<EventFd>,
}

impl fmt::Debug for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastPath").field("devices", &self.devices).field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl FastPath {
    /// None yet, for devices of `vm` whose registers are `registers`, one behind the other.
    pub fn new(vm: &Arc<VmFd>, ram: &Arc<GuestRam>, registers: Arc<MmapRegion>) -> Self {
        Self {
            vm: vm.clone(),
            ram: ram.clone(),
            registers,
            devices: Mutex::default(),
            begun: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            thread: Mutex::default(),
        }
    }

    /// Adds the next device, which is at `registers` and has these `doorbells`.
    pub fn add<'a>(&self, registers: u64, doorbells: impl Iterator<Item = &'a EventFd>) -> io::Result<()> {
        let events = doorbells.map(EventFd::try_clone).collect::<io::Result<_>>()?;
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).push(Doorbells { registers, events });
        Ok(())
    }

    /// Makes them, unless somebody has begun with that.
    pub fn make(self: &Arc<Self>) {
        if !self.begun.swap(true, Ordering::Relaxed) {
            let own = self.clone();
            let thread = thread::Builder::new().name("fast_path".to_owned()).spawn(move || own.make_all());
            *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = thread.ok();
        }
    }

    fn make_all(&self) {
        let devices = std::mem::take(&mut *self.devices.lock().unwrap_or_else(PoisonError::into_inner));
        if self.vm.check_extension_raw(KVM_CAP_READONLY_MEM.into()) > 0 {
            let len = devices.len() * REGISTERS as usize;
            let _ = self.ram.map_read_only(&self.vm, VIRTIO_REGISTERS, &self.registers, len);
        }
        let Ok(nobody) = EventFd::new(libc::EFD_CLOEXEC) else { return };
        for Doorbells { registers, events } in devices {
            let bells = (0..).zip(&events).map(|(index, event)| (QUEUE_NOTIFY, event, index));
            // Nobody needs to hear of an acknowledgement.
            for (offset, event, value) in bells.chain([(INTERRUPT_ACK, &nobody, INT_VRING)]) {
                if self.cancelled.load(Ordering::Relaxed) {
                    return;
                }
                let _ = self.vm.register_ioevent(event, &IoEventAddress::Mmio(registers + offset), value);
            }
        }
    }

    /// Makes no more, and waits until nobody does.
    pub fn stop(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map(JoinHandle::join);
    }
}
