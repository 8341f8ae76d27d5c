//! From files to guest memory: kernel, initramfs, kernel command line, ACPI tables, and what the processor needs to
//! start.
//!
//! [`load`] checks every file, and that all of them fit in RAM, before it copies one. A generated archive is checked
//! while it is written. `kernel` detects the format of a
//! kernel, `bzimage` or `elf` checks its headers, and `zero_page` or `pvh` writes what the kernel reads first.
//! [`layout`] has every guest-physical address. This floor may import `event`, `sys`, `memory` and `device`.
//!
//! ```
//! use kickvm::boot::{self, BootParams, Image, layout};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)])?;
//! let entry = boot::load(
//!     &memory,
//!     &BootParams {
//!         image: &Image::Raw(&[0xf4]), // hlt
//!         initramfs: &[],
//!         initramfs_source: None,
//!         cmdline: "quiet",
//!         cpus: 1,
//!         second_serial: false,
//!         virtio_devices: 0,
//!     },
//! )?;
//! assert_eq!(entry.address, GuestAddress(layout::HIGH_RAM));
//! assert_eq!(memory.read_obj::<u8>(entry.address)?, 0xf4);
//! assert_eq!(memory.read_obj::<[u8; 6]>(GuestAddress(layout::COMMAND_LINE))?, *b"quiet\0");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod acpi;
mod bzimage;
pub(crate) mod decompress;
mod elf;
pub(crate) mod elf_headers;
mod embedded_config;
mod error;
mod image;
pub(crate) mod initramfs;
mod initramfs_source;
pub(crate) mod input_file;
mod kernel;
mod kernel_path;
mod kernel_release;
pub mod layout;
pub mod long_mode;
mod pvh;
mod zero_page;

pub use acpi::POWER_BUTTON_GSI;
pub use embedded_config::embedded_config;
pub use error::{ByteSize, Error};
pub use image::{Entry, Image, Protocol};
pub use initramfs_source::{InitramfsSource, SourceError, Written};
pub(crate) use kernel_path::{MODULE_DIRECTORIES, RELEASE_FILE, retain_distinct};
pub use kernel_path::{default_kernel, find_kernel};
pub use kernel_release::kernel_release;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use image::Kernel;
use input_file::{InputFile, read_at};
use layout::{COMMAND_LINE, COMMAND_LINE_ROOM, GDT, HIGH_RAM, MMIO_GAP, PAGE_SIZE, PVH_START_INFO, ZERO_PAGE};

/// What [`load`] writes to guest memory.
#[derive(Clone, Copy, Debug)]
pub struct BootParams<'a> {
    /// The kernel.
    pub image: &'a Image,
    /// Initramfs files, in order. A raw image is loaded without an initramfs.
    pub initramfs: &'a [PathBuf],
    /// Generates one more archive, which follows those of `initramfs`.
    pub initramfs_source: Option<&'a dyn InitramfsSource>,
    /// The kernel command line, without a NUL.
    pub cmdline: &'a str,
    /// Number of vCPUs in the ACPI tables.
    pub cpus: u8,
    /// Whether the ACPI tables describe a second serial port (COM2).
    pub second_serial: bool,
    /// Number of virtio devices in the ACPI tables; they are at the first of [`layout::virtio_slots`].
    pub virtio_devices: usize,
}

/// Alignment of a generated archive, so that it and the guest's RAM can share huge pages.
const SOURCE_ALIGNMENT: u64 = 2 << 20;
/// Makes Linux use a ramfs, which has no size limit, as the first root file system instead of a tmpfs.
const RAMFS: &str = "rootfstype=ramfs ";

/// The only part of a BIOS in this machine: 16-bit code at the reset vector that pulses the reset line through the
/// i8042.
///
/// On hardware-reduced ACPI, a kernel with EFI support reboots through EFI. This machine has no EFI, so the kernel
/// jumps to the BIOS in real mode (Linux, arch/x86/kernel/reboot.c: `BOOT_EFI`, then `BOOT_BIOS`). Stock distribution
/// kernels do so.
const RESET_CODE: [u8; 7] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

/// Loads `params` into `memory`, whose RAM ranges are those of [`layout::ram_ranges`]. Returns how to start the guest.
///
/// # Errors
///
/// A file cannot be read or is not what its option needs, the command line is too long, the initramfs cannot be
/// generated, or `memory` is too small.
pub fn load(memory: &GuestMemoryMmap, params: &BootParams) -> Result<Entry, Error> {
    acpi::write(memory, params)?;
    memory.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))?;
    match params.image {
        Image::File(path) => load_file(memory, params, path),
        Image::Raw(code) => {
            memory.write_slice(code, GuestAddress(HIGH_RAM))?;
            write_boot_data(memory, params.cmdline, Protocol::Elf, HIGH_RAM, None, 0..0)
        }
    }
}

fn load_file(memory: &GuestMemoryMmap, params: &BootParams, path: &Path) -> Result<Entry, Error> {
    let mut kernel = Kernel::open(path)?;
    let archives = params.initramfs.iter().map(|path| InputFile::open(path, "initramfs"));
    let mut archives = archives.collect::<Result<Vec<_>, _>>()?;
    let archives_len = initramfs::total_len(&archives, params.initramfs_source.is_some());
    let (prefix, slack) = if params.initramfs_source.is_some() { (RAMFS, SOURCE_ALIGNMENT) } else { ("", 0) };
    let (len, max) = (prefix.len() + params.cmdline.len(), kernel.cmdline_max.min(COMMAND_LINE_ROOM - 1));
    if len > max {
        return Err(Error::CommandLine { len, max });
    }
    let mut range = find_range(memory, &kernel, archives_len.saturating_add(slack))?;
    if params.initramfs_source.is_some() {
        // The length of a generated archive is not known yet, so all archives lie as low as possible.
        range.start = kernel.end.next_multiple_of(SOURCE_ALIGNMENT);
        range.end = range.start + archives_len;
    }
    archives.iter().try_for_each(initramfs::verify)?;
    kernel.load(memory)?;
    initramfs::load(&mut archives, memory, range.start)?;
    let mut cmdline = Cow::from(params.cmdline);
    if let Some(source) = params.initramfs_source {
        let free = range.end..low_ram(memory).min(kernel.initramfs_end);
        let written = source.write(memory, free.clone()).map_err(Error::InitramfsSource)?;
        written.check_fit(&source.name(), ram_size(memory), &free, MMIO_GAP.min(kernel.initramfs_end))?;
        range.end += written.len;
        let used = kernel.end + (range.end - range.start);
        if !written.fits_tmpfs(ram_size(memory).saturating_sub(used)) {
            cmdline = format!("{RAMFS}{cmdline}").into();
        }
    }
    let entry = write_boot_data(memory, &cmdline, kernel.protocol, kernel.entry, kernel.setup, range)?;
    Ok(Entry { is_linux: kernel.is_linux, ..entry })
}

/// Finds `len` bytes of RAM for the initramfs: as high as the kernel accepts it, away from the RAM that the kernel uses
/// first.
fn find_range(memory: &GuestMemoryMmap, kernel: &Kernel, len: u64) -> Result<Range<u64>, Error> {
    let ram = low_ram(memory);
    let start = ram.min(kernel.initramfs_end).checked_sub(len).map(|start| start - start % PAGE_SIZE);
    let start = if len == 0 { Some(0) } else { start.filter(|start| *start >= kernel.end) };
    if let Some(start) = start.filter(|_| kernel.end <= ram) {
        return Ok(start..start + len);
    }
    let needed = kernel.end.saturating_add(len).saturating_add(PAGE_SIZE);
    if needed > MMIO_GAP.min(kernel.initramfs_end.max(kernel.end)) {
        let needs = if len > 0 { "it and the initramfs need" } else { "it needs" };
        let (needed, max) = (ByteSize(needed), ByteSize(MMIO_GAP));
        let why = format!("{needs} memory up to {needed}, but a guest has {max} below 4 GiB at most");
        return Err(kernel.file.unusable(why));
    }
    // Linux needs some RAM besides its image.
    let suggestion = ByteSize(round_up_memory(needed.saturating_add(32 << 20)).min(MMIO_GAP));
    let (ram, needed, len, path) = (ByteSize(ram), ByteSize(kernel.end), ByteSize(len), kernel.file.path.display());
    let why = format!(": kernel '{path}' needs {needed}, the initramfs {len}");
    Err(Error::NoRoom { ram, why, needed, suggestion })
}

/// Rounds a size of guest memory up to one that users write: a multiple of 64 MiB, above 1 GiB of 256 MiB.
fn round_up_memory(size: u64) -> u64 {
    let step = if size > 1 << 30 { 256 << 20 } else { 64 << 20 };
    size.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

/// Writes the data of the boot protocol.
fn write_boot_data(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    protocol: Protocol,
    address: u64,
    setup: Option<setup_header>,
    initramfs: Range<u64>,
) -> Result<Entry, Error> {
    let (len, max) = (cmdline.len(), COMMAND_LINE_ROOM - 1);
    if len > max {
        return Err(Error::CommandLine { len, max });
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + cmdline.len() as u64))?;
    let boot_data = match protocol {
        Protocol::Pvh => {
            memory.write_obj(long_mode::GDT_32, GuestAddress(GDT))?;
            pvh::write(memory, initramfs)?;
            PVH_START_INFO
        }
        Protocol::BzImage | Protocol::Elf => {
            memory.write_obj(long_mode::GDT_64, GuestAddress(GDT))?;
            long_mode::write_page_tables(memory)?;
            zero_page::write(memory, cmdline, setup, initramfs)?;
            ZERO_PAGE
        }
    };
    Ok(Entry { protocol, address: GuestAddress(address), is_linux: false, boot_data: GuestAddress(boot_data) })
}

/// Finds `text` in `file`, where `is_next` accepts the byte behind it. Returns the offset of that byte.
fn find_bytes(file: &InputFile, text: &[u8], is_next: impl Fn(u8) -> bool) -> Result<Option<u64>, Error> {
    const PART: usize = 1 << 20;
    let mut part = vec![0; PART + text.len()];
    for offset in (0..file.len).step_by(PART) {
        let len = read_at(&file.file, &mut part, offset).map_err(|error| file.unreadable(error))?;
        let mut windows = part[..len].windows(text.len() + 1);
        if let Some(at) = windows.position(|bytes| bytes.starts_with(text) && is_next(bytes[text.len()])) {
            return Ok(Some(offset + (at + text.len()) as u64));
        }
    }
    Ok(None)
}

/// Bytes of RAM in `memory`.
fn ram_size(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().map(|region| region.len()).sum()
}

/// The end of the RAM below the MMIO gap.
fn low_ram(memory: &GuestMemoryMmap) -> u64 {
    ram_size(memory).min(MMIO_GAP)
}

#[cfg(test)]
mod tests;
