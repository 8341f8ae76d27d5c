//! What a processor needs in memory to start in 64-bit mode: a GDT, and page tables that map the first 4 GiB to
//! themselves.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{PAGE_SIZE, PAGE_TABLES};

/// Selector of the code segment (Linux's `__BOOT_CS`).
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment (Linux's `__BOOT_DS`).
pub const DATA_SELECTOR: u16 = 0x18;

/// GDT for a 64-bit entry: flat 64-bit code (L=1), flat data (Intel SDM volume 3, 3.4.5).
pub const GDT_64: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// GDT for a PVH entry: flat 32-bit code (D=1), flat data.
pub const GDT_32: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

// Bits of a page-table entry (Intel SDM volume 3, table 4-18).
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
/// Number of page directories; each maps 1 GiB.
const DIRECTORIES: u64 = 4;

/// Writes page tables to [`PAGE_TABLES`] that map the first 4 GiB to themselves, in pages of 2 MiB.
pub(super) fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    let pointers = PAGE_TABLES + PAGE_SIZE;
    let directories = pointers + PAGE_SIZE;
    memory.write_obj(pointers | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    for n in 0..DIRECTORIES {
        let directory = directories + n * PAGE_SIZE;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pointers + n * 8))?;
        let entries = (0..512).flat_map(|i| (n << 30 | i << 21 | LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes());
        memory.write_slice(&entries.collect::<Vec<u8>>(), GuestAddress(directory))?;
    }
    Ok(())
}
