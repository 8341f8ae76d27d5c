//! Requests and replies of the FUSE protocol, version 7 (linux/fuse.h). Numbers are in the byte order of the guest,
//! which is little-endian.

use std::ffi::CStr;

use rustix::fs::{Statx, StatxTimestamp};
use rustix::io::Errno;

/// The node ID of the root.
pub const ROOT: u64 = 1;
/// Bytes of `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Bytes of `fuse_write_in`, which the data follow.
pub const WRITE_IN: usize = 40;
/// The protocol version of the replies, and the lowest minor version of a driver (Linux 5.4, the first with virtio-fs).
pub const VERSION: (u32, u32) = (7, 38);
pub const MIN_MINOR: u32 = 31;
/// The most pages of a read or write.
pub const MAX_PAGES: u16 = 256;
pub const PAGE: u32 = 4 << 10;

/// Opcodes.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// Flags of INIT.
pub mod init {
    pub const ASYNC_READ: u32 = 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Flags of SETATTR (`FATTR_`).
pub mod valid {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Flags of a reply to OPEN: the page cache stays valid, and a directory's entries are cached.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// Flags of WRITE and OPEN: the caller loses set-user-ID and set-group-ID bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
pub const OPEN_KILL_SUIDGID: u32 = 1;

/// A request without its data.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub opcode: u32,
    pub node: u64,
    /// The user and group that a new file belongs to.
    pub uid: u32,
    pub gid: u32,
    /// What follows the header.
    pub args: Args<'a>,
}

/// The arguments of a request that are not yet taken. A request that is too short is invalid.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(pub &'a [u8]);

type Result<T> = std::result::Result<T, Errno>;

impl<'a> Request<'a> {
    /// Reads the header. `len` is the length of the whole request.
    pub fn new(bytes: &'a [u8], len: usize) -> Result<Self> {
        let mut args = Args(bytes);
        let (stated, opcode) = (args.u32()?, args.u32()?);
        let (_unique, node, uid, gid) = (args.u64()?, args.u64()?, args.u32()?, args.u32()?);
        args.u64()?; // process ID, and padding
        if stated as usize != len {
            return Err(Errno::INVAL);
        }
        Ok(Self { opcode, node, uid, gid, args })
    }
}

impl<'a> Args<'a> {
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        self.0.split_off(..len).ok_or(Errno::INVAL)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.0.split_off(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes).ok_or(Errno::INVAL)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.0.split_off(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes).ok_or(Errno::INVAL)
    }

    /// A string that ends with a NUL.
    pub fn string(&mut self) -> Result<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.bytes(string.count_bytes() + 1)?;
        Ok(string)
    }

    /// The name of an entry in a directory.
    pub fn name(&mut self) -> Result<&'a CStr> {
        let name = self.string()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(name),
        }
    }
}

/// A reply without its header.
#[derive(Clone, Debug, Default)]
pub struct Reply(pub Vec<u8>);

impl Reply {
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `fuse_attr`, with `ino` as the inode number.
    pub fn attributes(&mut self, stat: &Statx, ino: u64) -> &mut Self {
        let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
        self.u64(ino).u64(stat.stx_size).u64(stat.stx_blocks);
        for time in &times {
            self.u64(time.tv_sec.cast_unsigned());
        }
        for time in &times {
            self.u32(time.tv_nsec);
        }
        let device = device_number(stat.stx_rdev_major, stat.stx_rdev_minor);
        self.u32(stat.stx_mode.into()).u32(stat.stx_nlink).u32(stat.stx_uid).u32(stat.stx_gid);
        self.u32(device).u32(stat.stx_blksize).u32(0)
    }

    /// `fuse_statx`, with `ino` as the inode number.
    pub fn statx(&mut self, stat: &Statx, ino: u64, mask: u32) {
        let time = |reply: &mut Self, StatxTimestamp { tv_sec, tv_nsec, .. }| {
            reply.u64(tv_sec.cast_unsigned()).u32(tv_nsec).u32(0);
        };
        self.u32(stat.stx_mask & mask).u32(stat.stx_blksize).u64(0);
        self.u32(stat.stx_nlink).u32(stat.stx_uid).u32(stat.stx_gid).u32(stat.stx_mode.into());
        self.u64(ino).u64(stat.stx_size).u64(stat.stx_blocks).u64(0);
        [stat.stx_atime, stat.stx_btime, stat.stx_ctime, stat.stx_mtime].into_iter().for_each(|at| time(self, at));
        self.u32(stat.stx_rdev_major).u32(stat.stx_rdev_minor).u32(stat.stx_dev_major).u32(stat.stx_dev_minor);
        self.0.extend([0; 14 * 8]);
    }
}

/// A device number in Linux's 32-bit encoding (`new_encode_dev`).
fn device_number(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// Major and minor of a number in that encoding.
pub fn major_minor(device: u32) -> (u32, u32) {
    (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00)
}
