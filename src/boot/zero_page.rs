//! The zero page, `boot_params`: the data that the Linux boot protocol passes to a kernel
//! (Documentation/arch/x86/zero-page.rst).

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{ACPI_TABLES, COMMAND_LINE, ZERO_PAGE, memory_map};
use super::{Error, ram_size};

// Fields of the setup header (Documentation/arch/x86/boot.rst).
/// `type_of_loader` of a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// `kernel_alignment` for an ELF kernel: `CONFIG_PHYSICAL_ALIGN` is at most 16 MiB.
const ALIGNMENT: u32 = 1 << 24;

/// Writes the zero page. `setup` is the header of a bzImage; an ELF image has none and gets the necessary fields.
#[expect(clippy::cast_possible_truncation, reason = "addresses and lengths are below the MMIO gap")]
pub(super) fn write(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    setup: Option<setup_header>,
    initramfs: Range<u64>,
) -> Result<(), Error> {
    let elf =
        setup_header { boot_flag: BOOT_FLAG, header: HEADER_MAGIC, kernel_alignment: ALIGNMENT, ..Default::default() };
    let mut params = boot_params { acpi_rsdp_addr: ACPI_TABLES, hdr: setup.unwrap_or(elf), ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if !initramfs.is_empty() {
        params.hdr.ramdisk_image = initramfs.start as u32;
        params.hdr.ramdisk_size = (initramfs.end - initramfs.start) as u32;
    }
    for (entry, (addr, size, kind)) in params.e820_table.iter_mut().zip(memory_map(ram_size(memory))) {
        *entry = boot_e820_entry { addr, size, r#type: kind as u32 };
        params.e820_entries += 1;
    }
    Ok(memory.write_obj(params, GuestAddress(ZERO_PAGE))?)
}
