//! The release of a kernel image, as `uname -r` prints it in the guest.

use std::path::Path;

use super::error::Error;
use super::find_bytes;
use super::image::Kernel;

/// The longest release, with its NUL (`__NEW_UTS_LEN`, include/uapi/linux/utsname.h).
const MAX_RELEASE: usize = 65;
/// Offset of the setup header's field `kernel_version` relative to that field's base, and so of the version text
/// (Documentation/arch/x86/boot.rst).
const VERSION_BASE: u64 = 0x200;
/// The beginning of `linux_banner` (init/version.c), which a release follows. Other texts have a `%s` there.
const BANNER: &[u8] = b"Linux version ";

/// The release of the kernel at `path`: that in the header of a bzImage, or in the banner of an ELF image. `None` if
/// the image has no release.
///
/// # Errors
///
/// The file cannot be read, or is not a kernel.
pub fn kernel_release(path: &Path) -> Result<Option<String>, Error> {
    let kernel = Kernel::open(path)?;
    let at = match kernel.setup {
        Some(setup) if setup.kernel_version == 0 => return Ok(None),
        Some(setup) => VERSION_BASE + u64::from(setup.kernel_version),
        None => match find_bytes(&kernel.file, BANNER, |next| next.is_ascii_digit())? {
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
