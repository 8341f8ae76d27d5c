//! Solution of exercise 09b: the processors of the MADT.

/// Returns the entries of processors 0 to `cpus - 1`. The APIC identifier of a processor is its number.
pub fn processors(cpus: u8) -> Vec<u8> {
    (0..cpus).flat_map(|id| [0, 8, id, id, 1, 0, 0, 0]).collect()
}
