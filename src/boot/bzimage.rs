//! bzImage: the compressed image that distributions ship (Documentation/arch/x86/boot.rst).

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::error::Error;
use super::kernel::{CMDLINE_MAX, Kernel, Protocol};
use super::layout::HIGH_RAM;
use super::source::Source;

const HEADER_OFFSET: u64 = 0x1f1;
/// Where "HdrS" stands.
pub(super) const MAGIC_OFFSET: u64 = 0x202;
const SECTOR: u64 = 512;
const DEFAULT_SETUP_SECTORS: u8 = 4;
/// The first version with `xloadflags`, which say whether there is a 64-bit entry (Linux 3.8).
const VERSION_2_12: u16 = 0x20c;
/// The 64-bit entry point's distance from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;

/// Reads the setup header of `source` and works out where the kernel will be.
pub(super) fn inspect(source: Source) -> Result<Kernel, Error> {
    let bytes: [u8; size_of::<setup_header>()] = source.peek(HEADER_OFFSET)?;
    let mut header = setup_header::default();
    header.as_mut_slice().copy_from_slice(&bytes);

    let version = header.version;
    if version < VERSION_2_12 {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(source.bad(format!("Its boot protocol {major}.{minor:02} is older than 2.12 (Linux 3.8)")));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(source.bad("It has no 64-bit entry: it is a 32-bit kernel"));
    }
    let setup_sectors = if header.setup_sects == 0 { DEFAULT_SETUP_SECTORS } else { header.setup_sects };
    let setup_len = (u64::from(setup_sectors) + 1) * SECTOR;
    let announced = setup_len + u64::from(header.syssize) * 16;
    if source.len < announced || header.syssize == 0 {
        let len = source.len;
        return Err(source.bad(format!("It is cut off: its header announces {announced} bytes, but it has {len}")));
    }
    let start =
        if header.relocatable_kernel != 0 || header.pref_address >= HIGH_RAM { header.pref_address } else { HIGH_RAM };
    if start < HIGH_RAM {
        return Err(source.bad(format!("It wants to be loaded at {start:#x}, below 1 MiB")));
    }
    if source.len - setup_len <= ENTRY_64 {
        return Err(source.bad("It is too short to have a 64-bit entry"));
    }
    let size = u64::from(header.init_size).max(source.len - setup_len);
    let Some(end) = start.checked_add(size) else {
        return Err(source.bad(format!("Its load address {start:#x} is impossible")));
    };
    let cmdline_max = match usize::try_from(header.cmdline_size) {
        Ok(max) if max > 0 => max,
        _ => CMDLINE_MAX,
    };
    Ok(Kernel {
        entry: start + ENTRY_64,
        protocol: Protocol::BzImage,
        end,
        initramfs_max: header.initrd_addr_max.into(),
        cmdline_max,
        setup: Some(header),
        source,
    })
}

/// Copies the protected-mode code to where `kernel` is entered.
pub(super) fn load(kernel: &mut Kernel, memory: &GuestMemoryMmap) -> Result<(), Error> {
    let start = GuestAddress(kernel.entry - ENTRY_64);
    BzImage::load(memory, Some(start), &mut kernel.source.file, None)
        .map(drop)
        .map_err(|error| kernel.source.bad(error.to_string()))
}
