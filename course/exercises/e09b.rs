//! Exercise 09b: the processors of the MADT.
//!
//! Linux starts the processors that the MADT lists: one entry of type 0 for each (ACPI 6.5, 5.2.12.2). Its 8 bytes are
//! type, length, processor number, APIC identifier, and flags (4 bytes in little endian; bit 0: enabled).

/// Returns the entries of processors 0 to `cpus - 1`. The APIC identifier of a processor is its number.
pub fn processors(cpus: u8) -> Vec<u8> {
    // TODO: this is only the first processor.
    let _ = cpus;
    vec![0, 8, 0, 0, 1, 0, 0, 0]
}
