//! Exercise 02a: walk the page tables, as the processor does.
//!
//! Chapter 2 has tables of three levels, because each entry of the third maps 2 MiB. An entry without LARGE_PAGE names
//! a page table, the fourth level, whose entries map 4 KiB each.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PRESENT: u64 = 1 << 0;
const LARGE_PAGE: u64 = 1 << 7;
/// The bits of an entry that are an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Returns the guest-physical address of a virtual address, or `None` if it is not mapped.
pub fn translate(memory: &GuestMemoryMmap, cr3: u64, address: u64) -> Option<u64> {
    let mut table = cr3 & ADDRESS;
    // The bits of the address that select the entry begin at bit 39, 30, 21 and 12.
    for shift in [39, 30, 21, 12] {
        let index = address >> shift & 511;
        let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).ok()?;
        table = entry & ADDRESS;
        // TODO: an entry may be absent, and may map a large page.
        let _ = (PRESENT, LARGE_PAGE);
    }
    Some(table | address & 0xfff)
}
