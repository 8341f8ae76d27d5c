//! Minimal valid kernel images. The unit tests of `boot` and a benchmark use them too.

/// An address at which a kernel may be loaded.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The offset of an ELF image's program header. A header has 56 bytes.
pub const PROGRAM_HEADER: usize = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;

/// A 64-bit ELF executable for x86-64 with one segment: `code`, which is loaded and entered at 1 MiB.
pub fn elf(code: &[u8]) -> Vec<u8> {
    elf_with(code, &[])
}

/// The same with a note segment that names `entry` as the PVH entry point.
pub fn pvh(code: &[u8], entry: u32) -> Vec<u8> {
    with_note(code, 18, b"Xen\0", entry) // XEN_ELFNOTE_PHYS32_ENTRY
}

/// The same with a note of this type, name and description.
pub fn with_note(code: &[u8], kind: u32, name: &[u8], description: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [u32::try_from(name.len()).unwrap(), 4, kind] {
        note.extend(word.to_le_bytes());
    }
    note.extend(name);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(description.to_le_bytes());
    elf_with(code, &note)
}

fn elf_with(code: &[u8], note: &[u8]) -> Vec<u8> {
    let segments: u16 = if note.is_empty() { 1 } else { 2 };
    let code_at = PROGRAM_HEADER as u64 + u64::from(segments * PROGRAM_HEADER_SIZE);
    let note_at = code_at + code.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(); // 64 bits, little-endian, version 1
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]); // an executable, for x86-64, version 1
    for word in [HIGH_RAM, PROGRAM_HEADER as u64, 0] {
        image.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    for half in [0, 0, 64, PROGRAM_HEADER_SIZE, segments, 0, 0, 0] {
        image.extend(half.to_le_bytes()); // flags (4 bytes), sizes and counts of headers
    }
    let mut segment = |kind: u32, offset: u64, address: u64, size: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(7u32.to_le_bytes()); // readable, writable, executable
        for word in [offset, address, address, size, size, 4] {
            image.extend(word.to_le_bytes());
        }
    };
    segment(1, code_at, HIGH_RAM, code.len() as u64);
    if !note.is_empty() {
        segment(4, note_at, 0, note.len() as u64);
    }
    image.extend(code);
    image.extend(note);
    image
}

// Offsets in a bzImage (Documentation/arch/x86/boot.rst).
pub const SETUP_SECTS: usize = 0x1f1;
pub const SYSSIZE: usize = 0x1f4;
pub const VERSION: usize = 0x206;
pub const INITRD_ADDR_MAX: usize = 0x22c;
pub const XLOADFLAGS: usize = 0x236;
pub const CMDLINE_SIZE: usize = 0x238;
pub const PREF_ADDRESS: usize = 0x258;
pub const INIT_SIZE: usize = 0x260;
/// The bytes of the setup header.
pub const SETUP_HEADER: std::ops::Range<usize> = SETUP_SECTS..0x268;
/// The offset of the protected-mode code: after the boot sector and one sector of setup code.
pub const PROTECTED_MODE: usize = 1024;
/// The offset of the 64-bit entry point in that code.
pub const ENTRY_64: usize = 0x200;

/// A bzImage of protocol 2.15 that is loaded at 1 MiB and runs `code` from its 64-bit entry.
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    let len = (PROTECTED_MODE + ENTRY_64 + code.len()).next_multiple_of(16);
    let mut image = vec![0; len];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_SECTS, &[1]);
    put(SYSSIZE, &((len - PROTECTED_MODE) / 16).to_le_bytes()[..4]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(VERSION, &0x20fu16.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x214, &HIGH_RAM.to_le_bytes()[..4]);
    put(INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes()); // alignment
    put(0x234, &[1]); // relocatable
    put(XLOADFLAGS, &1u16.to_le_bytes()); // has a 64-bit entry
    put(CMDLINE_SIZE, &2047u32.to_le_bytes());
    put(PREF_ADDRESS, &HIGH_RAM.to_le_bytes());
    put(INIT_SIZE, &0x1000u32.to_le_bytes());
    put(PROTECTED_MODE + ENTRY_64, code);
    image
}

/// A cpio archive (newc) of one file, padded as cpio(1) pads it.
pub fn cpio(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in [(name, content), ("TRAILER!!!", b"")] {
        let fields = [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive
}
