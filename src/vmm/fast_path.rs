//! Exit avoidance for virtio devices: ioeventfds for QueueNotify and InterruptACK, and a read-only memory slot for the
//! registers.
//!
//! KVM waits for a grace period at each of these, some milliseconds in all. So they are not part of the machine's
//! set-up: the first driver that sets DRIVER_OK starts their installation, on a thread of its own, while the guest
//! continues with exits. What fails is left out.

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

/// The fast path of one machine.
pub struct FastPath {
    pub vm: Arc<VmFd>,
    pub ram: Arc<GuestRam>,
    /// The register pages of all devices.
    pub registers: Arc<MmapRegion>,
    /// The address of each device's registers, and the eventfds of its queues, in order.
    devices: Mutex<Vec<(u64, Vec<EventFd>)>>,
    cancelled: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl FastPath {
    /// The fast path of devices of `vm` whose registers are the pages of `registers`. Nothing is installed yet.
    pub fn new(vm: Arc<VmFd>, ram: Arc<GuestRam>, registers: Arc<MmapRegion>) -> Self {
        Self {
            vm,
            ram,
            registers,
            devices: Mutex::default(),
            cancelled: AtomicBool::new(false),
            thread: Mutex::default(),
        }
    }

    /// Adds the next device, whose registers are at the address `registers` and whose queues are notified by
    /// `doorbells`.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn add<'a>(&self, registers: u64, doorbells: impl Iterator<Item = &'a EventFd>) -> io::Result<()> {
        let events = doorbells.map(EventFd::try_clone).collect::<io::Result<_>>()?;
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).push((registers, events));
        Ok(())
    }

    /// Installs the fast path of all devices, on a thread of its own. Only the first call has an effect.
    pub fn install(self: &Arc<Self>) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() && !self.cancelled.load(Ordering::Relaxed) {
            let own = self.clone();
            *thread = thread::Builder::new().name("fast_path".to_owned()).spawn(move || own.install_all()).ok();
        }
    }

    fn install_all(&self) {
        let devices = std::mem::take(&mut *self.devices.lock().unwrap_or_else(PoisonError::into_inner));
        if self.vm.check_extension_raw(KVM_CAP_READONLY_MEM.into()) > 0 {
            let len = devices.len() * REGISTERS;
            let _ = self.ram.map_read_only(&self.vm, VIRTIO_REGISTERS, &self.registers, len);
        }
        let Ok(ignored) = EventFd::new(libc::EFD_CLOEXEC) else { return };
        for (registers, events) in devices {
            let bells = (0..).zip(&events).map(|(index, event)| (QUEUE_NOTIFY, event, index));
            // An acknowledgement of used buffers has no effect.
            for (offset, event, value) in bells.chain([(INTERRUPT_ACK, &ignored, INT_VRING)]) {
                if self.cancelled.load(Ordering::Relaxed) {
                    return;
                }
                let _ = self.vm.register_ioevent(event, &IoEventAddress::Mmio(registers + offset), value);
            }
        }
    }

    /// Cancels what is not installed yet, and waits for the thread.
    pub fn stop(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map(JoinHandle::join);
    }
}
