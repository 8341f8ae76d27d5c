//! The Linux boot protocol for x86: what a boot loader puts where (Documentation/arch/x86/boot.rst).

use std::error::Error;

use kickvm::boot::long_mode::GDT_64;
use linux_loader::loader::bootparam::{XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

// ANCHOR: map
pub const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
pub const PAGE_TABLES: u64 = 0x8000;
const COMMAND_LINE: u64 = 0x2_0000;
/// The end of the RAM below video memory and firmware.
const LOW_RAM_END: u64 = 0xa_0000;
const KERNEL: u64 = 0x10_0000;
/// The distance of the 64-bit entry point from the start of the kernel.
const ENTRY_64: u64 = 0x200;
// ANCHOR_END: map

/// What the vCPU starts with.
#[derive(Debug)]
pub struct Entry {
    pub rip: u64,
    pub rsi: u64,
}

/// Loads a bzImage, an initramfs and a kernel command line into `ram` bytes of RAM.
pub fn load(
    memory: &GuestMemoryMmap,
    ram: u64,
    image: &[u8],
    initramfs: &[u8],
    cmdline: &str,
) -> Result<Entry, Box<dyn Error>> {
    // ANCHOR: header
    let header = image.get(0x1f1..0x1f1 + size_of::<setup_header>()).ok_or("the kernel is too short")?;
    let header = *setup_header::from_slice(header).ok_or("the header is not aligned")?;
    let (magic, version, xloadflags) = (header.header, header.version, header.xloadflags);
    if magic.to_le_bytes() != *b"HdrS" || version < 0x20c || xloadflags & XLF_KERNEL_64 == 0 {
        return Err("this is not a bzImage with a 64-bit entry".into());
    }
    println!("boot protocol {}.{}", version >> 8, version & 0xff);
    // ANCHOR_END: header

    // ANCHOR: copy
    // The boot sector and the 16-bit setup code come first. Only a BIOS runs them.
    let setup_len = 512 * (usize::from(if header.setup_sects == 0 { 4 } else { header.setup_sects }) + 1);
    memory.write_slice(image.get(setup_len..).ok_or("the kernel is cut off")?, GuestAddress(KERNEL))?;
    // The kernel unpacks itself upward from its start, so the initramfs is at the other end.
    let initramfs_start = (ram - initramfs.len() as u64) & !0xfff;
    memory.write_slice(initramfs, GuestAddress(initramfs_start))?;
    memory.write_slice(format!("{cmdline}\0").as_bytes(), GuestAddress(COMMAND_LINE))?;
    // ANCHOR_END: copy

    // ANCHOR: zero_page
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = 0xff; // a loader without a number
    params.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE)?;
    params.hdr.ramdisk_image = u32::try_from(initramfs_start)?;
    params.hdr.ramdisk_size = u32::try_from(initramfs.len())?;
    params.e820_entries = 2; // the memory map
    params.e820_table[0] = boot_e820_entry { addr: 0, size: LOW_RAM_END, r#type: 1 };
    params.e820_table[1] = boot_e820_entry { addr: KERNEL, size: ram - KERNEL, r#type: 1 };
    memory.write_obj(params, GuestAddress(ZERO_PAGE))?;
    // ANCHOR_END: zero_page

    write_processor_tables(memory)?;
    Ok(Entry { rip: KERNEL + ENTRY_64, rsi: ZERO_PAGE })
}

// ANCHOR: tables
/// Writes the GDT, and page tables that map the first GiB to itself.
fn write_processor_tables(memory: &GuestMemoryMmap) -> Result<(), Box<dyn Error>> {
    memory.write_obj(GDT_64, GuestAddress(GDT))?;
    memory.write_obj(PAGE_TABLES + 0x1000 | 3, GuestAddress(PAGE_TABLES))?;
    memory.write_obj(PAGE_TABLES + 0x2000 | 3, GuestAddress(PAGE_TABLES + 0x1000))?;
    for n in 0..512u64 {
        memory.write_obj(n << 21 | 0x83, GuestAddress(PAGE_TABLES + 0x2000 + n * 8))?;
    }
    Ok(())
}
// ANCHOR_END: tables
