//! The table of inodes that the guest has looked up, and which of them are open.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::mem::take;
use std::sync::Arc;

use rustix::fs::Statx;
use rustix::io::{Errno, Result};

use super::inodes::Inode;
use super::protocol::ROOT;

/// How many open inodes are examined at a time to close some.
const EXAMINED: usize = 64;

/// What identifies a file: device, inode number, mount, and the time of its creation, as numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key((u32, u32), u64, u64, (i64, u32));

impl Key {
    pub fn new(stat: &Statx) -> Self {
        let birth = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        Self(device(stat), stat.stx_ino, stat.stx_mnt_id, birth)
    }
}

/// Major and minor of the device that has the file.
pub fn device(stat: &Statx) -> (u32, u32) {
    (stat.stx_dev_major, stat.stx_dev_minor)
}

/// The most inodes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// That are open, besides those in use.
    pub open: usize,
    /// That the guest may know.
    pub known: usize,
}

/// A known inode.
#[derive(Debug)]
struct Entry {
    key: Key,
    lookups: u64,
    /// The directory and the name by which it was found last. A file without a name stays open.
    place: Option<(u64, CString)>,
    inode: Option<Arc<Inode>>, // if it is open
    was_used: bool,            // since it was examined
}

/// The table. IDs are not reused.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    by_id: HashMap<u64, Entry>,
    ids: HashMap<Key, u64>,
    last_id: u64,
    open: VecDeque<u64>, // in the order of examination; some may be forgotten
}

/// Where an inode can be found that is not open.
pub struct Closed {
    pub id: u64,
    pub key: Key,
    pub directory: u64,
    pub name: CString,
}

/// Descriptors to close without the lock of the table, as close(2) may block.
pub type Surplus = Vec<Arc<Inode>>;

impl Table {
    pub fn new(limits: Limits) -> Self {
        Self { limits, by_id: HashMap::new(), ids: HashMap::new(), last_id: ROOT, open: VecDeque::new() }
    }

    /// The inode `id` if it is open, else its place.
    pub fn get(&mut self, id: u64) -> Result<std::result::Result<Arc<Inode>, Closed>> {
        let entry = self.by_id.get_mut(&id).ok_or(Errno::NOENT)?;
        entry.was_used = true;
        Ok(match (&entry.inode, &entry.place) {
            (Some(inode), _) => Ok(inode.clone()),
            (None, Some((directory, name))) => {
                Err(Closed { id, key: entry.key, directory: *directory, name: name.clone() })
            }
            (None, None) => return Err(Errno::STALE),
        })
    }

    /// Counts a lookup of `inode`, which is new or known, at `place`. Returns its ID.
    pub fn look_up(&mut self, key: Key, place: Option<(u64, &CStr)>, mut inode: Inode) -> Result<(u64, Surplus)> {
        let place = place.map(|(directory, name)| (directory, name.to_owned()));
        let id = match self.ids.get(&key) {
            Some(id) => *id,
            None if self.by_id.len() >= self.limits.known => return Err(Errno::NFILE),
            None => {
                self.last_id += 1;
                self.ids.insert(key, self.last_id);
                self.last_id
            }
        };
        let new = || Entry { key, lookups: 0, place: None, inode: None, was_used: false };
        let entry = self.by_id.entry(id).or_insert_with(new);
        entry.lookups += 1;
        entry.place = place.or(entry.place.take());
        inode.id = id;
        Ok((id, self.keep(Arc::new(inode)).1))
    }

    /// Keeps `inode` open, or the one with the same ID that is open already.
    pub fn keep(&mut self, inode: Arc<Inode>) -> (Arc<Inode>, Surplus) {
        let Some(entry) = self.by_id.get_mut(&inode.id) else { return (inode, Vec::new()) }; // forgotten meanwhile
        if let Some(inode) = &entry.inode {
            return (inode.clone(), Vec::new());
        }
        entry.inode = Some(inode.clone());
        self.open.push_back(inode.id);
        (inode, self.surplus())
    }

    /// Removes descriptors beyond the limit: of those that are not in use, the ones that were not used lately.
    fn surplus(&mut self) -> Surplus {
        let mut surplus = Vec::new();
        for _ in 0..EXAMINED {
            if self.open.len() <= self.limits.open {
                break;
            }
            let Some(id) = self.open.pop_front() else { break };
            let Some(entry) = self.by_id.get_mut(&id) else { continue };
            let in_use = entry.inode.as_ref().is_none_or(|inode| Arc::strong_count(inode) > 1);
            if in_use || entry.place.is_none() || take(&mut entry.was_used) {
                self.open.push_back(id);
            } else {
                surplus.extend(entry.inode.take());
            }
        }
        surplus
    }

    /// Takes back `count` lookups of the inode `id`. Returns it if that was the last one.
    pub fn forget(&mut self, id: u64, count: u64) -> Option<Arc<Inode>> {
        let entry = self.by_id.get_mut(&id)?;
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups > 0 {
            return None;
        }
        let entry = self.by_id.remove(&id)?;
        self.ids.remove(&entry.key);
        entry.inode
    }

    /// The numbers of known and of open inodes.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize) {
        (self.by_id.len(), self.by_id.values().filter(|entry| entry.inode.is_some()).count())
    }
}
