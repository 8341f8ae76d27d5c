//! The configuration that a kernel with `CONFIG_IKCONFIG` contains (kernel/configs.c).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::GzDecoder;

use super::bzimage::payload;
use super::decompress::Compression;
use super::error::Error;
use super::find_bytes;
use super::image::Kernel;

/// What is before the compressed configuration.
const START: &[u8] = b"IKCFG_ST";
/// The most bytes of a configuration.
const MAX_CONFIG: u64 = 4 << 20;

/// The configuration in the kernel at `path`, if it has one. A bzImage must be unpacked for this, which takes some
/// time.
///
/// # Errors
///
/// The file cannot be read, or is not a kernel.
pub fn embedded_config(path: &Path) -> Result<Option<String>, Error> {
    let Kernel { mut file, setup, .. } = Kernel::open(path)?;
    if let Some((offset, len)) = setup.and_then(|setup| payload(&setup)) {
        let unreadable = |error| file.unreadable(error);
        let mut part = file.file.try_clone().map_err(unreadable)?;
        part.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        let Some(compression) = Compression::detect(&file.peek::<6>(offset)?) else { return Ok(None) };
        // The build appends the unpacked size, except for gzip, which has it already (scripts/Makefile.lib).
        let appended = if compression == Compression::Gzip { 0 } else { 4 };
        file = file.decompressed_from(compression, part.take(len.saturating_sub(appended)))?;
    }
    let Some(at) = find_bytes(&file, START, |next| next == 0x1f)? else { return Ok(None) };
    read_gzip(&file.file, at).map(Some).map_err(|error| file.unreadable(error))
}

fn read_gzip(mut file: &File, at: u64) -> io::Result<String> {
    file.seek(SeekFrom::Start(at))?;
    let mut config = String::new();
    GzDecoder::new(file).take(MAX_CONFIG).read_to_string(&mut config)?;
    Ok(config)
}
