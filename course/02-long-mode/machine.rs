//! A VM with one vCPU in 64-bit mode. The programs of later chapters use it, too.

use std::error::Error;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

// ANCHOR: map
/// Size of the guest's RAM, which begins at address 0: less than page 0 maps.
const RAM: usize = 0x18_0000;
// Each page table has 512 entries of 8 bytes: one page.
const PML4: GuestAddress = GuestAddress(0x1000);
const PAGE_DIRECTORY_POINTERS: GuestAddress = GuestAddress(0x2000);
/// Its entry number n maps the 2 MiB at n × 2 MiB.
const PAGE_DIRECTORY: GuestAddress = GuestAddress(0x3000);
/// The first instruction. The stack ends here, too.
const CODE: GuestAddress = GuestAddress(0x10_0000);
// ANCHOR_END: map

// ANCHOR: bits
// Intel SDM volume 3: 2.5 (control registers), 2.2.1 (EFER), table 4-18 (page-table entries).
pub const CR0_PE: u64 = 1 << 0; // protected mode
pub const CR0_PG: u64 = 1 << 31; // paging
pub const CR4_PAE: u64 = 1 << 5; // page-table entries of 8 bytes
pub const EFER_LME: u64 = 1 << 8; // long mode enabled: the guest has requested it
pub const EFER_LMA: u64 = 1 << 10; // long mode active
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7; // the entry maps 2 MiB and is not a table
// ANCHOR_END: bits

/// A VM that is ready to run.
pub struct Machine {
    // Fields are dropped in this order: the VM is closed before its RAM is unmapped.
    pub vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Machine {
    /// Creates a VM whose vCPU begins at the first byte of `guest`.
    pub fn new(guest: &[u8]) -> Result<Self, Box<dyn Error>> {
        let vm = Kvm::new()?.create_vm()?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)])?;
        let slot = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
            ..Default::default()
        };
        // SAFETY: the slot is one whole mapping, which lives longer than the VM, see `Machine`.
        unsafe { vm.set_user_memory_region(slot)? };
        memory.write_slice(guest, CODE)?;

        // ANCHOR: tables
        memory.write_obj(PAGE_DIRECTORY_POINTERS.0 | PRESENT_WRITABLE, PML4)?;
        memory.write_obj(PAGE_DIRECTORY.0 | PRESENT_WRITABLE, PAGE_DIRECTORY_POINTERS)?;
        memory.write_obj(LARGE_PAGE | PRESENT_WRITABLE, PAGE_DIRECTORY)?;
        // ANCHOR_END: tables

        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        enter_long_mode(&mut sregs);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&kvm_regs { rip: CODE.0, rsp: CODE.0, rflags: 2, ..Default::default() })?;
        Ok(Self { vcpu, _vm: vm, _memory: memory })
    }
}

// ANCHOR: sregs
/// Sets the system registers as a boot loader leaves them for a 64-bit kernel.
fn enter_long_mode(sregs: &mut kvm_sregs) {
    // Present, not a system segment, limit in pages: all 4 GiB from address 0. 64-bit mode ignores base and limit.
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, l: 1, ..flat }; // code, 64-bit
    let data = kvm_segment { selector: 0x18, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr3 = PML4.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
}
// ANCHOR_END: sregs

// ANCHOR: guest
/// Assembles a guest into this program. `$name` is its machine code, padded to 256 bytes.
macro_rules! guest {
    ($name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl ", stringify!($name)), // the symbol is used in another object file
            concat!(stringify!($name), ":"),
            $($line,)+
            concat!(".org ", stringify!($name), " + 256, 0"),
            ".popsection",
        );
        unsafe extern "C" {
            // SAFETY: the lines above define 256 bytes at this symbol, in a section that is never written.
            safe static $name: [u8; 256];
        }
    };
}
pub(crate) use guest;
// ANCHOR_END: guest
