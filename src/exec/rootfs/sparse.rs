//! Files with holes. An initramfs cannot hold these, so it has an empty file, and in another file the data with a list
//! of where it belongs, from which init completes the first one. Holes then take no memory.
//!
//! ```text
//!   data of all extents, one after the other │ description (JSON) │ length of the description (4 bytes)
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::stat::FileStat;
use nix::unistd::{Whence, lseek};

/// The directory of these files in the guest.
pub const DIRECTORY: &str = "/.kickvm/sparse";
/// The least size of all holes of a file that is packed in this way.
const MIN_HOLES: i64 = 1 << 20;
/// The most extents of such a file.
const MAX_EXTENTS: usize = 10_000;

/// A file with holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseFile {
    /// Its path in the guest.
    pub path: Vec<u8>,
    /// Its size with all holes.
    pub size: u64,
    /// Its time of modification in seconds.
    pub modified: u64,
    /// Offset and length of its data.
    pub extents: Vec<(u64, u64)>,
}

impl SparseFile {
    /// Finds the data of `file`. `None` if it has no large holes, too many small ones, or its file system does not
    /// support holes.
    pub fn find(path: &[u8], file: &File, stat: &FileStat) -> Option<Self> {
        if stat.st_size.saturating_sub(stat.st_blocks.saturating_mul(512)) < MIN_HOLES {
            return None;
        }
        let (mut extents, mut at) = (Vec::new(), 0);
        loop {
            let start = match lseek(file, at, Whence::SeekData) {
                Err(Errno::ENXIO) => break, // only a hole follows
                start => start.ok().filter(|start| *start >= at)?,
            };
            if start >= stat.st_size {
                break;
            }
            at = lseek(file, start, Whence::SeekHole).ok()?.min(stat.st_size);
            if extents.len() == MAX_EXTENTS || at <= start {
                return None;
            }
            extents.push((start.cast_unsigned(), (at - start).cast_unsigned()));
        }
        let (size, modified) = (stat.st_size.cast_unsigned(), stat.st_mtime.max(0).cast_unsigned());
        Some(Self { path: path.to_owned(), size, modified, extents })
    }

    /// The number of bytes in all extents.
    pub fn data_len(&self) -> u64 {
        self.extents.iter().map(|(_, len)| len).sum()
    }

    /// The description, with its length.
    pub fn encode(&self) -> Vec<u8> {
        let Self { path, size, modified, extents } = self;
        let mut bytes =
            serde_json::to_vec(&(path, size, modified, extents)).expect("lists and numbers have a form in JSON");
        let len = u32::try_from(bytes.len()).expect("a path and 10,000 extents are far below 4 GiB");
        bytes.extend(len.to_le_bytes());
        bytes
    }

    /// Reads the description at the end of `file`. Returns it with the length of the data before it.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has no description.
    pub fn decode(file: &File) -> io::Result<(Self, u64)> {
        let cut_off = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let end = file.metadata()?.len().checked_sub(4).ok_or_else(cut_off)?;
        let mut len = [0; 4];
        file.read_exact_at(&mut len, end)?;
        let len = u32::from_le_bytes(len);
        let start = end.checked_sub(len.into()).ok_or_else(cut_off)?;
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, start)?;
        let (path, size, modified, extents) = serde_json::from_slice(&bytes)?;
        Ok((Self { path, size, modified, extents }, start))
    }

    /// A reader of the data in `file`.
    pub fn data<'a>(&'a self, file: &'a File) -> impl Read + 'a {
        ExtentReader { file, extents: &self.extents, done: 0 }
    }
}

struct ExtentReader<'a> {
    file: &'a File,
    extents: &'a [(u64, u64)],
    done: u64, // of the first extent
}

impl Read for ExtentReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(((start, len), rest)) = self.extents.split_first() else { return Ok(0) };
        let room = usize::try_from(len - self.done).unwrap_or(usize::MAX).min(bytes.len());
        let read = self.file.read_at(&mut bytes[..room], start + self.done)?;
        self.done += read as u64;
        if self.done == *len {
            (self.extents, self.done) = (rest, 0);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use vmm_sys_util::tempfile::TempFile;

    #[test]
    fn the_data_and_its_place_are_read_back() {
        let file = TempFile::new().unwrap();
        let file = file.as_file();
        file.set_len(6 << 30).unwrap();
        for (at, byte) in [(0, b'a'), (3 << 30, b'b'), ((6 << 30) - 4096, b'c')] {
            file.write_all_at(&[byte; 4096], at).unwrap();
        }
        let sparse = SparseFile::find(b"a/b", file, &fstat(file).unwrap()).unwrap();
        let expected: Vec<u64> = vec![0, 3 << 30, (6 << 30) - 4096];
        assert_eq!(sparse.extents.iter().map(|(start, _)| *start).collect::<Vec<_>>(), expected);
        let mut packed = Vec::new();
        sparse.data(file).read_to_end(&mut packed).unwrap();
        assert_eq!(packed, [[b'a'; 4096], [b'b'; 4096], [b'c'; 4096]].concat());
        packed.extend(sparse.encode());
        let copy = TempFile::new().unwrap();
        copy.as_file().write_all_at(&packed, 0).unwrap();
        assert_eq!(SparseFile::decode(copy.as_file()).unwrap(), (sparse, 3 * 4096));
        copy.as_file().set_len(packed.len() as u64 - 1).unwrap();
        assert!(SparseFile::decode(copy.as_file()).is_err());
    }

    #[test]
    fn a_file_without_large_holes_is_not_sparse() {
        let file = TempFile::new().unwrap();
        file.as_file().write_all_at(&[1; 10_000], 0).unwrap();
        file.as_file().set_len(500_000).unwrap();
        assert_eq!(SparseFile::find(b"a", file.as_file(), &fstat(file.as_file()).unwrap()), None);
    }
}
