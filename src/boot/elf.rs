//! ELF: the uncompressed vmlinux, and other guests that come as an executable.

use linux_loader::elf::{ELFDATA2LSB, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::error::Error;
use super::kernel::{CMDLINE_MAX, Kernel, Protocol};
use super::layout::{HIGH_RAM, MMIO_GAP};
use super::source::Source;

// ELF header fields: e_ident[4..6], and e_machine (System V ABI, gABI 4.1).
const EI_CLASS: usize = 4;
const EI_DATA: usize = 5;
const ELFCLASS64: u8 = 2;
const EM_X86_64: u16 = 62;
/// More program headers than any kernel has.
const MAX_SEGMENTS: u16 = 128;
/// Longest note segment looked at, in bytes.
const MAX_NOTES: u64 = 64 << 10;
/// The note that holds the PVH entry point (Xen, xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Reads the headers of `source` and works out where the kernel will be.
pub(super) fn inspect(source: Source) -> Result<Kernel, Error> {
    let header: Elf64_Ehdr = read(&source, 0)?;
    if header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB {
        return Err(source.bad("It is not a 64-bit little-endian ELF image"));
    }
    if header.e_machine != EM_X86_64 {
        return Err(source.bad(format!("It is for another machine than x86-64 (ELF machine {})", header.e_machine)));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > MAX_SEGMENTS {
        return Err(source.bad("Its ELF program headers are broken"));
    }
    let mut end = 0;
    let mut pvh = None;
    for n in 0..u64::from(header.e_phnum) {
        let at = n.checked_mul(size_of::<Elf64_Phdr>() as u64).and_then(|skip| skip.checked_add(header.e_phoff));
        let segment: Elf64_Phdr = read(&source, at.unwrap_or(u64::MAX))?;
        match segment.p_type {
            PT_LOAD if segment.p_memsz > 0 || segment.p_filesz > 0 => {
                end = end.max(inspect_segment(&source, &segment)?)
            }
            PT_NOTE => pvh = pvh.or(find_pvh_entry(&source, &segment)?),
            _ => {}
        }
    }
    let (protocol, entry) = match pvh {
        Some(entry) => (Protocol::Pvh, u64::from(entry)),
        None => (Protocol::Elf, header.e_entry),
    };
    if end == 0 {
        return Err(source.bad("It has no segment to load"));
    }
    if !(HIGH_RAM..end).contains(&entry) {
        return Err(source.bad(format!("Its entry point {entry:#x} is outside its segments")));
    }
    Ok(Kernel { entry, protocol, end, initramfs_max: MMIO_GAP - 1, cmdline_max: CMDLINE_MAX, setup: None, source })
}

/// Checks a segment to load and returns the address behind it.
fn inspect_segment(source: &Source, segment: &Elf64_Phdr) -> Result<u64, Error> {
    let Elf64_Phdr { p_paddr: start, p_offset: offset, p_filesz: file_size, p_memsz: size, .. } = *segment;
    if start < HIGH_RAM {
        return Err(source.bad(format!("It wants to be loaded at {start:#x}, below 1 MiB")));
    }
    match offset.checked_add(file_size) {
        Some(end) if end <= source.len => {}
        _ => return Err(source.bad(format!("It is cut off: a segment ends behind its {} bytes", source.len))),
    }
    match start.checked_add(size) {
        Some(end) if file_size <= size => Ok(end),
        _ => Err(source.bad("Its ELF program headers are broken")),
    }
}

/// Looks through a note segment for the PVH entry point.
fn find_pvh_entry(source: &Source, segment: &Elf64_Phdr) -> Result<Option<u32>, Error> {
    let mut at = segment.p_offset;
    let end = at.saturating_add(segment.p_filesz.min(MAX_NOTES)).min(source.len);
    while at < end {
        let note: Elf64_Nhdr = read(source, at)?;
        let name = at + size_of::<Elf64_Nhdr>() as u64;
        let description = name + u64::from(note.n_namesz).next_multiple_of(4);
        if note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && source.peek::<4>(name)? == *b"Xen\0" {
            return Ok(Some(u32::from_le_bytes(source.peek(description)?)));
        }
        at = description + u64::from(note.n_descsz).next_multiple_of(4);
    }
    Ok(None)
}

fn read<T: ByteValued + Default>(source: &Source, offset: u64) -> Result<T, Error> {
    const LONGEST: usize = 64; // the ELF header; the other structures are shorter
    let bytes: [u8; LONGEST] = source.peek(offset)?;
    let mut value = T::default();
    let len = size_of::<T>();
    value.as_mut_slice().copy_from_slice(&bytes[..len]);
    Ok(value)
}

/// Copies the segments to their addresses.
pub(super) fn load(kernel: &mut Kernel, memory: &GuestMemoryMmap) -> Result<(), Error> {
    // Given an offset the loader leaves the notes alone, which `inspect` has read already, and with a limit.
    Elf::load(memory, Some(GuestAddress(0)), &mut kernel.source.file, None)
        .map(drop)
        .map_err(|error| kernel.source.bad(error.to_string()))
}
