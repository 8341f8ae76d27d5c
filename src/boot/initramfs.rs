//! Initramfs files: validated as far as that is cheap, and loaded one after the other.
//!
//! Linux unpacks any number of archives in a row, compressed or not, if each begins at a multiple of 4 bytes
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Files of a later archive replace those of an earlier
//! one.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::error::Error;
use super::input_file::InputFile;

/// Alignment of an archive, and of what follows a header and its name or a file's content.
pub(crate) const ALIGNMENT: u64 = 4;
/// The magic number of the "new ASCII" cpio format.
pub(crate) const MAGIC: &[u8; 6] = b"070701";
/// The same format with check sums, which Linux ignores.
const MAGIC_WITH_CHECK_SUMS: &[u8; 6] = b"070702";
/// Length of a cpio header: the magic number and 13 fields of 8 hexadecimal digits.
pub(crate) const HEADER_LEN: usize = 110;
/// Offsets of the header fields `c_filesize` and `c_namesize`.
const FILE_SIZE_FIELD: usize = 54;
const NAME_SIZE_FIELD: usize = 94;
/// The name of the entry that ends an archive, with its NUL.
pub(crate) const TRAILER: &[u8; 11] = b"TRAILER!!!\0";

/// The length of the archives `files` together, in bytes; `followed` if another archive will follow. Behind the last
/// archive there is nothing, which older kernels need for lz4.
pub(super) fn total_len(files: &[InputFile], followed: bool) -> u64 {
    let Some((last, others)) = files.split_last() else { return 0 };
    let last = if followed { next(last.len) } else { last.len };
    others.iter().fold(last, |sum, file| sum.saturating_add(next(file.len)))
}

/// Copies the archives `files` to `start`, where [`total_len`] bytes are RAM.
pub(super) fn load(files: &mut [InputFile], memory: &GuestMemoryMmap, start: u64) -> Result<(), Error> {
    let mut at = start;
    for input in files {
        #[expect(clippy::cast_possible_truncation, reason = "the file fits into RAM")]
        let read = memory.read_exact_volatile_from(GuestAddress(at), &mut input.file, input.len as usize);
        read.map_err(|error| input.unreadable(io::Error::other(error.to_string())))?;
        at += next(input.len);
    }
    Ok(())
}

/// Where another archive may begin after one of `len` bytes. The kernel's unpacker of lz4 reads a length behind the
/// data, and ends if that is 0 (lib/decompress_unlz4.c). The other unpackers end with the data, and zeros are skipped.
fn next(len: u64) -> u64 {
    padded(len.saturating_add(4))
}

fn padded(len: u64) -> u64 {
    len.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX)
}

/// Magic numbers of the compressions that Linux supports (lib/decompress.c).
const COMPRESSED: [&[u8]; 8] = [
    b"\x1f\x8b",         // gzip
    b"\x1f\x9e",         // gzip, old
    b"BZh",              // bzip2
    b"\x5d\x00\x00",     // lzma
    b"\xfd7zXZ\x00",     // xz
    b"\x89LZO\x00",      // lzo
    b"\x02\x21\x4c\x18", // lz4, legacy frame
    b"\x28\xb5\x2f\xfd", // zstd
];

/// Checks that the headers of a plain cpio archive lead to its end. Of a compressed archive only the magic number is
/// checked. Check first that the file fits in RAM: a sparse file may have any length.
pub(super) fn verify(file: &InputFile) -> Result<(), Error> {
    let mut offset = 0;
    let mut first = true;
    while let Some(start) = next_nonzero(file, offset)? {
        let header: [u8; HEADER_LEN] = file.peek(start)?;
        if COMPRESSED.iter().any(|magic| header.starts_with(magic)) {
            return Ok(());
        }
        if start % ALIGNMENT != 0 || !(header.starts_with(MAGIC) || header.starts_with(MAGIC_WITH_CHECK_SUMS)) {
            return Err(match first {
                _ if header.starts_with(b"\x04\x22\x4d\x18") => {
                    file.unusable("it is in the frame format of lz4; Linux takes the legacy format only (lz4 -l)")
                }
                true => file.unusable("it is neither a cpio archive (newc) nor in a compression that Linux supports"),
                false => file.unusable(format!("it has neither a cpio header nor a known compression at byte {start}")),
            });
        }
        first = false;
        let invalid = || file.unusable(format!("its cpio header at byte {start} is invalid"));
        let name_size = hex(&header, NAME_SIZE_FIELD).ok_or_else(invalid)?;
        let file_size = hex(&header, FILE_SIZE_FIELD).ok_or_else(invalid)?;
        let end = padded(start + HEADER_LEN as u64 + name_size) + file_size;
        if end > file.len {
            let why = format!("it is cut off: it must have at least {end} bytes, but it has {}", file.len);
            return Err(file.unusable(why));
        }
        let name: [u8; TRAILER.len()] = file.peek(start + HEADER_LEN as u64)?;
        // Another archive may follow a trailer, after zeros.
        offset = if name == *TRAILER { end } else { padded(end) };
    }
    if first { Err(file.unusable("it contains only zeros")) } else { Ok(()) }
}

fn hex(header: &[u8; HEADER_LEN], at: usize) -> Option<u64> {
    let digits = std::str::from_utf8(&header[at..at + 8]).ok()?;
    u32::from_str_radix(digits, 16).ok().map(u64::from)
}

/// The offset of the first byte that is not zero, from `offset` on.
fn next_nonzero(file: &InputFile, mut offset: u64) -> Result<Option<u64>, Error> {
    while offset < file.len {
        let block: [u8; 512] = file.peek(offset)?;
        if let Some(at) = block.iter().position(|&byte| byte != 0) {
            return Ok(Some(offset + at as u64));
        }
        offset += block.len() as u64;
    }
    Ok(None)
}
