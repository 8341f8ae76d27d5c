//! ELF kernel images: an uncompressed vmlinux, or another guest that is built as an executable.

use linux_loader::elf::{Elf64_Nhdr, Elf64_Phdr, PT_INTERP, PT_LOAD, PT_NOTE, PT_TLS};

use super::elf_headers::ElfHeaders;
use super::error::Error;
use super::image::{CMDLINE_MAX, Kernel, Protocol};
use super::input_file::InputFile;
use super::layout::{HIGH_RAM, MMIO_GAP};

/// The part of a note segment that is searched, in bytes. The notes of Linux have less than 1 KiB.
const MAX_NOTES: u64 = 64 << 10;
/// The note that holds the PVH entry point (Xen, xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// The note by which the C library states the oldest kernel that a program runs on (elf.h).
const NT_GNU_ABI_TAG: u32 = 1;

/// Checks the headers of `file` and calculates where the kernel will lie.
pub(super) fn inspect(file: InputFile) -> Result<Kernel, Error> {
    let headers = ElfHeaders::read(&file.file).map_err(|error| file.unreadable(error))?;
    let ElfHeaders { entry, segments } = headers.map_err(|why| file.unusable(why))?;
    let mut notes = Notes::default();
    for segment in &segments {
        match segment.p_type {
            PT_NOTE => notes.read(&file, segment)?,
            PT_INTERP | PT_TLS => notes.is_program = true,
            _ => {}
        }
    }
    let Notes { pvh, is_linux, is_program } = notes;
    if is_program {
        return Err(file.unusable("it is a program for Linux, not a kernel"));
    }
    let mut end = 0;
    let is_loaded = |segment: &&Elf64_Phdr| segment.p_type == PT_LOAD && (segment.p_memsz > 0 || segment.p_filesz > 0);
    for segment in segments.iter().filter(is_loaded) {
        end = end.max(segment_end(&file, segment)?);
    }
    let (protocol, entry) = pvh.map_or((Protocol::Elf, entry), |entry| (Protocol::Pvh, entry.into()));
    if end == 0 {
        return Err(file.unusable("it has no segment to load"));
    }
    if !(HIGH_RAM..end).contains(&entry) {
        return Err(file.unusable(format!("its entry point {entry:#x} is outside its segments")));
    }
    Ok(Kernel { entry, protocol, end, initramfs_end: MMIO_GAP, cmdline_max: CMDLINE_MAX, setup: None, is_linux, file })
}

/// What the notes of an image contain.
#[derive(Debug, Default)]
struct Notes {
    pvh: Option<u32>,
    /// It has a note of Linux (include/linux/elfnote.h; since 4.19).
    is_linux: bool,
    is_program: bool,
}

/// Checks a segment to load and returns the end of its memory.
fn segment_end(file: &InputFile, segment: &Elf64_Phdr) -> Result<u64, Error> {
    let Elf64_Phdr { p_paddr: start, p_offset: offset, p_filesz: file_size, p_memsz: size, .. } = *segment;
    if start < HIGH_RAM {
        return Err(file.unusable(format!("its load address {start:#x} is below 1 MiB")));
    }
    if offset.checked_add(file_size).is_none_or(|end| end > file.len) {
        return Err(file.unusable(format!("it is cut off: a segment ends after its {} bytes", file.len)));
    }
    let end = start.checked_add(size).filter(|_| file_size <= size);
    end.ok_or_else(|| file.unusable("its ELF program headers are invalid"))
}

impl Notes {
    /// Reads a note segment.
    fn read(&mut self, file: &InputFile, segment: &Elf64_Phdr) -> Result<(), Error> {
        let mut at = segment.p_offset;
        let end = at.saturating_add(segment.p_filesz.min(MAX_NOTES)).min(file.len);
        while at < end {
            let note: Elf64_Nhdr = file.peek_object(at)?;
            let name = at + size_of::<Elf64_Nhdr>() as u64;
            let description = name + u64::from(note.n_namesz).next_multiple_of(4);
            let starts_with = |start: &[u8; 4]| Ok::<_, Error>(note.n_namesz >= 4 && file.peek(name)? == *start);
            self.is_linux |= starts_with(b"Linu")?;
            self.is_program |= note.n_type == NT_GNU_ABI_TAG && starts_with(b"GNU\0")?;
            if self.pvh.is_none() && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && starts_with(b"Xen\0")? {
                self.pvh = Some(u32::from_le_bytes(file.peek(description)?));
            }
            at = description + u64::from(note.n_descsz).next_multiple_of(4);
        }
        Ok(())
    }
}
