//! The guest's RAM: its mappings, huge pages, and KVM memory slots.
//!
//! [`GuestRam`] owns the mappings. Devices access them through [`GuestMemoryMmap`], by volatile and atomic accesses
//! only: the guest may change its RAM at any time.
//!
//! This floor may import `event` and `sys`.
//!
//! ```
//! use kickvm::memory::GuestRam;
//! use vm_memory::{Bytes, GuestAddress};
//!
//! let ram = GuestRam::new([(0, 1 << 20)].into_iter())?;
//! ram.memory().write_slice(b"kickvm", GuestAddress(0x1000))?;
//! assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0x1001))?, b'i');
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::sys::mapping::Mapping;

/// The size of a large page. Linux backs guest RAM with large pages only where host and guest addresses agree in their
/// low 21 bits (KVM, `kvm_alloc_memslot_metadata`). The guest then causes about a tenth of the page faults.
const HUGE_PAGE: usize = 2 << 20;
/// The size of a small page.
const PAGE_SIZE: usize = 4 << 10;

/// The guest's RAM. The host allocates a page when the guest or a device first touches it.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    regions: Vec<Arc<GuestRegionMmap>>,
    mappings: Vec<Mapping>,                 // the regions point into them
    read_only: Mutex<Vec<Arc<MmapRegion>>>, // what `map_read_only` has mapped
}

impl Drop for GuestRam {
    /// Unmaps the RAM, unless a clone of `memory` or one of its regions still exists: the clone's owner may access the
    /// pages, so they stay mapped until the process ends.
    fn drop(&mut self) {
        let unshared = |region: &Arc<GuestRegionMmap>| {
            Arc::strong_count(region) == 2 && Arc::strong_count(&region.get_mmap()) == 2 // `regions` and `memory`
        };
        if !self.regions.iter().all(unshared) {
            std::mem::take(&mut self.mappings).into_iter().for_each(std::mem::forget);
        }
    }
}

impl GuestRam {
    /// Maps RAM for each of `ranges` (guest-physical start, length in bytes).
    ///
    /// # Errors
    ///
    /// A range is larger than the address space, two ranges overlap, or the error of mmap(2).
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
            // SAFETY: `skip` is less than HUGE_PAGE, so `len` bytes from there are inside the mapping. The advice
            // changes no content. A kernel without large pages rejects it, which does no harm.
            let region = unsafe {
                let aligned = mapping.as_ptr().add(skip);
                libc::madvise(aligned.cast(), len, libc::MADV_HUGEPAGE);
                libc::madvise(aligned.cast(), len, libc::MADV_DONTFORK); // a child process does not need it
                MmapRegion::build_raw(aligned, len, libc::PROT_READ | libc::PROT_WRITE, flags)
            };
            let region = region.map_err(io::Error::other)?;
            regions.push(Arc::new(GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(too_large)?));
            mappings.push(mapping);
        }
        let memory = GuestMemoryMmap::from_arc_regions(regions.clone()).map_err(io::Error::other)?;
        Ok(Self { memory, regions, mappings, read_only: Mutex::default() })
    }

    /// Returns the RAM, for accesses from the host's side.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Adds the RAM to `vm`, one memory slot per region.
    ///
    /// # Errors
    ///
    /// The error of KVM_SET_USER_MEMORY_REGION.
    pub(crate) fn register(&self, vm: &VmFd) -> io::Result<()> {
        self.regions.iter().enumerate().try_for_each(|(slot, region)| {
            // SAFETY: the region is guest RAM, which stays mapped while this value lives.
            unsafe { set_slot(vm, slot, region.start_addr().0, region, region.size(), 0) }
        })
    }

    /// Maps the first `len` bytes of `pages` at `address` of `vm`. The guest reads them without an exit. Its writes
    /// exit, as they do outside RAM.
    ///
    /// # Errors
    ///
    /// The error of KVM_SET_USER_MEMORY_REGION.
    pub(crate) fn map_read_only(&self, vm: &VmFd, address: u64, pages: &Arc<MmapRegion>, len: usize) -> io::Result<()> {
        let mut mapped = self.read_only.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the guest cannot write to `pages`. This value keeps them mapped while it lives, from the next line
        // on.
        unsafe { set_slot(vm, self.regions.len() + mapped.len(), address, pages, len, KVM_MEM_READONLY) }?;
        mapped.push(pages.clone());
        Ok(())
    }
}

/// Sets a memory slot of `vm` to the first `len` bytes of `pages`.
///
/// # Safety
///
/// `pages` must stay mapped while a vCPU of `vm` runs; each `Vcpu` has an `Arc` of its `GuestRam`. Unless `flags` has
/// `KVM_MEM_READONLY`, they must be guest RAM.
unsafe fn set_slot(vm: &VmFd, slot: usize, addr: u64, pages: &MmapRegion, len: usize, flags: u32) -> io::Result<()> {
    let (slot, guest_phys_addr) = (u32::try_from(slot).map_err(io::Error::other)?, addr);
    let (memory_size, userspace_addr) = (len.min(pages.size()) as u64, pages.as_ptr() as u64);
    let region = kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
    // SAFETY: the slot is inside `pages`. The caller keeps them mapped.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
}

/// Returns the whole pages among `len` bytes of guest RAM at `address` to the host, for a guest that does not need
/// their content: they read as zeros when it touches them again. Does nothing if the range is not inside RAM.
pub fn discard(memory: &GuestMemoryMmap, address: GuestAddress, len: usize) {
    let Ok(slice) = memory.get_slice(address, len) else { return };
    let guard = slice.ptr_guard_mut();
    let skip = guard.as_ptr().align_offset(PAGE_SIZE);
    let len = len.saturating_sub(skip) & !(PAGE_SIZE - 1);
    if len > 0 {
        // SAFETY: `skip` plus `len` bytes are inside the slice. It is guest RAM, an anonymous mapping to which no Rust
        // reference exists, so its content may change at any time.
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
