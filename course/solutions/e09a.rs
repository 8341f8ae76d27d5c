//! Solution of exercise 09a: the checksum of an ACPI table.

/// Completes a table: sets its length and its checksum. The table has 36 bytes or more, the size of the header.
pub fn complete(table: &mut [u8]) {
    let len = u32::try_from(table.len()).unwrap_or(u32::MAX);
    table[4..8].copy_from_slice(&len.to_le_bytes());
    table[9] = 0;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
}
