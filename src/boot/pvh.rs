//! The start info of PVH: what the zero page contains, in a format that other kernels than Linux take too
//! (Xen, xen/include/public/arch-x86/hvm/start_info.h).

use std::ops::Range;

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{ACPI_TABLES, COMMAND_LINE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO, memory_map};
use super::{Error, ram_size};

/// The first version with a memory map.
const VERSION: u32 = 1;

/// Writes the start info, its memory map, and a module for the initramfs unless that is empty.
pub(super) fn write(memory: &GuestMemoryMmap, initramfs: Range<u64>) -> Result<(), Error> {
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI_TABLES,
        memmap_paddr: PVH_MEMORY_MAP,
        ..Default::default()
    };
    if !initramfs.is_empty() {
        let size = initramfs.end - initramfs.start;
        let module = hvm_modlist_entry { paddr: initramfs.start, size, ..Default::default() };
        memory.write_obj(module, GuestAddress(PVH_MODULES))?;
        info.modlist_paddr = PVH_MODULES;
        info.nr_modules = 1;
    }
    let mut at = PVH_MEMORY_MAP;
    for (addr, size, kind) in memory_map(ram_size(memory)) {
        let entry = hvm_memmap_table_entry { addr, size, type_: kind as u32, reserved: 0 };
        memory.write_obj(entry, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
        info.memmap_entries += 1;
    }
    Ok(memory.write_obj(info, GuestAddress(PVH_START_INFO))?)
}
