//! The inodes that the guest has looked up. Each is an `O_PATH` descriptor, so its inode number cannot be reused.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::{Errno, Result};

use super::protocol::ROOT;
use super::share::is_pseudo;

/// A file of the host.
#[derive(Debug)]
pub struct Inode {
    pub fd: OwnedFd,
    pub kind: FileType,
    /// It is the root of a file system whose files the guest must not see.
    pub sealed: bool,
    device: (u32, u32),
}

/// The same file has the same device, inode number and mount.
type Key = ((u32, u32), u64, u64);

/// The table of inodes.
#[derive(Debug)]
pub struct Inodes {
    root: Arc<Inode>,
    limit: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Entry>,
    ids: HashMap<Key, u64>,
    last_id: u64, // IDs are not reused
    devices: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct Entry {
    inode: Arc<Inode>,
    key: Key,
    lookups: u64,
}

/// The attributes of the file that `fd` refers to.
pub fn stat(fd: impl AsFd) -> Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    statx(fd, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID)
}

/// The error for the guest: the limit that was reached is not that of its process.
pub fn too_many(error: Errno) -> Errno {
    if error == Errno::MFILE { Errno::NFILE } else { error }
}

impl Inodes {
    /// A table with the root, for at most `limit` inodes.
    pub fn new(root: OwnedFd, limit: usize) -> Result<Self> {
        let stat = stat(&root)?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let root = Arc::new(Inode { fd: root, kind: FileType::Directory, sealed: false, device });
        let inodes = Self { root, limit, table: Mutex::default() };
        inodes.clear();
        Ok(inodes)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all inodes but the root.
    pub fn clear(&self) {
        let devices = vec![self.root.device];
        *self.table() = Table { last_id: ROOT, devices, ..Table::default() };
    }

    /// The inode `id`.
    pub fn get(&self, id: u64) -> Result<Arc<Inode>> {
        match id {
            ROOT => Ok(self.root.clone()),
            _ => self.table().by_id.get(&id).map(|entry| entry.inode.clone()).ok_or(Errno::NOENT),
        }
    }

    /// The directory `id`.
    pub fn directory(&self, id: u64) -> Result<Arc<Inode>> {
        let inode = self.get(id)?;
        if inode.kind == FileType::Directory { Ok(inode) } else { Err(Errno::NOTDIR) }
    }

    /// Looks up the entry `name` of `directory`, which the guest then has to forget. Returns its ID and attributes.
    pub fn lookup(&self, directory: &Inode, name: &CStr) -> Result<(u64, Statx)> {
        if directory.sealed {
            return Err(Errno::NOENT);
        }
        // Neither a symbolic link nor `..` leads out of the directory.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat2(&directory.fd, name, flags, Mode::empty(), resolve).map_err(too_many)?;
        self.insert(fd, directory)
    }

    /// Adds the file `fd`, which is in `directory`, as [`lookup`](Inodes::lookup) does.
    pub fn insert(&self, fd: OwnedFd, directory: &Inode) -> Result<(u64, Statx)> {
        let stat = stat(&fd)?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let key = (device, stat.stx_ino, stat.stx_mnt_id);
        if key.0 == self.root.device && self.is_root(&stat) {
            return Ok((ROOT, stat)); // by a mount of the root below itself
        }
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let sealed = kind == FileType::Directory && device != directory.device && is_pseudo(&fd);
        let mut table = self.table();
        let Table { by_id, ids, last_id, devices } = &mut *table;
        if let Some((id, entry)) = ids.get(&key).and_then(|id| Some((*id, by_id.get_mut(id)?))) {
            entry.lookups += 1;
            return Ok((id, stat));
        }
        if by_id.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        *last_id += 1;
        if !devices.contains(&device) {
            devices.push(device);
        }
        let inode = Arc::new(Inode { fd, kind, sealed, device });
        by_id.insert(*last_id, Entry { inode, key, lookups: 1 });
        ids.insert(key, *last_id);
        Ok((*last_id, stat))
    }

    fn is_root(&self, other: &Statx) -> bool {
        stat(&self.root.fd).is_ok_and(|root| (root.stx_ino, root.stx_mnt_id) == (other.stx_ino, other.stx_mnt_id))
    }

    /// Takes back `count` lookups of the inode `id`.
    pub fn forget(&self, id: u64, count: u64) {
        let mut table = self.table();
        let Some(entry) = table.by_id.get_mut(&id) else { return };
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups == 0 {
            let key = entry.key;
            let forgotten = table.by_id.remove(&id);
            table.ids.remove(&key);
            drop(table); // close(2) may block
            drop(forgotten);
        }
    }

    /// The inode number that the guest gets. The guest has one device for all file systems below the share, so numbers
    /// of each but the root's differ in the upper 16 bits.
    pub fn number(&self, stat: &Statx) -> u64 {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        if device == self.root.device {
            return stat.stx_ino;
        }
        let index = self.table().devices.iter().position(|known| *known == device).unwrap_or(0);
        stat.stx_ino ^ (index as u64) << 48
    }

    /// The number of inodes besides the root.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.table().by_id.len()
    }
}
