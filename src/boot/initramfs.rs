//! Initramfs archives: checked as far as that is cheap, and put one behind the other.
//!
//! The kernel unpacks any number of archives in a row, each compressed or not, if each begins at a multiple of four
//! (Documentation/driver-api/early-userspace/buffer-format.rst). A later archive's files replace an earlier one's.

use std::path::PathBuf;

use super::error::{Error, Role};
use super::source::Source;

const ALIGNMENT: u64 = 4;

/// The archives of one guest, opened and measured.
#[derive(Debug)]
pub(super) struct Initramfs {
    sources: Vec<Source>,
}

impl Initramfs {
    /// Opens each of `paths`.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Error> {
        let open = |path: &PathBuf| Source::open(path, Role::Initramfs);
        Ok(Self { sources: paths.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Looks into each archive. To be called when it is known that they fit: an endless file would take for ever.
    pub fn verify(&self) -> Result<(), Error> {
        self.sources.iter().try_for_each(verify)
    }

    /// Bytes of all archives, each padded to the alignment.
    pub fn len(&self) -> u64 {
        self.sources.iter().fold(0, |sum, source| sum.saturating_add(padded(source.len)))
    }

    /// Each archive with its offset from the first.
    pub fn placed(&mut self) -> impl Iterator<Item = (u64, &mut Source)> {
        self.sources.iter_mut().scan(0, |next, source| {
            let offset = *next;
            *next += padded(source.len);
            Some((offset, source))
        })
    }
}

fn padded(len: u64) -> u64 {
    len.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX)
}

/// First bytes of what the kernel can unpack, besides cpio (lib/decompress.c).
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

// The "new ASCII" cpio header: a magic number and 13 fields of 8 hexadecimal digits (buffer-format.rst).
const HEADER: usize = 110;
const FILE_SIZE_FIELD: usize = 54;
const NAME_SIZE_FIELD: usize = 94;
const TRAILER: &[u8] = b"TRAILER!!!\0";

/// Walks the headers of a plain cpio archive to see that it is whole. Of a compressed one only the first bytes are
/// known to make sense: unpacking it is the guest's work.
fn verify(source: &Source) -> Result<(), Error> {
    let mut offset = 0;
    let mut known = false;
    while let Some(start) = next_nonzero(source, offset)? {
        let header: [u8; HEADER] = source.peek(start)?;
        if COMPRESSED.iter().any(|magic| header.starts_with(magic)) {
            return Ok(());
        }
        if start % ALIGNMENT != 0 || !(header.starts_with(b"070701") || header.starts_with(b"070702")) {
            return match known {
                true => {
                    Err(source.bad(format!("It has neither a cpio header nor a known compression at byte {start}")))
                }
                false => Err(source.bad("It is neither a cpio archive (newc) nor in a compression that Linux knows")),
            };
        }
        known = true;
        let bad_header = || source.bad(format!("Its cpio header at byte {start} is broken"));
        let name_size = hex(&header, NAME_SIZE_FIELD).ok_or_else(bad_header)?;
        let file_size = hex(&header, FILE_SIZE_FIELD).ok_or_else(bad_header)?;
        let data = padded(start + HEADER as u64 + name_size);
        let end = data + file_size;
        if end > source.len {
            return Err(
                source.bad(format!("It is cut off: byte {end} is the least it must have, but it has {}", source.len))
            );
        }
        let name: [u8; TRAILER.len()] = source.peek(start + HEADER as u64)?;
        // Behind a trailer another archive may follow, after zeros.
        offset = if name == TRAILER { end } else { padded(end) };
    }
    match known {
        true => Ok(()),
        false => Err(source.bad("It holds nothing but zeros")),
    }
}

fn hex(header: &[u8; HEADER], at: usize) -> Option<u64> {
    let digits = std::str::from_utf8(&header[at..at + 8]).ok()?;
    u32::from_str_radix(digits, 16).ok().map(u64::from)
}

/// The offset of the first byte that is not zero, at `offset` or behind it.
fn next_nonzero(source: &Source, mut offset: u64) -> Result<Option<u64>, Error> {
    while offset < source.len {
        let block: [u8; 512] = source.peek(offset)?;
        if let Some(at) = block.iter().position(|&byte| byte != 0) {
            return Ok(Some(offset + at as u64));
        }
        offset += block.len() as u64;
    }
    Ok(None)
}
