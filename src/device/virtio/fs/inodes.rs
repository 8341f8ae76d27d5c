//! The inodes that the guest uses. Each is an `O_PATH` descriptor, so its inode number cannot be reused. Beyond a
//! limit, those that the guest only remembers are closed, and opened again by their last name when the guest uses them.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::{Errno, Result};

use super::protocol::ROOT;
use super::share::is_pseudo;
use super::table::{Key, Limits, Table, device};

/// The deepest directory that is opened again. The host can move directories so that their last names form a circle.
const MAX_DEPTH: usize = 4096;

/// A file of the host.
#[derive(Debug)]
pub struct Inode {
    pub id: u64,
    pub fd: OwnedFd,
    pub kind: FileType,
    /// It is a directory whose files the guest must not see.
    pub sealed: bool,
    device: (u32, u32),
}

/// The inodes of a share.
#[derive(Debug)]
pub struct Inodes {
    root: Arc<Inode>,
    root_key: Key,
    /// The device and the inode number of the directory of the host's devices, which may be mounted more than once.
    dev: Option<((u32, u32), u64)>,
    limits: Limits,
    table: Mutex<Table>,
    devices: Mutex<Vec<(u32, u32)>>,
}

/// The attributes of the file that `fd` refers to.
pub fn stat(fd: impl AsFd) -> Result<Statx> {
    stat_at(fd, c"")
}

fn stat_at(directory: impl AsFd, path: &CStr) -> Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    statx(directory, path, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID)
}

/// The error for the guest: the limit that was reached is not that of its process.
pub fn too_many(error: Errno) -> Errno {
    if error == Errno::MFILE { Errno::NFILE } else { error }
}

/// Opens the entry `name` of `directory`. Neither a symbolic link nor `..` leads out of that.
fn open(directory: &Inode, name: &CStr) -> Result<OwnedFd> {
    if directory.sealed {
        return Err(Errno::NOENT);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(&directory.fd, name, flags, Mode::empty(), resolve).map_err(too_many)
}

impl Inodes {
    /// A table with the root.
    pub fn new(root: OwnedFd, limits: Limits) -> Result<Self> {
        let stat = stat(&root)?;
        let root_key = Key::new(&stat);
        let dev = stat_at(CWD, c"/dev").ok().map(|stat| (device(&stat), stat.stx_ino));
        let device = device(&stat);
        let root = Inode { id: ROOT, fd: root, kind: FileType::Directory, sealed: false, device };
        let (table, devices) = (Mutex::new(Table::new(limits)), Mutex::new(vec![device]));
        Ok(Self { root: Arc::new(root), root_key, dev, limits, table, devices })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all inodes but the root.
    pub fn clear(&self) {
        let old = std::mem::replace(&mut *self.table(), Table::new(self.limits));
        drop(old);
    }

    /// The inode `id`.
    pub fn get(&self, id: u64) -> Result<Arc<Inode>> {
        let mut closed = Vec::new();
        let mut next = id;
        let mut inode = loop {
            if next == ROOT {
                break self.root.clone();
            }
            match self.table().get(next)? {
                Ok(inode) => break inode,
                Err(place) if closed.len() < MAX_DEPTH => {
                    next = place.directory;
                    closed.push(place);
                }
                Err(_) => return Err(Errno::STALE),
            }
        };
        while let Some(place) = closed.pop() {
            let fd = open(&inode, &place.name).map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => Errno::STALE,
                error => error,
            })?;
            let stat = stat(&fd)?;
            if Key::new(&stat) != place.key {
                return Err(Errno::STALE); // another file has this name now
            }
            let opened = Arc::new(self.inode(place.id, fd, &stat, &inode));
            let surplus;
            (inode, surplus) = self.table().keep(opened);
            drop(surplus);
        }
        Ok(inode)
    }

    /// The directory `id`.
    pub fn directory(&self, id: u64) -> Result<Arc<Inode>> {
        let inode = self.get(id)?;
        if inode.kind == FileType::Directory { Ok(inode) } else { Err(Errno::NOTDIR) }
    }

    /// The inode `id`, which the guest may change.
    pub fn changeable(&self, id: u64) -> Result<Arc<Inode>> {
        let inode = self.get(id)?;
        if inode.sealed { Err(Errno::ROFS) } else { Ok(inode) }
    }

    /// The directory `id`, whose entries the guest may change.
    pub fn changeable_directory(&self, id: u64) -> Result<Arc<Inode>> {
        let inode = self.changeable(id)?;
        if inode.kind == FileType::Directory { Ok(inode) } else { Err(Errno::NOTDIR) }
    }

    /// Looks up the entry `name` of `directory`, which the guest then has to forget. Returns its ID and attributes.
    pub fn lookup(&self, directory: &Inode, name: &CStr) -> Result<(u64, Statx)> {
        self.insert(open(directory, name)?, directory, Some(name))
    }

    /// Adds the file `fd`, which is in `directory`, as [`lookup`](Inodes::lookup) does.
    pub fn insert(&self, fd: OwnedFd, directory: &Inode, name: Option<&CStr>) -> Result<(u64, Statx)> {
        let stat = stat(&fd)?;
        let key = Key::new(&stat);
        if key == self.root_key {
            return Ok((ROOT, stat)); // by a mount of the root below itself
        }
        let place = name.map(|name| (directory.id, name));
        let inode = self.inode(0, fd, &stat, directory); // asks the file system, so without the lock
        let (id, surplus) = self.table().look_up(key, place, inode)?;
        drop(surplus);
        Ok((id, stat))
    }

    fn inode(&self, id: u64, fd: OwnedFd, stat: &Statx, directory: &Inode) -> Inode {
        let (device, kind) = (device(stat), FileType::from_raw_mode(stat.stx_mode.into()));
        let is_interface = || self.dev == Some((device, stat.stx_ino)) || device != directory.device && is_pseudo(&fd);
        let sealed = kind == FileType::Directory && is_interface();
        Inode { id, fd, kind, sealed, device }
    }

    /// Takes back `count` lookups of the inode `id`.
    pub fn forget(&self, id: u64, count: u64) {
        let forgotten = self.table().forget(id, count);
        drop(forgotten); // without the lock, as close(2) may block
    }

    /// The inode number that the guest gets. The guest has one device for all file systems below the share, so numbers
    /// of each but the root's differ in the upper 16 bits.
    pub fn number(&self, stat: &Statx) -> u64 {
        let device = device(stat);
        if device == self.root.device {
            return stat.stx_ino;
        }
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let index = devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            devices.push(device);
            devices.len() - 1
        });
        stat.stx_ino ^ (index as u64) << 48
    }

    /// The numbers of inodes besides the root that the guest knows, and that are open.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize) {
        self.table().len()
    }
}
