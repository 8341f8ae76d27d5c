//! KVM's ring of coalesced port writes (Documentation/virt/kvm/api.rst, 4.116).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};

use super::mapping::Mapping;

const PAGE: usize = 4096;
const RING_ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// Guest writes to a port that the hypervisor holds back in a ring.
pub trait Coalescer: fmt::Debug + Send {
    /// Coalesces writes from now on, or no longer.
    ///
    /// # Errors
    ///
    /// The hypervisor rejects the request.
    fn set(&mut self, on: bool) -> io::Result<()>;

    /// Takes the oldest write out of the ring.
    fn pop(&mut self) -> Option<u8>;
}

/// Writes to one port that KVM keeps in a ring instead of exiting (Documentation/virt/kvm/api.rst, 4.116).
#[derive(Debug)]
pub struct CoalescedPort {
    vm: Arc<VmFd>,
    port: u16,
    ring: Mapping,
}

impl CoalescedPort {
    /// Maps the VM's ring through `vcpu`, any of its vCPUs. One value a VM: two would both move the ring's head.
    pub fn new(vm: Arc<VmFd>, vcpu: &VcpuFd, port: u16) -> io::Result<Self> {
        let offset = i64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as i64;
        let ring = Mapping::shared(vcpu, PAGE, offset)?;
        Ok(Self { vm, port, ring })
    }

    fn header(&self) -> *mut kvm_coalesced_mmio_ring {
        self.ring.as_ptr().cast()
    }
}

impl Coalescer for CoalescedPort {
    fn set(&mut self, on: bool) -> io::Result<()> {
        let address = IoEventAddress::Pio(self.port.into());
        let done = match on {
            true => self.vm.register_coalesced_mmio(address, 1),
            false => self.vm.unregister_coalesced_mmio(address, 1),
        };
        done.map_err(io::Error::from)
    }

    fn pop(&mut self) -> Option<u8> {
        let header = self.header();
        // SAFETY: the page begins with the header, both fields are aligned words of it, and `&mut self` makes this the
        // only one to move `first`. `last` is the kernel's.
        let (first, last) =
            unsafe { (AtomicU32::from_ptr(&raw mut (*header).first), AtomicU32::from_ptr(&raw mut (*header).last)) };
        let at = first.load(Ordering::Relaxed);
        if at == last.load(Ordering::Acquire) || at >= RING_ENTRIES {
            return None;
        }
        // SAFETY: `at` is inside the ring, whose entries follow the header to the end of the page; the kernel does not
        // write an entry between publishing it through `last` and our moving `first` past it.
        let entry = unsafe {
            let entries: *const kvm_coalesced_mmio = header.add(1).cast();
            entries.add(at as usize).read_volatile()
        };
        first.store((at + 1) % RING_ENTRIES, Ordering::Release);
        Some(entry.data[0])
    }
}
