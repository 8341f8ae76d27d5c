//! What the dynamic linker reads from an ELF file: the linker's own path, needed libraries, and where to search for
//! them (System V ABI, gABI chapter 5). The file is not trusted.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::Path;

use linux_loader::elf::{Elf64_Phdr, PT_DYNAMIC, PT_INTERP, PT_LOAD};

use crate::boot::elf_headers::ElfHeaders;
use crate::boot::input_file::{read_at, read_object_at};

/// The longest dynamic section that is read, in bytes. That of a library has less than 1 KiB.
const MAX_DYNAMIC: u64 = 1 << 20;
/// The longest string that is read, with its NUL.
const MAX_STRING: usize = 4096;

// Tags of the dynamic section.
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// The dynamic linking of an executable or a library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// The path of the dynamic linker, in an executable only.
    pub linker: Option<String>,
    /// The names of libraries.
    pub needed: Vec<String>,
    /// `DT_RPATH`: where to search for these libraries and for those that they need.
    pub rpath: Option<String>,
    /// `DT_RUNPATH`: where to search for these libraries only.
    pub runpath: Option<String>,
}

/// Reads the file at `path`. `None` if it is not a dynamically linked ELF file for x86-64, or if it is cut off.
///
/// # Errors
///
/// The file cannot be opened or read.
pub fn read(path: &Path) -> io::Result<Option<Dynamic>> {
    let file = File::open(path)?;
    let Ok(ElfHeaders { segments, .. }) = ElfHeaders::read(&file)? else { return Ok(None) };
    let segment = |kind| segments.iter().find(|segment| segment.p_type == kind);
    let Some(section) = segment(PT_DYNAMIC) else { return Ok(None) };
    let linker = segment(PT_INTERP).map(|segment| string(&file, segment.p_offset)).transpose()?.flatten();
    let mut dynamic = Dynamic { linker, ..Dynamic::default() };
    let offsets = (0..section.p_filesz.min(MAX_DYNAMIC)).step_by(size_of::<[u64; 2]>());
    let entries = offsets.map(|offset| read_object_at::<[u64; 2]>(&file, section.p_offset.saturating_add(offset)));
    let entries = entries.take_while(|entry| !matches!(entry, Ok([DT_NULL, _]))).collect::<io::Result<Vec<_>>>()?;
    // The address of the string table is one in memory, in a loaded segment.
    let strings = entries.iter().find(|[tag, _]| *tag == DT_STRTAB).and_then(|[_, address]| {
        let skip = |segment: &Elf64_Phdr| address.checked_sub(segment.p_vaddr).filter(|skip| *skip < segment.p_filesz);
        let loaded = segments.iter().filter(|segment| segment.p_type == PT_LOAD);
        loaded.filter_map(|segment| Some(skip(segment)?.saturating_add(segment.p_offset))).next()
    });
    let Some(strings) = strings else { return Ok(Some(dynamic)) };
    for [tag, value] in entries.into_iter().filter(|[tag, _]| matches!(*tag, DT_NEEDED | DT_RPATH | DT_RUNPATH)) {
        let Some(text) = string(&file, strings.saturating_add(value))? else { return Ok(None) };
        match tag {
            DT_NEEDED => dynamic.needed.push(text),
            DT_RPATH => dynamic.rpath = Some(text),
            _ => dynamic.runpath = Some(text),
        }
    }
    Ok(Some(dynamic))
}

/// How much of the ELF file at `path` is loaded when it runs; `None` if it is not an ELF file for x86-64.
pub fn loaded_len(path: &Path) -> Option<u64> {
    let headers = ElfHeaders::read(&File::open(path).ok()?).ok()?.ok()?;
    let loaded = headers.segments.iter().filter(|segment| segment.p_type == PT_LOAD);
    loaded.map(|segment| segment.p_offset.saturating_add(segment.p_filesz)).max()
}

/// The string at `offset`; `None` if it does not end with a NUL.
fn string(file: &File, offset: u64) -> io::Result<Option<String>> {
    let mut bytes = vec![0; MAX_STRING];
    let len = read_at(file, &mut bytes, offset)?;
    let text = CStr::from_bytes_until_nul(&bytes[..len]).ok();
    Ok(text.map(|text| text.to_string_lossy().into_owned()))
}
