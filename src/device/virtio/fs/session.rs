//! The FUSE server: takes a request from guest memory, executes it on the share, and writes the reply.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, chmodat, openat};
use rustix::io::{Errno, Result};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::super::Chain;
use super::handles::Handles;
use super::inodes::{Inode, Inodes, stat, too_many};
use super::protocol::{
    Args, IN_HEADER, MAX_PAGES, MIN_MINOR, OUT_HEADER, PAGE, Reply, Request, VERSION, WRITE_IN, init, op,
};
use super::share::Share;
use super::table::Limits;
use crate::sys::vectored_io::IoVecs;

/// The most bytes of a request that are copied; the data of a write are not. An extended attribute has 64 KiB.
const MAX_REQUEST: usize = 128 << 10;
/// Descriptors that are left for open files and for kickvm itself, as a part of the limit.
const RESERVED: u64 = 4;
/// The most inodes that are open without being in use. Each takes some memory of the host's kernel.
const MAX_OPEN: u64 = 1 << 16;
/// Bytes of guest memory that an inode in the guest takes at least (`fuse_inode` and `dentry`).
const GUEST_INODE: u64 = 1 << 10;

/// The flags of open(2) that a guest may use on the host. Direct I/O bypasses the page cache of the guest only.
pub(super) const OPEN_FLAGS: OFlags =
    OFlags::ACCMODE.union(OFlags::APPEND).union(OFlags::TRUNC).union(OFlags::SYNC).union(OFlags::NOATIME);

/// A served share.
#[derive(Debug)]
pub struct Session<'a> {
    pub(super) share: &'a Share,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    /// `/proc/self/fd`, by which a file is opened that has an `O_PATH` descriptor.
    links: OwnedFd,
    /// Files can be given to other users.
    pub(super) is_root: bool,
}

/// What a worker reuses.
#[derive(Debug, Default)]
pub struct Scratch {
    request: Vec<u8>,
    pub(super) reply: Reply,
    pub(super) io: IoVecs,
}

/// A request with its buffers. Data of a write begin in `chain.readable`, data of a read in `chain.writable`.
pub(super) struct Context<'a> {
    pub request: Request<'a>,
    pub memory: &'a GuestMemoryMmap,
    pub chain: &'a mut Chain,
    pub io: &'a mut IoVecs,
    pub reply: &'a mut Reply,
    /// Bytes of the reply that are in guest memory already.
    pub written: usize,
}

impl<'a> Context<'a> {
    pub fn args(&mut self) -> &mut Args<'a> {
        &mut self.request.args
    }
}

impl<'a> Session<'a> {
    /// Serves `share` to a guest with `memory`. To be called in the process that serves it: raises the process's limit
    /// of descriptors, and clears its umask, which the guest has applied.
    pub fn new(share: &'a Share, memory: &GuestMemoryMmap) -> Result<Self> {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((_, hard)) if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() => hard,
            Ok((soft, _)) => soft,
            Err(_) => 1024,
        };
        let open = MAX_OPEN.min(limit - limit / RESERVED);
        let known = memory.iter().map(GuestMemoryRegion::len).sum::<u64>() / GUEST_INODE;
        let [open, known] = [open, known].map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Self::with_limits(share, Limits { open, known })
    }

    /// The same with these limits.
    pub(super) fn with_limits(share: &'a Share, limits: Limits) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let links = openat(rustix::fs::CWD, c"/proc/self/fd", flags, Mode::empty())?;
        let inodes = Inodes::new(rustix::io::dup(&share.root)?, limits)?;
        let is_root = nix::unistd::Uid::effective().is_root();
        Ok(Self { share, inodes, handles: Handles::default(), links, is_root })
    }

    /// Executes the request in `chain`. Returns the number of bytes written to its buffers.
    pub fn handle(&self, memory: &GuestMemoryMmap, chain: &mut Chain, scratch: &mut Scratch) -> usize {
        let len = chain.readable.len();
        let Scratch { request: bytes, reply, io } = scratch;
        bytes.resize(IN_HEADER + WRITE_IN, 0);
        let mut taken = chain.readable.read(memory, bytes);
        if taken == bytes.len() && bytes[4..8] != op::WRITE.to_le_bytes() {
            bytes.resize(len.clamp(taken, MAX_REQUEST), 0);
            taken += chain.readable.read(memory, &mut bytes[taken..]);
        }
        bytes.truncate(taken);
        reply.0.clear();
        let unique = bytes.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        let request = match Request::new(bytes, len) {
            Ok(request) if matches!(request.opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT) => {
                let _ = self.forget(request); // has no reply
                return 0;
            }
            request => request,
        };
        if chain.writable.len() < OUT_HEADER {
            return 0;
        }
        let header = chain.writable.clone();
        chain.writable.skip(OUT_HEADER);
        let result = request.and_then(|request| {
            let mut context = Context { request, memory, chain, io, reply, written: 0 };
            self.dispatch(&mut context)?;
            Ok(context.written)
        });
        let result = result.and_then(|written| match reply.0.len() <= chain.writable.len() {
            true => Ok(written + chain.writable.write_at(memory, 0, &reply.0)),
            false => Err(Errno::INVAL), // the driver has no room for a reply of this type
        });
        let (error, body) = result.map_or_else(|error| (-error.raw_os_error(), 0), |body| (0, body));
        let len = OUT_HEADER + body;
        reply.0.clear();
        reply.u32(u32::try_from(len).unwrap_or(0)).u32(error.cast_unsigned()).u64(unique);
        header.write_at(memory, 0, &reply.0);
        len
    }

    fn dispatch(&self, ctx: &mut Context<'_>) -> Result<()> {
        let opcode = ctx.request.opcode;
        if self.share.read_only && is_modification(opcode) {
            return Err(Errno::ROFS);
        }
        match opcode {
            op::LOOKUP => self.lookup(ctx),
            op::GETATTR => self.getattr(ctx),
            op::SETATTR => self.setattr(ctx),
            op::READLINK => self.readlink(ctx),
            op::SYMLINK => self.symlink(ctx),
            op::MKNOD => self.mknod(ctx),
            op::MKDIR => self.mkdir(ctx),
            op::UNLINK => self.unlink(ctx, AtFlags::empty()),
            op::RMDIR => self.unlink(ctx, AtFlags::REMOVEDIR),
            op::RENAME | op::RENAME2 => self.rename(ctx),
            op::LINK => self.link(ctx),
            op::OPEN => self.open(ctx),
            op::OPENDIR => self.opendir(ctx),
            op::CREATE => self.create(ctx),
            op::TMPFILE => self.tmpfile(ctx),
            op::READ => self.read(ctx),
            op::WRITE => self.write(ctx),
            op::READDIR => self.readdir(ctx, false),
            op::READDIRPLUS => self.readdir(ctx, true),
            op::RELEASE | op::RELEASEDIR => ctx.args().u64().and_then(|handle| self.handles.remove(handle)),
            op::FLUSH => self.flush(ctx),
            op::FSYNC | op::FSYNCDIR => self.fsync(ctx),
            op::FALLOCATE => self.fallocate(ctx),
            op::LSEEK => self.lseek(ctx),
            op::COPY_FILE_RANGE => self.copy_file_range(ctx),
            op::STATFS => self.statfs(ctx),
            op::STATX => self.statx(ctx),
            op::SETXATTR => self.setxattr(ctx),
            op::GETXATTR => self.getxattr(ctx),
            op::LISTXATTR => self.listxattr(ctx),
            op::REMOVEXATTR => self.removexattr(ctx),
            op::INIT => self.init(ctx),
            op::DESTROY => {
                self.clear();
                Ok(())
            }
            _ => Err(Errno::NOSYS), // Linux does not send this opcode again
        }
    }

    fn clear(&self) {
        self.handles.clear();
        self.inodes.clear();
    }

    fn init(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (major, minor, max_readahead, offered) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        if major != VERSION.0 || minor < MIN_MINOR {
            return Err(Errno::PROTO);
        }
        self.clear();
        // Not the locks: those of the guest are its own, so no worker waits for one. Not the write-back cache: with it,
        // Linux ignores the size that the host reports (`fuse_get_cache_mask` in fs/fuse/inode.c).
        let wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::CACHE_SYMLINKS
            | init::HANDLE_KILLPRIV_V2;
        let (background, congested) = (64u32, 48u32); // requests in flight for readahead
        ctx.reply.u32(VERSION.0).u32(VERSION.1).u32(max_readahead).u32(offered & wanted);
        ctx.reply.u32(background | congested << 16).u32(u32::from(MAX_PAGES) * PAGE);
        ctx.reply.u32(1).u32(MAX_PAGES.into()).u64(0).u64(0).u64(0).u64(0); // times have nanoseconds
        Ok(())
    }

    fn forget(&self, mut request: Request<'_>) -> Result<()> {
        let args = &mut request.args;
        match request.opcode {
            op::FORGET => self.inodes.forget(request.node, args.u64()?),
            op::BATCH_FORGET => {
                let count = args.u32()?;
                args.u32()?;
                for _ in 0..count {
                    self.inodes.forget(args.u64()?, args.u64()?);
                }
            }
            _ => {} // no request is interrupted
        }
        Ok(())
    }

    // ---- For the requests ----

    /// Opens the file of `inode`. Only regular files and directories are opened: others are the guest's own devices.
    pub(super) fn reopen(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd> {
        if !matches!(inode.kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::INVAL);
        }
        match self.open_link(&inode.fd, flags) {
            // An overlay reads the files of all owners in this way, which only root may on the host.
            Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => self.open_link(&inode.fd, flags - OFlags::NOATIME),
            opened => opened,
        }
    }

    /// Opens the file that `fd` refers to once more.
    pub(super) fn open_link(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
        openat(&self.links, link(fd), flags | OFlags::CLOEXEC, Mode::empty()).map_err(too_many)
    }

    /// `/proc/self/fd`, and the name there of the file of `inode`. The file need not be opened for its attributes.
    pub(super) fn link_of(&self, inode: &Inode) -> (BorrowedFd<'_>, String) {
        (self.links.as_fd(), link(&inode.fd))
    }

    /// Replies with an entry that was looked up.
    pub(super) fn entry(&self, reply: &mut Reply, id: u64, stat: &Statx) {
        let seconds = self.share.validity().as_secs();
        reply.u64(id).u64(0).u64(seconds).u64(seconds).u32(0).u32(0);
        reply.attributes(stat, self.inodes.number(stat));
    }

    /// Looks up the new entry `name`, gives it to the user of the request, and replies with it.
    pub(super) fn new_entry(&self, ctx: &mut Context<'_>, directory: &Arc<Inode>, name: &CStr) -> Result<u64> {
        let (id, stat) = self.inodes.lookup(directory, name)?;
        let stat = self.own(&ctx.request, directory, id, stat).inspect_err(|_| self.inodes.forget(id, 1))?;
        self.entry(ctx.reply, id, &stat);
        Ok(id)
    }

    /// Gives a new file to the user of the request, as far as the host permits. A directory with the set-group-ID bit
    /// has given it a group.
    pub(super) fn own(&self, request: &Request<'_>, directory: &Inode, id: u64, old: Statx) -> Result<Statx> {
        if !self.is_root {
            return Ok(old);
        }
        let inherits = u32::from(stat(&directory.fd)?.stx_mode) & libc::S_ISGID != 0;
        let gid = if inherits { old.stx_gid } else { request.gid };
        if (old.stx_uid, old.stx_gid) == (request.uid, gid) {
            return Ok(old);
        }
        let inode = self.inodes.get(id)?;
        self.chown(&inode, request.uid, gid)?;
        let mode = u32::from(old.stx_mode);
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 && inode.kind == FileType::RegularFile {
            self.chmod(&inode, mode)?; // chown(2) has cleared them
        }
        stat(&inode.fd)
    }

    pub(super) fn chmod(&self, inode: &Inode, mode: u32) -> Result<()> {
        chmodat(&self.links, link(&inode.fd), Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
    }

    /// Clears the set-user-ID bit, and the set-group-ID bit of an executable. For other users the host does.
    pub(super) fn kill_suidgid(&self, inode: &Inode) -> Result<()> {
        let mode = u32::from(stat(&inode.fd)?.stx_mode);
        let group = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
        let kept = mode & !(libc::S_ISUID | group);
        if self.is_root && kept != mode { self.chmod(inode, kept) } else { Ok(()) }
    }
}

/// The name in `/proc/self/fd`.
fn link(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd().to_string()
}

/// Whether a read-only share refuses the request.
fn is_modification(opcode: u32) -> bool {
    matches!(
        opcode,
        op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::CREATE
            | op::TMPFILE
            | op::WRITE
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::SETXATTR
            | op::REMOVEXATTR
    )
}
