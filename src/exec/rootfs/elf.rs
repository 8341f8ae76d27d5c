//! What an executable says of its dynamic linking: its linker, the libraries it needs, and where to look for them (System V ABI,
//! gABI chapter 5).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::elf::{ELFDATA2LSB, Elf64_Ehdr, Elf64_Phdr, PT_DYNAMIC, PT_INTERP, PT_LOAD};
use vm_memory::ByteValued;

const ELFCLASS64: u8 = 2;
const EM_X86_64: u16 = 62;
const MAX_SEGMENTS: u16 = 128;
/// Far more than any library has, in bytes.
const MAX_TABLE: u64 = 64 << 20;
const MAX_STRING: usize = 4096;

// Tags of the dynamic section.
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What a dynamically linked file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// The dynamic linker; libraries name none.
    pub linker: Option<String>,
    /// Names of libraries.
    pub needed: Vec<String>,
    /// Where they are looked for, as `DT_RPATH` has it: for the libraries' own libraries too.
    pub rpath: Option<String>,
    /// Where they are looked for, as `DT_RUNPATH` has it: for these alone.
    pub runpath: Option<String>,
}

/// Reads the file at `path`. `None` if it is no 64-bit executable or library for x86-64, or a static one.
pub fn read(path: &Path) -> io::Result<Option<Dynamic>> {
    let file = File::open(path)?;
    match inspect(&file) {
        Ok(found) => Ok(found),
        // What is cut off is as little an executable as a text is.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// How much of the executable at `path` is loaded when it runs; `None` if it is none.
pub fn loaded_len(path: &Path) -> Option<u64> {
    let (_, segments) = segments(&File::open(path).ok()?).ok()??;
    let loaded = segments.iter().filter(|it| it.p_type == PT_LOAD);
    loaded.map(|it| it.p_offset.saturating_add(it.p_filesz)).max()
}

/// The headers of a 64-bit executable or library for x86-64.
fn segments(file: &File) -> io::Result<Option<(Elf64_Ehdr, Vec<Elf64_Phdr>)>> {
    let header: Elf64_Ehdr = object(file, 0)?;
    let is_ours = header.e_ident[..4] == *b"\x7fELF"
        && header.e_ident[4] == ELFCLASS64
        && header.e_ident[5] == ELFDATA2LSB
        && header.e_machine == EM_X86_64
        && usize::from(header.e_phentsize) == size_of::<Elf64_Phdr>()
        && header.e_phnum <= MAX_SEGMENTS;
    if !is_ours {
        return Ok(None);
    }
    let at = |n: u64| header.e_phoff.saturating_add(n * size_of::<Elf64_Phdr>() as u64);
    let segments = (0..header.e_phnum.into()).map(|n| object(file, at(n))).collect::<Result<_, _>>()?;
    Ok(Some((header, segments)))
}

fn inspect(file: &File) -> io::Result<Option<Dynamic>> {
    let Some((_, segments)) = segments(file)? else { return Ok(None) };
    let segment = |kind| segments.iter().find(|segment| segment.p_type == kind);
    let mut found = Dynamic::default();
    if let Some(linker) = segment(PT_INTERP) {
        found.linker = Some(string(file, linker.p_offset)?);
    }
    let Some(section) = segment(PT_DYNAMIC) else { return Ok(None) };
    let mut table = vec![0; section.p_filesz.min(MAX_TABLE) as usize];
    file.read_exact_at(&mut table, section.p_offset)?;
    let entries: Vec<(u64, u64)> = table.chunks_exact(16).map(entry).take_while(|(tag, _)| *tag != 0).collect();
    let Some((_, strings)) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB) else { return Ok(Some(found)) };
    // The table's address is one in memory.
    let holder = segments.iter().find(|segment| {
        segment.p_type == PT_LOAD && strings.checked_sub(segment.p_vaddr).is_some_and(|skip| skip < segment.p_filesz)
    });
    let Some(holder) = holder else { return Ok(Some(found)) };
    let strings = (strings - holder.p_vaddr).saturating_add(holder.p_offset);
    for (tag, value) in entries {
        let text = || string(file, strings.saturating_add(value));
        match tag {
            DT_NEEDED => found.needed.push(text()?),
            DT_RPATH => found.rpath = Some(text()?),
            DT_RUNPATH => found.runpath = Some(text()?),
            _ => {}
        }
    }
    Ok(Some(found))
}

/// A tag and its value.
fn entry(bytes: &[u8]) -> (u64, u64) {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    (word(0), word(8))
}

fn object<T: ByteValued + Default>(file: &File, at: u64) -> io::Result<T> {
    let mut value = T::default();
    file.read_exact_at(value.as_mut_slice(), at)?;
    Ok(value)
}

/// The text at `at`, up to a NUL.
fn string(file: &File, at: u64) -> io::Result<String> {
    let mut bytes = vec![0; MAX_STRING];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], at.saturating_add(len as u64))? {
            0 => break,
            n => len += n,
        }
    }
    let end = bytes[..len].iter().position(|byte| *byte == 0).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}
