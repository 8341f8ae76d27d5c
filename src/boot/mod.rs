//! From files to guest memory: kernel, initramfs, command line, the tables that describe the machine.
//!
//! [`load`] looks at everything first and writes only when all of it fits, so that a bad file is an error before
//! anything runs.

mod acpi;
mod bzimage;
mod elf;
mod error;
mod initramfs;
mod kernel;
pub mod layout;
pub mod long_mode;
mod pvh;
mod reset_vector;
mod source;
mod zero_page;

pub use acpi::POWER_BUTTON_GSI;
pub use error::{ByteSize, Error, Role};
pub use kernel::{Entry, Protocol};

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use initramfs::Initramfs;
use kernel::Kernel;
use layout::{COMMAND_LINE, COMMAND_LINE_ROOM, HIGH_RAM, MMIO_GAP, PAGE_SIZE, PVH_START_INFO, ZERO_PAGE};

/// What a guest is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A kernel file.
    File(PathBuf),
    /// Machine code that runs from 1 MiB in 64-bit mode, as the demonstration's guest does.
    Raw(&'static [u8]),
}

/// What [`load`] puts into guest memory.
#[derive(Clone, Copy, Debug)]
pub struct BootParams<'a> {
    /// The kernel.
    pub image: &'a Image,
    /// Archives that together are the first root file system.
    pub initramfs: &'a [PathBuf],
    /// Files that are packed into one more archive, laid over the others.
    pub root: Option<&'a crate::exec::rootfs::Root>,
    /// The kernel command line, without a NUL.
    pub cmdline: &'a str,
    /// Number of vCPUs, for the tables.
    pub cpus: u8,
    /// Whether there is a second serial port.
    pub wake_line: bool,
    /// Number of virtio devices, for the tables; they are at the first of [`layout::virtio_slots`].
    pub virtio: usize,
}

/// An initramfs in guest memory.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    len: u64,
}

/// Loads `params` into `memory` and returns how to start it.
pub fn load(memory: &GuestMemoryMmap, params: &BootParams) -> Result<Entry, Error> {
    load_noting(memory, params, &mut |_| {})
}

/// Loads `params` into `memory` and returns how to start it. What of `params.root` had to be left out goes to `note`.
pub fn load_noting(
    memory: &GuestMemoryMmap,
    params: &BootParams,
    note: &mut dyn FnMut(String),
) -> Result<Entry, Error> {
    acpi::write(memory, params.cpus, params.virtio, params.wake_line)?;
    reset_vector::write(memory)?;
    match params.image {
        Image::File(path) => load_file(memory, params, path, note),
        Image::Raw(code) => {
            memory.write_slice(code, GuestAddress(HIGH_RAM))?;
            finish(memory, params.cmdline, Protocol::Elf, HIGH_RAM, None, None)
        }
    }
}

fn load_file(
    memory: &GuestMemoryMmap,
    params: &BootParams,
    path: &Path,
    note: &mut dyn FnMut(String),
) -> Result<Entry, Error> {
    let mut kernel = Kernel::open(path)?;
    let mut initramfs = Initramfs::open(params.initramfs)?;
    let max = kernel.cmdline_max.min(COMMAND_LINE_ROOM as usize - 1);
    let len = params.cmdline.len() + if params.root.is_some() { RAMFS.len() } else { 0 };
    if len > max {
        return Err(Error::CommandLine { len, max });
    }
    let slack = if params.root.is_some() { ROOT_ALIGNMENT } else { 0 };
    let mut placed = place(memory, &kernel, initramfs.len() + slack)?;
    if params.root.is_some() {
        placed.len = initramfs.len();
        // How long the packed archive gets is known when it is there, so all archives lie as low as they may.
        placed.start = kernel.end.next_multiple_of(ROOT_ALIGNMENT);
    }
    initramfs.verify()?;
    kernel.load(memory)?;
    for (offset, source) in initramfs.placed() {
        // It fits, as `place` has seen: what can fail is reading.
        let at = GuestAddress(placed.start + offset);
        let len = source.len as usize;
        memory
            .read_exact_volatile_from(at, &mut source.file, len)
            .map_err(|error| source.unreadable(std::io::Error::other(error.to_string())))?;
    }
    let mut cmdline = Cow::from(params.cmdline);
    if let Some(root) = params.root {
        let packed = crate::exec::rootfs::pack(memory, &room_for_root(memory, &kernel, placed), root, note)?;
        placed.len += packed.len;
        let free = ram_size(memory).saturating_sub(kernel.end).saturating_sub(placed.len);
        if !fits_tmpfs(packed, free) {
            cmdline = format!("{RAMFS}{cmdline}").into();
        }
    }
    let placed = (placed.len > 0).then_some(placed);
    finish(memory, &cmdline, kernel.protocol, kernel.entry, kernel.setup, placed)
}

/// Asks Linux for a first root file system without a limit.
const RAMFS: &str = "rootfstype=ramfs ";
/// Whether a tmpfs takes it. Linux lets one have half of the memory that is free when it begins to unpack, and an inode for each
/// page of that half. A ramfs has no limit.
fn fits_tmpfs(packed: crate::exec::rootfs::Packed, free: u64) -> bool {
    packed.unpacked.max(packed.entries * PAGE_SIZE) <= free / 2 - free / 16
}

/// Where a packed archive begins, so that it and the guest's RAM can share large pages.
const ROOT_ALIGNMENT: u64 = 2 << 20;

/// Where the packed archive may be: behind those in `placed`, up to where the kernel takes no more.
fn room_for_root(memory: &GuestMemoryMmap, kernel: &Kernel, placed: Range) -> crate::exec::rootfs::Room {
    let low = memory.iter().next().map_or(0, |region| region.len()); // RAM below the gap is the first region
    crate::exec::rootfs::Room {
        start: placed.start + placed.len,
        end: low.min(kernel.initramfs_max.saturating_add(1)),
        most: MMIO_GAP.min(kernel.initramfs_max.saturating_add(1)),
        ram: ram_size(memory),
    }
}

/// Finds room for `len` bytes of initramfs: as high as it may be, so that it is out of the kernel's way.
fn place(memory: &GuestMemoryMmap, kernel: &Kernel, len: u64) -> Result<Range, Error> {
    let ram = memory.iter().next().map_or(0, |region| region.len()); // RAM below the gap is the first region
    let top = ram.min(kernel.initramfs_max.saturating_add(1));
    let start = top.checked_sub(len).map(|start| start - start % PAGE_SIZE).filter(|start| *start >= kernel.end);
    match start {
        Some(start) if kernel.end <= ram => Ok(Range { start, len }),
        _ if len == 0 && kernel.end <= ram => Ok(Range { start: 0, len }),
        _ => {
            let least = kernel.end.saturating_add(len).saturating_add(PAGE_SIZE);
            let what = if len > 0 { "It and the initramfs need" } else { "It needs" };
            let why = format!(
                "{what} memory up to {}, but a guest has {} below 4 GiB at most",
                ByteSize(least),
                ByteSize(MMIO_GAP)
            );
            if least > MMIO_GAP.min(kernel.initramfs_max.saturating_add(1).max(kernel.end)) {
                return Err(kernel.source.bad(why));
            }
            // Linux itself wants some RAM for its own; a power of two is what people give.
            let suggestion = ByteSize(least.saturating_add(32 << 20).next_power_of_two().min(MMIO_GAP));
            let (ram, needed, initramfs) = (ByteSize(ram), ByteSize(kernel.end), ByteSize(len));
            Err(Error::NoRoom { ram, kernel: kernel.source.path.clone(), needed, initramfs, suggestion })
        }
    }
}

/// Writes what the boot protocol hands over.
fn finish(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    protocol: Protocol,
    address: u64,
    setup: Option<linux_loader::loader::bootparam::setup_header>,
    initramfs: Option<Range>,
) -> Result<Entry, Error> {
    memory.write_slice(cmdline.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + cmdline.len() as u64))?;
    let boot_data = match protocol {
        Protocol::Pvh => {
            long_mode::write_gdt(memory, long_mode::GDT_32)?;
            pvh::write(memory, initramfs)?;
            PVH_START_INFO
        }
        Protocol::BzImage | Protocol::Elf => {
            long_mode::write_gdt(memory, long_mode::GDT_64)?;
            long_mode::write_page_tables(memory)?;
            zero_page::write(memory, cmdline, setup, initramfs)?;
            ZERO_PAGE
        }
    };
    Ok(Entry { protocol, address: GuestAddress(address), boot_data: GuestAddress(boot_data) })
}

/// Bytes of RAM in `memory`.
fn ram_size(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().map(|region| region.len()).sum()
}

#[cfg(test)]
mod tests;
