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
pub use error::{Error, Role, Size};
pub use kernel::{Entry, Protocol};

use initramfs::Initramfs;
use kernel::Kernel;
use layout::{COMMAND_LINE, COMMAND_LINE_ROOM, HIGH_RAM, MMIO_GAP, PAGE_SIZE, PVH_START_INFO, ZERO_PAGE};
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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
pub struct Payload<'a> {
    /// The kernel.
    pub image: &'a Image,
    /// Archives that together are the first root file system.
    pub initramfs: &'a [PathBuf],
    /// The kernel command line, without a NUL.
    pub cmdline: &'a str,
    /// Number of vCPUs, for the tables.
    pub cpus: u8,
}

/// An initramfs in guest memory.
#[derive(Clone, Copy, Debug)]
struct Placed {
    start: u64,
    len: u64,
}

/// Loads `payload` into `memory` and returns how to start it.
pub fn load(memory: &GuestMemoryMmap, payload: &Payload) -> Result<Entry, Error> {
    acpi::write(memory, payload.cpus)?;
    reset_vector::write(memory)?;
    match payload.image {
        Image::File(path) => load_file(memory, payload, path),
        Image::Raw(code) => {
            memory.write_slice(code, GuestAddress(HIGH_RAM))?;
            finish(memory, payload, Protocol::Elf, HIGH_RAM, None, None)
        }
    }
}

fn load_file(memory: &GuestMemoryMmap, payload: &Payload, path: &Path) -> Result<Entry, Error> {
    let mut kernel = Kernel::open(path)?;
    let mut initramfs = Initramfs::open(payload.initramfs)?;
    let max = kernel.cmdline_max.min(COMMAND_LINE_ROOM as usize - 1);
    if payload.cmdline.len() > max {
        return Err(Error::CommandLine { len: payload.cmdline.len(), max });
    }
    let placed = place(memory, &kernel, initramfs.len())?;
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
    let placed = (placed.len > 0).then_some(placed);
    finish(memory, payload, kernel.protocol, kernel.entry, kernel.setup, placed)
}

/// Finds room for `len` bytes of initramfs: as high as it may be, so that it is out of the kernel's way.
fn place(memory: &GuestMemoryMmap, kernel: &Kernel, len: u64) -> Result<Placed, Error> {
    let ram = memory.iter().next().map_or(0, |region| region.len()); // RAM below the gap is the first region
    let top = ram.min(kernel.initramfs_max.saturating_add(1));
    let start = top.checked_sub(len).map(|start| start - start % PAGE_SIZE).filter(|start| *start >= kernel.end);
    match start {
        Some(start) if kernel.end <= ram => Ok(Placed { start, len }),
        _ if len == 0 && kernel.end <= ram => Ok(Placed { start: 0, len }),
        _ => {
            let least = kernel.end.saturating_add(len).saturating_add(PAGE_SIZE);
            let what = if len > 0 { "It and the initramfs need" } else { "It needs" };
            let why =
                format!("{what} memory up to {}, but a guest has {} below 4 GiB at most", Size(least), Size(MMIO_GAP));
            if least > MMIO_GAP.min(kernel.initramfs_max.saturating_add(1).max(kernel.end)) {
                return Err(kernel.source.bad(why));
            }
            // Linux itself wants some RAM for its own; a power of two is what people give.
            let suggestion = Size(least.saturating_add(32 << 20).next_power_of_two().min(MMIO_GAP));
            let (ram, needed, initramfs) = (Size(ram), Size(kernel.end), Size(len));
            Err(Error::NoRoom { ram, kernel: kernel.source.path.clone(), needed, initramfs, suggestion })
        }
    }
}

/// Writes what the boot protocol hands over.
fn finish(
    memory: &GuestMemoryMmap,
    payload: &Payload,
    protocol: Protocol,
    address: u64,
    setup: Option<linux_loader::loader::bootparam::setup_header>,
    initramfs: Option<Placed>,
) -> Result<Entry, Error> {
    memory.write_slice(payload.cmdline.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + payload.cmdline.len() as u64))?;
    let boot_data = match protocol {
        Protocol::Pvh => {
            long_mode::write_gdt(memory, long_mode::GDT_32)?;
            pvh::write(memory, initramfs)?;
            PVH_START_INFO
        }
        Protocol::BzImage | Protocol::Elf => {
            long_mode::write_gdt(memory, long_mode::GDT_64)?;
            long_mode::write_page_tables(memory)?;
            zero_page::write(memory, payload.cmdline, setup, initramfs)?;
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
