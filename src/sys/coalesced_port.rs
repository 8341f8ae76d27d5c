//! KVM's ring of coalesced port writes: KVM stores the writes to a port in it instead of exiting
//! (Documentation/virt/kvm/api.rst, 4.116).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};

use super::mapping::Mapping;

const PAGE: usize = 4096;
/// As in `KVM_COALESCED_MMIO_MAX` (linux/kvm.h).
#[expect(clippy::cast_possible_truncation, reason = "the ring has one page")]
const RING_ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// A ring of guest writes to a port.
pub trait Coalescer: fmt::Debug + Send {
    /// Switches coalescing on or off.
    ///
    /// # Errors
    ///
    /// The hypervisor rejects the request.
    fn set(&mut self, on: bool) -> io::Result<()>;

    /// Removes the oldest write from the ring.
    fn pop(&mut self) -> Option<u8>;
}

/// The coalesced writes to one port.
#[derive(Debug)]
pub struct CoalescedPort {
    vm: Arc<VmFd>,
    port: u16,
    ring: Mapping,
}

impl CoalescedPort {
    /// Maps the ring of `vm` through any of its vCPUs. Create one value per VM: two would both move the ring's head.
    ///
    /// # Errors
    ///
    /// The error of mmap(2).
    pub fn new(vm: Arc<VmFd>, vcpu: &VcpuFd, port: u16) -> io::Result<Self> {
        let offset = (u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as u64).cast_signed();
        let ring = Mapping::shared(vcpu, PAGE, offset)?;
        Ok(Self { vm, port, ring })
    }
}

impl Coalescer for CoalescedPort {
    fn set(&mut self, on: bool) -> io::Result<()> {
        let address = IoEventAddress::Pio(self.port.into());
        Ok(match on {
            true => self.vm.register_coalesced_mmio(address, 1),
            false => self.vm.unregister_coalesced_mmio(address, 1),
        }?)
    }

    fn pop(&mut self) -> Option<u8> {
        let header: *mut kvm_coalesced_mmio_ring = self.ring.as_ptr().cast();
        // SAFETY: the page begins with the header, of which both fields are aligned words. Only this function writes
        // `first`, through `&mut self`; only the kernel writes `last`.
        let (first, last) =
            unsafe { (AtomicU32::from_ptr(&raw mut (*header).first), AtomicU32::from_ptr(&raw mut (*header).last)) };
        let at = first.load(Ordering::Relaxed);
        if at == last.load(Ordering::Acquire) || at >= RING_ENTRIES {
            return None;
        }
        // SAFETY: `at` is inside the ring, whose entries follow the header up to the end of the page. The kernel does
        // not write an entry between publishing it through `last` and the store to `first` below.
        let entry = unsafe {
            let entries: *const kvm_coalesced_mmio = header.add(1).cast();
            entries.add(at as usize).read_volatile()
        };
        first.store((at + 1) % RING_ENTRIES, Ordering::Release);
        Some(entry.data[0])
    }
}
