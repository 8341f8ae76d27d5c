//! Reads ACPI tables as an operating system does: from the RSDP on.

use std::error::Error;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

// ANCHOR: tables
/// Prints the tables to which the RSDP at `rsdp` leads (ACPI 6.5, 5.2.5 to 5.2.8), and the processors of the MADT.
pub fn print(memory: &GuestMemoryMmap, rsdp: u64) -> Result<(), Box<dyn Error>> {
    let signature: [u8; 8] = memory.read_obj(GuestAddress(rsdp))?;
    println!("RSDP '{}'", signature.escape_ascii());
    let xsdt = table(memory, memory.read_obj(GuestAddress(rsdp + 24))?)?;
    for address in xsdt[36..].as_chunks::<8>().0 {
        let address = u64::from_le_bytes(*address);
        let table = table(memory, address)?;
        if table.starts_with(b"APIC") {
            print_processors(&table);
        }
    }
    Ok(())
}

/// Reads one table. Its header has a signature of 4 bytes, and its length in the next 4.
fn table(memory: &GuestMemoryMmap, address: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let len: u32 = memory.read_obj(GuestAddress(address + 4))?;
    let mut table = vec![0; usize::try_from(len)?];
    memory.read_slice(&mut table, GuestAddress(address))?;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    println!("{}: the sum of all bytes is {sum}", table[..4].escape_ascii());
    Ok(table)
}
// ANCHOR_END: tables

// ANCHOR: madt
/// Prints the processors: the entries of type 0 (ACPI 6.5, 5.2.12.2). Entries begin with type and length.
fn print_processors(madt: &[u8]) {
    let mut rest = &madt[44..];
    while let [kind, len, ..] = *rest {
        if let (0, [_, _, _, apic_id, flags, ..]) = (kind, rest) {
            println!("  processor with APIC identifier {apic_id}, enabled: {}", flags & 1);
        }
        rest = rest.get(usize::from(len.max(2))..).unwrap_or_default();
    }
}
// ANCHOR_END: madt
