//! Everything about KVM that the compiler cannot check: the rim of unsafe code around the rest of the VMM.
//!
//! Five things reach past Rust's rules here: guest RAM (mapped memory that a guest writes too), the `kvm_run` page that
//! the kernel shares with a vCPU, the coalescing ring that it shares with a VM, the signal that gets a vCPU thread
//! out of `KVM_RUN`, and ports, by which kickvm inside a guest reaches the one outside.

use super::exit::VmExit;
use crate::device::serial::Coalescer;
use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_INTERNAL_ERROR_EMULATION, KVM_MEM_READONLY, kvm_coalesced_mmio,
    kvm_coalesced_mmio_ring, kvm_run, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use std::arch::asm;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

// ---- Mapped memory -------------------------------------------------------------------------------------------------

/// Host and guest addresses that agree in their low 21 bits can share 2 MiB pages: a tenth of the page faults.
const HUGE_PAGE: usize = 2 << 20;

/// An anonymous or file mapping that is unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone; what is done through the pointer is up to the owners of a `Mapping`.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` has no method that writes through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel picks free addresses, so no memory of ours changes.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, fd, offset) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start: start.cast(), len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are a whole mapping made by `new`, and its owner is going away.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

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
            let mapping = Mapping::new(room, flags, -1, 0)?;
            let skip = mapping.start.as_ptr().align_offset(HUGE_PAGE);
            // SAFETY: `skip` is less than HUGE_PAGE, so `len` bytes from there lie inside the mapping. The hint to use
            // large pages changes no content; that a kernel may not know it does no harm.
            let region = unsafe {
                let aligned = mapping.start.as_ptr().add(skip);
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

// ---- The kvm_run page ----------------------------------------------------------------------------------------------

/// The page that the kernel shares with a vCPU, and the data pages behind it. This is a mapping of its own beside the one
/// that `VcpuFd` has, so that no reference of that one's is in the way of the pointers made here.
#[derive(Debug)]
pub(super) struct RunPage(Mapping);

impl RunPage {
    /// Maps the `size` bytes that the kernel shares with `vcpu` (`KVM_GET_VCPU_MMAP_SIZE`).
    pub fn new(vcpu: &VcpuFd, size: usize) -> io::Result<Self> {
        Mapping::new(size.max(size_of::<kvm_run>()), libc::MAP_SHARED, vcpu.as_raw_fd(), 0).map(Self)
    }

    fn run(&self) -> *mut kvm_run {
        self.0.start.as_ptr().cast()
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping is larger than a `kvm_run`, whose `immediate_exit` is one byte; on our side it is reached
        // through this function and the kick's handler only, each time as an atomic.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).immediate_exit) }
    }

    /// Reads the exit that the last `KVM_RUN` left.
    pub fn last_exit(&mut self) -> VmExit<'_> {
        let page = self.0.start.as_ptr();
        // SAFETY: the mapping holds a whole `kvm_run`, which the kernel writes only during KVM_RUN; `&mut self` keeps this
        // the only way to it while what is returned lives. The fields made references here are not `immediate_exit`,
        // the one that a signal handler writes.
        let (reason, exit) = unsafe { ((*self.run()).exit_reason, &mut (*self.run()).__bindgen_anon_1) };
        match reason {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason says that this member of the union is the one in use.
                let io = unsafe { exit.io };
                let len = (usize::from(io.size) * io.count as usize).min(self.0.len - size_of::<kvm_run>());
                // SAFETY: the kernel puts `count` items of `size` bytes at `data_offset`, a page behind the `kvm_run`'s start
                // and inside the mapping.
                let data = unsafe { std::slice::from_raw_parts_mut(page.add(io.data_offset as usize), len) };
                let size = usize::from(io.size).max(1);
                match u32::from(io.direction) {
                    KVM_EXIT_IO_IN => VmExit::PortRead { port: io.port, size, data },
                    _ => VmExit::PortWrite { port: io.port, size, data },
                }
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the exit reason says that this member of the union is the one in use.
                let mmio = unsafe { &mut exit.mmio };
                let len = (mmio.len as usize).min(mmio.data.len());
                let data = &mut mmio.data[..len];
                match mmio.is_write {
                    0 => VmExit::MmioRead { address: mmio.phys_addr, data },
                    _ => VmExit::MmioWrite { address: mmio.phys_addr, data },
                }
            }
            KVM_EXIT_SHUTDOWN => VmExit::TripleFault,
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says that this member of the union is the one in use.
                let entry = unsafe { exit.fail_entry };
                VmExit::FailedEntry { hardware_reason: entry.hardware_entry_failure_reason }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says that `internal` is in use, whose fields `emulation_failure` repeats.
                let failure = unsafe { exit.emulation_failure };
                let mut code = [0; 15];
                let mut len = 0;
                // The kernel tells the instruction only with this suberror, enough data words, and this flag
                // (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, linux/kvm.h).
                if failure.suberror == KVM_INTERNAL_ERROR_EMULATION && failure.ndata >= 3 && failure.flags & 1 != 0 {
                    // SAFETY: the union has one variant, in use when the flag is set.
                    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
                    code = instruction.insn_bytes;
                    len = usize::from(instruction.insn_size).min(code.len());
                }
                VmExit::InternalError { suberror: failure.suberror, code, len }
            }
            reason => VmExit::Other { reason },
        }
    }
}

// ---- The kick out of KVM_RUN ---------------------------------------------------------------------------------------

// What a thread's word says: nothing to kick, a kick that came before there was anything, or where to put it.
const NOTHING: usize = 0;
const KICKED: usize = 1;

thread_local! {
    // Constant and without a destructor, so reading it from a signal handler is a plain memory access.
    static WORD: AtomicUsize = const { AtomicUsize::new(NOTHING) };
}

/// The signal that kicks a vCPU thread.
pub(super) fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    WORD.with(|word| match word.load(Ordering::Relaxed) {
        NOTHING | KICKED => word.store(KICKED, Ordering::Relaxed),
        // SAFETY: any other value is the address of this thread's `immediate_exit`, put there by `Kickable`, which
        // takes it away again, on this same thread, before the page is unmapped.
        address => unsafe { AtomicU8::from_ptr(address as *mut u8) }.store(1, Ordering::Relaxed),
    });
}

/// Installs the handler of [`kick_signal`], and lets the signal through to this thread and those it starts, whatever mask
/// this process was started with. To be called before the first vCPU thread starts.
pub(super) fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)?;
    unblock_signal(kick_signal()).map_err(|error| io::Error::other(error.to_string()))
}

/// While this lives, a kick of this thread ends the current or the next `KVM_RUN` of one vCPU.
#[derive(Debug)]
pub(super) struct Kickable<'a> {
    /// The vCPU's shared page, to read exits from.
    pub page: &'a mut RunPage,
}

impl<'a> Kickable<'a> {
    /// Lets kicks of the calling thread reach the vCPU that `page` belongs to, one that came before included.
    pub fn new(page: &'a mut RunPage) -> Self {
        let address = page.immediate_exit().as_ptr() as usize;
        if WORD.with(|word| word.swap(address, Ordering::Relaxed)) == KICKED {
            page.immediate_exit().store(1, Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
        Self { page }
    }

    /// Takes note of a kick. What the kicker wrote before it is visible from here on.
    pub fn acknowledge(&mut self) {
        self.page.immediate_exit().store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        WORD.with(|word| word.store(NOTHING, Ordering::Relaxed));
        compiler_fence(Ordering::SeqCst);
    }
}

// ---- The coalescing ring -------------------------------------------------------------------------------------------

const PAGE: usize = 4096;
const RING_ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

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
        let ring = Mapping::new(PAGE, libc::MAP_SHARED, vcpu.as_raw_fd(), offset)?;
        Ok(Self { vm, port, ring })
    }

    fn header(&self) -> *mut kvm_coalesced_mmio_ring {
        self.ring.start.as_ptr().cast()
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

// ---- Ports, from inside a guest --------------------------------------------------------------------------------------

/// Ports of the machine that this process itself runs in, which it may touch as root.
#[derive(Debug)]
pub(crate) struct Ports {
    first: u16,
    count: u16,
}

impl Ports {
    /// Asks the kernel for `count` ports from `first` on. They must be those of a device that leaves this process's memory alone,
    /// but for what is only accessed as memory that others change too.
    pub(crate) fn open(first: u16, count: u16) -> io::Result<Self> {
        Self::permit(first, count, true)?;
        Ok(Self { first, count })
    }

    /// Gives them back, for a program that is started does not need them.
    pub(crate) fn close(first: u16, count: u16) {
        let _ = Self::permit(first, count, false); // this process may never have had them
    }

    fn permit(first: u16, count: u16, on: bool) -> io::Result<()> {
        // SAFETY: the call takes no pointer and touches none of this process's memory.
        match unsafe { libc::ioperm(first.into(), count.into(), on.into()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads the port `offset` behind the first; all ones if that is none of these.
    pub(crate) fn read(&self, offset: u16) -> u8 {
        let mut byte = 0xff;
        if offset < self.count {
            // SAFETY: the kernel lets this process read the port (`self` is the proof), whose device leaves its memory alone.
            unsafe {
                asm!("in al, dx", out("al") byte, in("dx") self.first.wrapping_add(offset), options(nomem, nostack, preserves_flags));
            }
        }
        byte
    }

    /// Writes to the port `offset` behind the first, after all that was written to memory before.
    pub(crate) fn write(&self, offset: u16, byte: u8) {
        if offset < self.count {
            // SAFETY: as in `read`. Without `nomem` the compiler has all of memory written before.
            unsafe {
                asm!("out dx, al", in("dx") self.first.wrapping_add(offset), in("al") byte, options(nostack, preserves_flags))
            };
        }
    }
}
