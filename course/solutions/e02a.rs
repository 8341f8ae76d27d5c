//! Solution of exercise 02a: walk the page tables, as the processor does.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PRESENT: u64 = 1 << 0;
const LARGE_PAGE: u64 = 1 << 7;
/// The bits of an entry that are an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Returns the guest-physical address of a virtual address, or `None` if it is not mapped.
pub fn translate(memory: &GuestMemoryMmap, cr3: u64, address: u64) -> Option<u64> {
    let mut table = cr3 & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let index = address >> shift & 511;
        let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        table = entry & ADDRESS;
        if entry & LARGE_PAGE != 0 && shift < 39 {
            let offset = (1 << shift) - 1;
            return Some(table & !offset | address & offset);
        }
    }
    Some(table | address & 0xfff)
}
