//! In the guest: uses the share in several ways, each on request.

use super::Result;
use super::side::say_and_wait;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

/// Where the share is mounted.
pub const MOUNT: &str = "/mnt";
/// What the guest does with it.
pub const PATTERNS: [&str; 5] =
    ["sequential-read", "read-tree-cold", "open-read-close", "list-tree-cold", "list-tree-warm"];
/// Turns of each pattern.
pub const ROUNDS: usize = 3;

pub fn main() -> Result<()> {
    say_and_wait("up")?;
    for pattern in PATTERNS {
        run(pattern)?; // to be warm on the host
        for _ in 0..ROUNDS {
            if !pattern.ends_with("warm") {
                fs::write("/proc/sys/vm/drop_caches", "3")?;
            }
            say_and_wait(&format!("ready {pattern}"))?;
            let start = Instant::now();
            let found = run(pattern)?;
            say_and_wait(&format!("done {} {found}", start.elapsed().as_nanos()))?;
        }
    }
    Ok(())
}

/// Returns the number of bytes that were read, or of files.
fn run(pattern: &str) -> Result<u64> {
    let mount = Path::new(MOUNT);
    match pattern {
        "sequential-read" => read(&mount.join("large"), &mut vec![0; 1 << 20]),
        // As tar and git read: all files in the order of their directories, or what is in the directories alone.
        "read-tree-cold" => tree(&mount.join("tree"), &mut |path| read(path, &mut [0; 32 << 10])),
        "open-read-close" => {
            let files = (0..super::host::FILES).map(|number| mount.join(super::host::file(number)));
            files
                .map(|path| fs::metadata(&path).map_err(Into::into).and_then(|_| read(&path, &mut [0; 32 << 10])))
                .sum()
        }
        _ => tree(&mount.join("tree"), &mut |path| Ok(u64::from(fs::symlink_metadata(path)?.is_file()))),
    }
}

fn read(path: &Path, buffer: &mut [u8]) -> Result<u64> {
    let (mut file, mut total) = (File::open(path)?, 0);
    loop {
        match file.read(buffer)? {
            0 => return Ok(total),
            len => total += len as u64,
        }
    }
}

fn tree(directory: &Path, visit: &mut impl FnMut(&Path) -> Result<u64>) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        total += if entry.file_type()?.is_dir() { tree(&path, visit)? } else { visit(&path)? };
    }
    Ok(total)
}
