//! Requests for the attributes of a file, extended ones included, and of its file system.

use rustix::fs::{
    AtFlags, FileType, Gid, OFlags, StatVfs, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags, chownat,
    fstatvfs, ftruncate, getxattr, listxattr, removexattr, setxattr, utimensat,
};
use rustix::io::{Errno, Result};

use super::inodes::{Inode, stat};
use super::protocol::{Args, valid};
use super::session::{Context, Session};

/// The longest value or list of extended attributes (linux/limits.h).
const MAX_XATTR: usize = 64 << 10;
/// Access control lists are not supported: the guest checks permissions by the mode alone.
const ACL: &[u8] = b"system.posix_acl_";

impl Session<'_> {
    fn reply_attributes(&self, ctx: &mut Context<'_>, inode: &Inode) -> Result<()> {
        let stat = stat(&inode.fd)?;
        ctx.reply.u64(self.share.validity().as_secs()).u64(0).attributes(&stat, self.inodes.number(&stat));
        Ok(())
    }

    pub(super) fn getattr(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.get(ctx.request.node)?;
        self.reply_attributes(ctx, &inode)
    }

    pub(super) fn statx(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.get(ctx.request.node)?;
        let args = ctx.args();
        args.bytes(20)?; // flags and handle, which select nothing here
        let mask = args.u32()?;
        let stat = stat(&inode.fd)?;
        ctx.reply.u64(self.share.validity().as_secs()).u64(0).u64(0).u64(0);
        ctx.reply.statx(&stat, self.inodes.number(&stat), mask);
        Ok(())
    }

    pub(super) fn chown(&self, inode: &Inode, uid: u32, gid: u32) -> Result<()> {
        // -1 leaves the owner or group as it is.
        let uid = (uid != u32::MAX).then(|| Uid::from_raw(uid));
        let gid = (gid != u32::MAX).then(|| Gid::from_raw(gid));
        chownat(&inode.fd, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    pub(super) fn setattr(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.changeable(ctx.request.node)?;
        let args = ctx.args();
        let (set, _, handle, size, _) = (args.u32()?, args.u32()?, args.u64()?, args.u64()?, args.u64()?);
        let (atime, mtime, _) = (args.u64()?, args.u64()?, args.u64()?);
        let (atime_ns, mtime_ns, _, mode, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let (uid, gid) = (args.u32()?, args.u32()?);
        let has = |flag: u32| set & flag != 0;
        if has(valid::MODE) {
            self.chmod(&inode, mode)?;
        }
        if has(valid::UID | valid::GID) {
            let given = |flag, id| if has(flag) { id } else { u32::MAX };
            self.chown(&inode, given(valid::UID, uid), given(valid::GID, gid))?;
        }
        if has(valid::SIZE) {
            match has(valid::FH) {
                true => ftruncate(&self.handles.get(handle)?.file, size)?,
                false if inode.kind == FileType::RegularFile => {
                    ftruncate(self.reopen(&inode, OFlags::WRONLY)?, size)?;
                }
                false => return Err(Errno::INVAL),
            }
        }
        if has(valid::KILL_SUIDGID) {
            self.kill_suidgid(&inode)?;
        }
        if has(valid::ATIME | valid::MTIME) {
            let time = |given, now, seconds: u64, nanoseconds: u32| Timespec {
                tv_sec: seconds.cast_signed(),
                tv_nsec: match (has(given), has(now)) {
                    (false, _) => UTIME_OMIT,
                    (true, true) => UTIME_NOW,
                    (true, false) => nanoseconds.min(999_999_999).into(),
                },
            };
            let times = Timestamps {
                last_access: time(valid::ATIME, valid::ATIME_NOW, atime, atime_ns),
                last_modification: time(valid::MTIME, valid::MTIME_NOW, mtime, mtime_ns),
            };
            let (links, link) = self.link_of(&inode);
            utimensat(links, link, &times, AtFlags::empty())?;
        }
        self.reply_attributes(ctx, &inode)
    }

    pub(super) fn statfs(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.get(ctx.request.node)?;
        let StatVfs { f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_bsize, f_namemax, f_frsize, .. } =
            fstatvfs(&inode.fd)?;
        for number in [f_blocks, f_bfree, f_bavail, f_files, f_ffree] {
            ctx.reply.u64(number);
        }
        for number in [f_bsize, f_namemax, f_frsize] {
            ctx.reply.u32(u32::try_from(number).unwrap_or(u32::MAX));
        }
        ctx.reply.0.resize(80, 0);
        Ok(())
    }

    /// The path of a file on the host. It leads to the file itself, even to a symbolic link.
    fn path_of(&self, inode: &Inode) -> String {
        format!("/proc/self/fd/{}", self.link_of(inode).1)
    }

    pub(super) fn setxattr(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.changeable(ctx.request.node)?;
        let mut args = ctx.request.args;
        let (size, flags) = (args.u32()?, args.u32()?);
        let name = xattr_name(&mut args)?;
        let value = args.bytes(size as usize)?;
        setxattr(self.path_of(&inode), name, value, XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?)
    }

    pub(super) fn removexattr(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.changeable(ctx.request.node)?;
        removexattr(self.path_of(&inode), xattr_name(&mut ctx.request.args)?)
    }

    pub(super) fn getxattr(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.get(ctx.request.node)?;
        let mut args = ctx.request.args;
        let size = args.u64()?; // and padding
        let name = xattr_name(&mut args)?;
        let mut value = vec![0; MAX_XATTR];
        let len = getxattr(self.path_of(&inode), name, &mut value[..])?;
        reply_xattr(ctx, size, &value[..len])
    }

    pub(super) fn listxattr(&self, ctx: &mut Context<'_>) -> Result<()> {
        let inode = self.inodes.get(ctx.request.node)?;
        let size = ctx.args().u64()?;
        let mut list = vec![0; MAX_XATTR];
        let len = listxattr(self.path_of(&inode), &mut list[..])?;
        let names = list[..len].split_inclusive(|byte| *byte == 0).filter(|name| !name.starts_with(ACL));
        reply_xattr(ctx, size, &names.collect::<Vec<_>>().concat())
    }
}

fn xattr_name<'a>(args: &mut Args<'a>) -> Result<&'a std::ffi::CStr> {
    let name = args.string()?;
    if name.to_bytes().starts_with(ACL) { Err(Errno::OPNOTSUPP) } else { Ok(name) }
}

/// Replies with a value, or with its length if the driver has no room for it.
fn reply_xattr(ctx: &mut Context<'_>, size: u64, value: &[u8]) -> Result<()> {
    match usize::try_from(size & u64::from(u32::MAX)) {
        Ok(0) => drop(ctx.reply.u32(u32::try_from(value.len()).unwrap_or(0)).u32(0)),
        Ok(room) if value.len() <= room => ctx.reply.0.extend(value),
        _ => return Err(Errno::RANGE),
    }
    Ok(())
}
