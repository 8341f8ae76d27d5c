//! Requests for the content of open files and directories.

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, seek};
use rustix::io::{Errno, Result};
use std::os::fd::AsFd;

use super::handles::DirectoryEntry;
use super::protocol::{FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, OPEN_KILL_SUIDGID, Reply, WRITE_KILL_SUIDGID};
use super::session::{Context, OPEN_FLAGS, Session};
use crate::sys::vectored_io::Direction;

/// `FUSE_FSYNC_FDATASYNC`.
const DATA_ONLY: u32 = 1;
/// Bytes of `fuse_dirent` without the name, and of `fuse_entry_out`, which precedes it in READDIRPLUS.
const DIRENT: usize = 24;
const ENTRY_OUT: usize = 128;

impl Session<'_> {
    /// Opens the file `id` and replies with its handle.
    pub(super) fn open_inode(&self, ctx: &mut Context<'_>, id: u64, flags: OFlags) -> Result<()> {
        let inode = self.inodes.get(id)?;
        if inode.kind != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let file = self.reopen(&inode, flags & OPEN_FLAGS)?;
        let keep = if self.share.stable { FOPEN_KEEP_CACHE } else { 0 };
        ctx.reply.u64(self.handles.insert(file, inode)?).u32(keep).u32(0);
        Ok(())
    }

    pub(super) fn open(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (flags, open_flags) = (OFlags::from_bits_retain(args.u32()?), args.u32()?);
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if self.share.read_only && writes {
            return Err(Errno::ROFS);
        }
        let id = ctx.request.node;
        self.open_inode(ctx, id, flags)?;
        if flags.contains(OFlags::TRUNC) && open_flags & OPEN_KILL_SUIDGID != 0 {
            let _ = self.kill_suidgid(&*self.inodes.get(id)?); // as on the host, opening does not fail for this
        }
        Ok(())
    }

    pub(super) fn opendir(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.directory(ctx.request.node)?;
        let file = self.reopen(&directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let keep = if self.share.stable { FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR } else { 0 };
        ctx.reply.u64(self.handles.insert(file, directory)?).u32(keep).u32(0);
        Ok(())
    }

    pub(super) fn read(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let handle = self.handles.get(handle)?;
        let buffers = ctx.chain.writable.range(0, size as usize);
        let read = ctx.io.transfer(handle.file.as_fd(), Direction::Read, ctx.memory, buffers, Some(offset), 0);
        ctx.written = read.map_err(|error| errno(&error))?;
        Ok(())
    }

    pub(super) fn write(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (handle, offset, size, flags) = (args.u64()?, args.u64()?, args.u32()?, args.u32()?);
        let handle = self.handles.get(handle)?;
        if ctx.chain.readable.len() != size as usize {
            return Err(Errno::INVAL);
        }
        if flags & WRITE_KILL_SUIDGID != 0 {
            self.kill_suidgid(&*self.inodes.get(ctx.request.node)?)?;
        }
        let buffers = ctx.chain.readable.range(0, size as usize);
        let written = ctx.io.transfer(handle.file.as_fd(), Direction::Write, ctx.memory, buffers, Some(offset), 0);
        let written = written.map_err(|error| errno(&error))?;
        ctx.reply.u32(u32::try_from(written).unwrap_or(u32::MAX)).u32(0);
        Ok(())
    }

    /// Replies with entries of a directory. With `plus`, each is looked up, and the guest has to forget it.
    pub(super) fn readdir(&self, ctx: &mut Context<'_>, plus: bool) -> Result<()> {
        let node = ctx.request.node;
        let args = ctx.args();
        let (handle, mut offset, size) = (args.u64()?, args.u64()?, args.u32()? as usize);
        let handle = self.handles.get(handle)?;
        let directory = &handle.inode;
        if directory.id != node {
            return Err(Errno::BADF);
        }
        if directory.sealed {
            return Ok(());
        }
        let room = size.min(ctx.chain.writable.len());
        let mut entries = handle.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while let Some(entry) = entries.at(&handle.file, offset)? {
            let name = entry.name.to_bytes();
            let len = (if plus { ENTRY_OUT } else { 0 } + DIRENT + name.len()).next_multiple_of(8);
            if ctx.reply.0.len() + len > room {
                break;
            }
            if plus {
                match name {
                    b"." | b".." => ctx.reply.0.extend([0; ENTRY_OUT]),
                    _ => match self.inodes.lookup(directory, &entry.name) {
                        Ok((id, stat)) => self.entry(ctx.reply, id, &stat),
                        Err(_) => ctx.reply.0.extend([0; ENTRY_OUT]), // the guest looks it up itself
                    },
                }
            }
            dirent(ctx.reply, entry);
            offset = entry.next;
            entries.advance();
        }
        entries.limit(&self.handles.buffers);
        Ok(())
    }

    /// Reports an error of earlier writes that the file system of the host reports at close(2).
    pub(super) fn flush(&self, ctx: &mut Context<'_>) -> Result<()> {
        if self.share.read_only {
            return Err(Errno::NOSYS); // Linux does not send it again
        }
        let handle = self.handles.get(ctx.args().u64()?)?;
        let copy = rustix::io::dup(&handle.file)?;
        nix::unistd::close(copy).map_err(|error| Errno::from_raw_os_error(error as i32))
    }

    pub(super) fn fsync(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (handle, flags) = (args.u64()?, args.u32()?);
        let file = &self.handles.get(handle)?.file;
        if flags & DATA_ONLY != 0 { fdatasync(file) } else { fsync(file) }
    }

    pub(super) fn fallocate(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (handle, offset, len, mode) = (args.u64()?, args.u64()?, args.u64()?, args.u32()?);
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        fallocate(&self.handles.get(handle)?.file, mode, offset, len)
    }

    pub(super) fn lseek(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (handle, offset, whence) = (args.u64()?, args.u64()?, args.u32()?);
        let from = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let found = seek(&self.handles.get(handle)?.file, from)?;
        ctx.reply.u64(found);
        Ok(())
    }

    pub(super) fn copy_file_range(&self, ctx: &mut Context<'_>) -> Result<()> {
        let args = ctx.args();
        let (from, mut from_at, _, to, mut to_at) = (args.u64()?, args.u64()?, args.u64()?, args.u64()?, args.u64()?);
        let (len, flags) = (args.u64()?, args.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.handles.get(from)?, self.handles.get(to)?);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let copied = copy_file_range(&from.file, Some(&mut from_at), &to.file, Some(&mut to_at), len)?;
        ctx.reply.u32(u32::try_from(copied).unwrap_or(u32::MAX)).u32(0);
        Ok(())
    }
}

/// `fuse_dirent`, a multiple of eight bytes.
fn dirent(reply: &mut Reply, entry: &DirectoryEntry) {
    let name = entry.name.to_bytes();
    reply.u64(entry.ino).u64(entry.next).u32(u32::try_from(name.len()).unwrap_or(0)).u32(entry.kind.into());
    reply.0.extend(name);
    reply.0.resize(reply.0.len().next_multiple_of(8), 0);
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
