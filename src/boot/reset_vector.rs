//! All there is of a BIOS: the instructions at the reset vector.
//!
//! A kernel with EFI support on hardware-reduced ACPI reboots through EFI, and where there is none (as here) by a jump to
//! the BIOS in real mode (Linux, arch/x86/kernel/reboot.c: `BOOT_EFI`, then `BOOT_BIOS`). Stock distribution kernels do.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Error;
use super::layout::RESET_VECTOR;

/// 16-bit code that pulses the i8042's reset line.
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
