//! The files of guests, which environment variables name.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// A kernel, and its boot protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The bzImage of Debian's cloud kernel.
    Stock,
    /// The bzImage of `resources/kernel-config`.
    BzImage,
    /// The vmlinux of `resources/kernel-config`, which has a PVH note.
    Pvh,
    /// The same vmlinux with the PVH note made unrecognizable.
    Elf,
    /// The bzImage that `resources/kernel-config-debug` configures, too.
    Debug,
}

/// The files of one guest.
#[derive(Debug)]
pub struct Assets {
    pub kernel: PathBuf,
    /// The output of `uname -r` in the guest.
    pub release: String,
    pub initramfs: PathBuf,
}

impl Assets {
    /// Finds the files of a guest with `kernel`. Generated files go to `scratch`. The error names the environment
    /// variable that is missing.
    pub fn find(kernel: Kernel, scratch: &Path) -> Result<Self, &'static str> {
        let initramfs = variable("KICKVM_INITRAMFS")?;
        let bz_image = match kernel {
            Kernel::Stock => variable("KICKVM_STOCK_KERNEL")?,
            Kernel::Debug => variable("KICKVM_DEBUG_KERNEL_DIR")?.join("bzImage"),
            _ => variable("KICKVM_KERNEL_DIR")?.join("bzImage"),
        };
        let release = release(&read(&bz_image));
        let kernel = match kernel {
            Kernel::Stock | Kernel::BzImage | Kernel::Debug => bz_image,
            Kernel::Pvh => bz_image.with_file_name("vmlinux"),
            Kernel::Elf => {
                let mut image = read(&bz_image.with_file_name("vmlinux"));
                hide_pvh_note(&mut image);
                let copy = scratch.join("vmlinux");
                fs::write(&copy, image).expect("cannot copy vmlinux");
                copy
            }
        };
        Ok(Self { kernel, release, initramfs })
    }
}

fn variable(name: &'static str) -> Result<PathBuf, &'static str> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from).ok_or(name)
}

pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("cannot read '{}': {error}", path.display()))
}

/// The release of a bzImage: the first word of `kernel_version` (Documentation/arch/x86/boot.rst).
fn release(bz_image: &[u8]) -> String {
    let at = 0x200 + usize::from(u16::from_le_bytes([bz_image[0x20e], bz_image[0x20f]]));
    let word = bz_image[at..].split(|byte| matches!(byte, 0 | b' ')).next();
    String::from_utf8(word.unwrap_or_default().to_vec()).expect("a release is ASCII")
}

/// Changes the type of the ELF note that holds the PVH entry (`XEN_ELFNOTE_PHYS32_ENTRY`).
fn hide_pvh_note(elf: &mut [u8]) {
    const PT_NOTE: usize = 4;
    const NOTE: &[u8] = b"\x12\0\0\0Xen\0"; // its type, 18, and its name
    let field = |at: usize, len: usize| {
        elf[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)) // little-endian
    };
    // Elf64_Ehdr: e_phoff, e_phentsize, e_phnum. Elf64_Phdr: p_type, p_offset, p_filesz.
    let (table, size, count) = (field(0x20, 8), field(0x36, 2), field(0x38, 2));
    let segments = (0..count).map(|n| table + n * size).filter(|at| field(*at, 4) == PT_NOTE);
    let notes = segments.map(|at| (field(at + 8, 8), field(at + 0x20, 8)));
    let found: Vec<usize> = notes
        .flat_map(|(start, len)| (start..start + len).filter(|&at| elf[at..].starts_with(NOTE)).collect::<Vec<_>>())
        .collect();
    let [at] = found[..] else { panic!("vmlinux has {} PVH notes, not one", found.len()) };
    elf[at] = 0xff;
}
