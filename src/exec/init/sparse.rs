//! Completes the files with holes, see `rootfs::sparse`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::exec::rootfs::sparse::{DIRECTORY, SparseFile};
use crate::sys::os_error;

/// The size of the parts that are moved.
const PART: u64 = 1 << 20;

/// Completes all files. Returns a warning for each one that is incomplete.
pub fn complete_all() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let results: Vec<_> = entries.map(|entry| complete(&entry.path())).collect();
    let _ = fs::remove_dir_all(DIRECTORY); // it only takes memory
    results.into_iter().filter_map(Result::err).collect()
}

fn complete(data: &Path) -> Result<(), String> {
    let open = || OpenOptions::new().read(true).write(true).open(data);
    let described = open().and_then(|file| SparseFile::decode(&file).map(|(sparse, end)| (file, sparse, end)));
    let (file, sparse, end) =
        described.map_err(|error| format!("cannot read '{}': {}", data.display(), os_error::describe(&error)))?;
    let target = Path::new("/").join(OsStr::from_bytes(&sparse.path));
    let moved = move_data(&file, end, &target, &sparse);
    moved.map_err(|error| format!("'{}' is incomplete: {}", target.display(), os_error::describe(&error)))
}

/// Moves the data from the last byte to the first, so that each part is in memory only once.
fn move_data(data: &File, mut end: u64, target: &Path, sparse: &SparseFile) -> io::Result<()> {
    let target = OpenOptions::new().write(true).open(target)?;
    if target.metadata()?.len() > 0 {
        return Ok(()); // another file has replaced it
    }
    target.set_len(sparse.size)?;
    let mut part = Vec::new();
    for (start, len) in sparse.extents.iter().rev() {
        let mut left = *len;
        while left > 0 {
            let size = left.min(PART);
            left -= size;
            end = end.checked_sub(size).ok_or(io::ErrorKind::UnexpectedEof)?;
            part.resize(usize::try_from(size).unwrap_or(0), 0);
            data.read_exact_at(&mut part, end)?;
            target.write_all_at(&part, start + left)?;
            data.set_len(end)?;
        }
    }
    target.set_modified(UNIX_EPOCH + Duration::from_secs(sparse.modified))
}
