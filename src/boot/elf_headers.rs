//! The headers of a 64-bit ELF file for x86-64, a kernel or another executable (System V ABI, gABI chapters 4 and 5).
//!
//! The file is not trusted: a header outside the file reads as zeros, and the number of headers is limited.

use std::fs::File;
use std::io;

use linux_loader::elf::{EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, Elf64_Ehdr, Elf64_Phdr};

use super::input_file::read_object_at;

/// The most program headers of a file that is accepted. Kernels and libraries have about ten.
const MAX_SEGMENTS: u16 = 128;

/// The entry point and the program headers.
#[derive(Debug)]
pub(crate) struct ElfHeaders {
    pub entry: u64,
    pub segments: Vec<Elf64_Phdr>,
}

impl ElfHeaders {
    /// Reads the headers of `file`. The inner error states why it is not an ELF file for this machine.
    ///
    /// # Errors
    ///
    /// `file` cannot be read.
    pub fn read(file: &File) -> io::Result<Result<Self, String>> {
        let header: Elf64_Ehdr = read_object_at(file, 0)?;
        let ident = &header.e_ident;
        if !ident.starts_with(b"\x7fELF") || ident[EI_CLASS] != ELFCLASS64 || ident[EI_DATA] != ELFDATA2LSB {
            return Ok(Err("it is not a 64-bit little-endian ELF image".to_owned()));
        }
        if header.e_machine != EM_X86_64 {
            return Ok(Err(format!("it is not built for x86-64 (ELF machine {})", header.e_machine)));
        }
        if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > MAX_SEGMENTS {
            return Ok(Err("its ELF program headers are invalid".to_owned()));
        }
        let offset = |n: u64| header.e_phoff.saturating_add(n * size_of::<Elf64_Phdr>() as u64);
        let segments = (0..header.e_phnum.into()).map(|n| read_object_at(file, offset(n)));
        Ok(Ok(Self { entry: header.e_entry, segments: segments.collect::<Result<_, _>>()? }))
    }
}
