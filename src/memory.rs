//! The guest's RAM: its mappings, huge pages, and KVM memory slots.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::sys::mapping::Mapping;

/// Host and guest addresses that agree in their low 21 bits can share 2 MiB pages: a tenth of the page faults.
const HUGE_PAGE: usize = 2 << 20;

/// The guest's RAM: pages that cost nothing until they are touched.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    regions: Vec<Arc<GuestRegionMmap>>,
    mappings: Vec<Mapping>,             // what the regions point into
    pages: Mutex<Vec<Arc<MmapRegion>>>, // what the guest can read besides
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // `memory` can be cloned and its regions taken out of it. If somebody still has one, its pages stay mapped.
        let alone = |region: &Arc<GuestRegionMmap>| {
            Arc::strong_count(region) == 2 && Arc::strong_count(&region.get_mmap()) == 2 // `memory`'s and ours
        };
        if !self.regions.iter().all(alone) {
            std::mem::take(&mut self.mappings).into_iter().for_each(std::mem::forget);
        }
    }
}

impl GuestRam {
    /// Maps RAM for each of `ranges` (guest-physical start, length in bytes).
    pub fn new(ranges: impl Iterator<Item = (u64, u64)>) -> io::Result<Self> {
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        for (start, len) in ranges {
            let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
            let len = usize::try_from(len).map_err(|_| too_large())?;
            let room = len.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let mapping = Mapping::anonymous(room)?;
            let skip = mapping.as_ptr().align_offset(HUGE_PAGE);
            // SAFETY: `skip` is less than HUGE_PAGE, so `len` bytes from there lie inside the mapping. The hint to use
            // large pages changes no content; that a kernel may not know it does no harm.
            let region = unsafe {
                let aligned = mapping.as_ptr().add(skip);
                libc::madvise(aligned.cast(), len, libc::MADV_HUGEPAGE);
                MmapRegion::build_raw(aligned, len, libc::PROT_READ | libc::PROT_WRITE, flags)
            };
            let region = region.map_err(io::Error::other)?;
            regions.push(Arc::new(GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(too_large)?));
            mappings.push(mapping);
        }
        let memory = GuestMemoryMmap::from_arc_regions(regions.clone()).map_err(io::Error::other)?;
        Ok(Self { memory, regions, mappings, pages: Mutex::default() })
    }

    /// The RAM, for reading and writing from the host's side.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Gives the RAM to `vm`, one memory slot a region.
    pub(crate) fn register(&self, vm: &VmFd) -> io::Result<()> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: the slot covers exactly one region of our own mapping, where nothing but guest RAM lies. Only vCPUs
            // that run reach it, and each `Vcpu` keeps an `Arc` of this value.
            unsafe { vm.set_user_memory_region(slot) }.map_err(io::Error::from)?;
        }
        Ok(())
    }
}

impl GuestRam {
    /// Lets the guest of `vm` read the first `len` bytes of `pages` at `address`, without an exit; its writes there exit as they
    /// do where nothing is.
    pub(crate) fn show(&self, vm: &VmFd, address: u64, pages: &Arc<MmapRegion>, len: usize) -> io::Result<()> {
        let mut shown = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(self.regions.len() + shown.len()).map_err(io::Error::other)?,
            guest_phys_addr: address,
            memory_size: len.min(pages.size()) as u64,
            userspace_addr: pages.as_ptr() as u64,
            flags: KVM_MEM_READONLY,
        };
        // SAFETY: the slot covers no more than one mapping, which the guest cannot write; `self.pages` keeps it for as long as
        // this value lives, of which every `Vcpu` has an `Arc`.
        unsafe { vm.set_user_memory_region(slot) }?;
        shown.push(pages.clone());
        Ok(())
    }
}

const PAGE_SIZE: usize = 4 << 10;

/// Lets the host have the whole pages among `len` bytes of guest RAM, which the guest does not need: they read as zeros when it
/// touches them again. What is not in RAM is left alone.
pub fn discard(memory: &GuestMemoryMmap, address: GuestAddress, len: usize) {
    let Ok(slice) = memory.get_slice(address, len) else { return };
    let guard = slice.ptr_guard_mut();
    let skip = guard.as_ptr().align_offset(PAGE_SIZE);
    let len = len.saturating_sub(skip) & !(PAGE_SIZE - 1);
    if len > 0 {
        // SAFETY: `skip` plus `len` bytes are inside the slice, which is guest RAM: an anonymous mapping to which nobody has
        // Rust references, only volatile accesses, so its content may change at any time.
        unsafe { libc::madvise(guard.as_ptr().add(skip).cast(), len, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn only_whole_pages_in_ram_are_discarded() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 * PAGE_SIZE)]).unwrap();
        memory.write_slice(&[7; 4 * PAGE_SIZE], GuestAddress(0)).unwrap();
        let page = |n: u64| memory.read_obj::<u8>(GuestAddress(n * PAGE_SIZE as u64)).unwrap();
        discard(&memory, GuestAddress(1), 2 * PAGE_SIZE - 1);
        assert_eq!([page(0), page(1), page(2), page(3)], [7, 0, 7, 7]);
        discard(&memory, GuestAddress(3 * PAGE_SIZE as u64), 2 * PAGE_SIZE);
        discard(&memory, GuestAddress(u64::MAX - 10), 100);
        discard(&memory, GuestAddress(2 * PAGE_SIZE as u64), PAGE_SIZE - 1);
        assert_eq!([page(0), page(1), page(2), page(3)], [7, 0, 7, 7]);
    }
}
