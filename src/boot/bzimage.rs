//! bzImage: the compressed kernel image that distributions ship (Documentation/arch/x86/boot.rst).

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};

use super::error::Error;
use super::image::{CMDLINE_MAX, Kernel, Protocol};
use super::input_file::InputFile;
use super::layout::HIGH_RAM;

/// Offset of the setup header in the file.
const HEADER_OFFSET: u64 = 0x1f1;
/// Offset of the magic number "HdrS" in the file.
pub(super) const MAGIC_OFFSET: u64 = 0x202;
const SECTOR: u64 = 512;
/// Unit of the header field `syssize`, in bytes.
const PARAGRAPH: u64 = 16;
/// What a `setup_sects` of 0 means, for compatibility with very old kernels.
const DEFAULT_SETUP_SECTORS: u8 = 4;
/// The first version with `xloadflags`, which states whether there is a 64-bit entry (Linux 3.8).
const VERSION_2_12: u16 = 0x20c;
/// Distance of the 64-bit entry point from the start of the protected-mode code.
pub(super) const ENTRY_64: u64 = 0x200;

/// The length of the boot sector and the setup code, before the protected-mode code.
fn setup_len(header: &setup_header) -> u64 {
    let sectors = if header.setup_sects == 0 { DEFAULT_SETUP_SECTORS } else { header.setup_sects };
    (u64::from(sectors) + 1) * SECTOR // the boot sector comes before these sectors
}

/// Offset and length of the compressed kernel in the file, if the header states them.
pub(super) fn payload(header: &setup_header) -> Option<(u64, u64)> {
    let (offset, len) = (u64::from(header.payload_offset), u64::from(header.payload_length));
    (len > 0).then(|| (setup_len(header) + offset, len))
}

/// Checks the setup header of `file` and calculates where the kernel will lie.
pub(super) fn inspect(file: InputFile) -> Result<Kernel, Error> {
    let header: setup_header = file.peek_object(HEADER_OFFSET)?;
    let version = header.version;
    if version < VERSION_2_12 {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(file.unusable(format!("its boot protocol {major}.{minor:02} is older than 2.12 (Linux 3.8)")));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(file.unusable("it has no 64-bit entry: it is a 32-bit kernel"));
    }
    let setup_len = setup_len(&header);
    let announced = setup_len + u64::from(header.syssize) * PARAGRAPH;
    if file.len < announced || header.syssize == 0 {
        let len = file.len;
        return Err(file.unusable(format!("it is cut off: its header announces {announced} bytes, but it has {len}")));
    }
    let start =
        if header.relocatable_kernel != 0 || header.pref_address >= HIGH_RAM { header.pref_address } else { HIGH_RAM };
    if start < HIGH_RAM {
        return Err(file.unusable(format!("its load address {start:#x} is below 1 MiB")));
    }
    if file.len - setup_len <= ENTRY_64 {
        return Err(file.unusable("it is too short to have a 64-bit entry"));
    }
    let Some(end) = start.checked_add(u64::from(header.init_size).max(file.len - setup_len)) else {
        return Err(file.unusable(format!("its load address {start:#x} is impossible")));
    };
    let (entry, initramfs_end) = (start + ENTRY_64, u64::from(header.initrd_addr_max) + 1);
    let cmdline_max = if header.cmdline_size == 0 { CMDLINE_MAX } else { header.cmdline_size as usize };
    Ok(Kernel {
        entry,
        protocol: Protocol::BzImage,
        end,
        initramfs_end,
        cmdline_max,
        setup: Some(header),
        is_linux: true,
        file,
    })
}
