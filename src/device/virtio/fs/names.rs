//! Requests for names in directories: looking up, creating, removing, linking and renaming.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, linkat, makedev, mkdirat, mknodat, openat, openat2,
    readlinkat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result};

use super::inodes::{Inode, stat, too_many};
use super::protocol::{ROOT, Reply, major_minor, op};
use super::session::{Context, OPEN_FLAGS, Session};

impl Session<'_> {
    pub(super) fn lookup(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let name = args.string()?;
        let (id, stat) = match name.to_bytes() {
            // Linux sends neither. The parent directory may be outside of the share by now.
            b"." | b".." if ctx.request.node == ROOT => (ROOT, stat(&directory.fd)?),
            _ => match self.inodes.lookup(&directory, ctx.request.args.name()?) {
                Err(Errno::NOENT) if self.share.stable => {
                    self.no_entry(ctx.reply);
                    return Ok(());
                }
                found => found?,
            },
        };
        self.entry(ctx.reply, id, &stat);
        Ok(())
    }

    /// Replies that an entry does not exist, which the guest may remember.
    fn no_entry(&self, reply: &mut Reply) {
        reply.u64(0).u64(0).u64(self.share.validity().as_secs());
        reply.0.resize(128, 0); // fuse_entry_out
    }

    pub(super) fn readlink(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.get(ctx.request.node)?;
        if inode.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        ctx.reply.0.extend(readlinkat(&inode.fd, c"", Vec::new())?.as_bytes());
        Ok(())
    }

    pub(super) fn symlink(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let (name, target) = (args.name()?, args.string()?);
        symlinkat(target, &directory.fd, name)?;
        self.new_entry(ctx, &directory, name).map(drop)
    }

    pub(super) fn mknod(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let (mode, device) = (args.u32()?, args.u32()?);
        args.u64()?; // umask, which the guest has applied, and padding
        let name = args.name()?;
        let (major, minor) = major_minor(device);
        let kind = FileType::from_raw_mode(mode);
        mknodat(&directory.fd, name, kind, Mode::from_raw_mode(mode & 0o7777), makedev(major, minor))?;
        self.new_entry(ctx, &directory, name).map(drop)
    }

    pub(super) fn mkdir(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let mode = args.u32()?;
        args.u32()?;
        let name = args.name()?;
        mkdirat(&directory.fd, name, Mode::from_raw_mode(mode & 0o7777))?;
        self.new_entry(ctx, &directory, name).map(drop)
    }

    /// Creates a regular file and opens it.
    pub(super) fn create(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let (flags, mode) = (OFlags::from_bits_retain(args.u32()?), args.u32()?);
        args.u64()?; // umask, which the guest has applied, and flags
        let name = args.name()?;
        let new = flags & OPEN_FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        // A file that exists may be a device or a FIFO, which must not be opened.
        match openat2(&directory.fd, name, new, Mode::from_raw_mode(mode & 0o7777), resolve) {
            Ok(file) => self.new_file(ctx, &directory, Some(name), file),
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                let (id, stat) = self.inodes.lookup(&directory, name)?;
                self.entry(ctx.reply, id, &stat);
                self.open_inode(ctx, id, flags).inspect_err(|_| self.inodes.forget(id, 1))
            }
            Err(error) => Err(too_many(error)),
        }
    }

    /// Creates a file without a name and opens it.
    pub(super) fn tmpfile(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let (flags, mode) = (OFlags::from_bits_retain(args.u32()?), args.u32()?);
        let flags = flags & (OFlags::ACCMODE | OFlags::EXCL) | OFlags::TMPFILE | OFlags::CLOEXEC;
        let (links, link) = self.link_of(&directory);
        let file = openat(links, link, flags, Mode::from_raw_mode(mode & 0o7777)).map_err(too_many)?;
        self.new_file(ctx, &directory, None, file)
    }

    /// Replies with a new file of `directory` and a handle of it.
    fn new_file(&self, ctx: &mut Context<'_>, directory: &Inode, name: Option<&CStr>, file: OwnedFd) -> Result<()> {
        let path = self.open_link(&file, OFlags::PATH)?;
        let (id, stat) = self.inodes.insert(path, directory, name)?;
        let ready = self.own(&ctx.request, directory, id, stat).and_then(|stat| Ok((stat, self.inodes.get(id)?)));
        let opened = ready.and_then(|(stat, inode)| Ok((stat, self.handles.insert(file, inode)?)));
        let (stat, handle) = opened.inspect_err(|_| self.inodes.forget(id, 1))?;
        self.entry(ctx.reply, id, &stat);
        ctx.reply.u64(handle).u64(0);
        Ok(())
    }

    pub(super) fn unlink(&self, ctx: &mut Context<'_>, flags: AtFlags) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        unlinkat(&directory.fd, ctx.request.args.name()?, flags)
    }

    pub(super) fn rename(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let new_directory = self.inodes.changeable_directory(args.u64()?)?;
        let flags = if ctx.request.opcode == op::RENAME2 { args.u64()? } else { 0 };
        let flags = u32::try_from(flags).ok().and_then(RenameFlags::from_bits).ok_or(Errno::INVAL)?;
        let (name, new_name) = (args.name()?, args.name()?);
        renameat_with(&directory.fd, name, &new_directory.fd, new_name, flags)?;
        // A lookup stores where a file is now, by which it may be opened again.
        for (directory, name) in [(&new_directory, new_name), (&directory, name)] {
            if let Ok((id, _)) = self.inodes.lookup(directory, name) {
                self.inodes.forget(id, 1);
            }
        }
        Ok(())
    }

    pub(super) fn link(&self, ctx: &mut Context<'_>) -> Result<()> {
        let directory = self.inodes.changeable_directory(ctx.request.node)?;
        let mut args = ctx.request.args;
        let inode = self.inodes.get(args.u64()?)?;
        let name = args.name()?;
        let (links, link) = self.link_of(&inode);
        linkat(links, link, &directory.fd, name, AtFlags::SYMLINK_FOLLOW)?;
        let (id, stat) = self.inodes.lookup(&directory, name)?;
        self.entry(ctx.reply, id, &stat);
        Ok(())
    }
}
