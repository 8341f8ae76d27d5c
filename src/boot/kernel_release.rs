//! The release of a kernel image, as `uname -r` prints it in the guest.

use std::path::Path;

use super::error::Error;
use super::image::Kernel;
use super::input_file::read_at;

/// The longest release, with its NUL (`__NEW_UTS_LEN`, include/uapi/linux/utsname.h).
const MAX_RELEASE: usize = 65;
/// Offset of the setup header's field `kernel_version` relative to that field's base, and so of the version text
/// (Documentation/arch/x86/boot.rst).
const VERSION_BASE: u64 = 0x200;
/// The beginning of `linux_banner` (init/version.c), which a release follows.
const BANNER: &[u8] = b"Linux version ";
/// The size of the parts in which an ELF image is searched.
const PART: usize = 1 << 20;

/// The release of the kernel at `path`: that in the header of a bzImage, or in the banner of an ELF image. `None` if the
/// image has no release.
///
/// # Errors
///
/// The file cannot be read, or is not a kernel.
pub fn kernel_release(path: &Path) -> Result<Option<String>, Error> {
    let kernel = Kernel::open(path)?;
    let at = match kernel.setup {
        Some(setup) if setup.kernel_version == 0 => return Ok(None),
        Some(setup) => VERSION_BASE + u64::from(setup.kernel_version),
        None => match find_banner(&kernel)? {
            Some(at) => at,
            None => return Ok(None),
        },
    };
    let text: [u8; MAX_RELEASE] = kernel.file.peek(at)?;
    let word = text.split(|byte| !byte.is_ascii_graphic() || *byte == b'/').next().unwrap_or_default();
    Ok(String::from_utf8(word.to_vec())
        .ok()
        .filter(|release| release.starts_with(|first: char| first.is_ascii_digit())))
}

/// The offset of the release in an ELF image. It follows a banner and begins with a digit.
fn find_banner(kernel: &Kernel) -> Result<Option<u64>, Error> {
    let file = &kernel.file;
    let mut part = vec![0; PART + BANNER.len()];
    for offset in (0..file.len).step_by(PART) {
        let len = read_at(&file.file, &mut part, offset).map_err(|error| file.unreadable(error))?;
        let found = part[..len]
            .windows(BANNER.len() + 1)
            .position(|text| text.starts_with(BANNER) && text[BANNER.len()].is_ascii_digit());
        if let Some(at) = found {
            return Ok(Some(offset + (at + BANNER.len()) as u64));
        }
    }
    Ok(None)
}
