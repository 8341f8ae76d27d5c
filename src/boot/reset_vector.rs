//! The only part of a BIOS in this machine: the instructions at the reset vector.
//!
//! On hardware-reduced ACPI, a kernel with EFI support reboots through EFI. This machine has no EFI, so the kernel
//! jumps to the BIOS in real mode (Linux, arch/x86/kernel/reboot.c: `BOOT_EFI`, then `BOOT_BIOS`). Stock distribution
//! kernels do so.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Error;
use super::layout::RESET_VECTOR;

/// 16-bit code that pulses the reset line through the i8042.
const CODE: [u8; 7] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

/// Writes the reset vector.
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), Error> {
    Ok(memory.write_slice(&CODE, GuestAddress(RESET_VECTOR))?)
}
