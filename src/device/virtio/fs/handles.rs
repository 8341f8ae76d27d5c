//! The files and directories that the guest has open.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{RawDir, SeekFrom, seek};
use rustix::io::{Errno, Result};

use super::inodes::Inode;

/// Bytes that are read from a directory at a time.
const DIRECTORY_BUFFER: usize = 32 << 10;
/// The most open files.
const MAX_HANDLES: usize = 65_536;
/// The most directories with entries that have not been sent. Those of one take about 130 KiB at most.
const MAX_BUFFERS: usize = 64;

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    pub file: OwnedFd,
    /// Stays open while the file is, which may have no name any more.
    pub inode: Arc<Inode>,
    /// Entries that have been read from a directory but not sent.
    pub entries: Mutex<Entries>,
}

/// The table of open files.
#[derive(Debug, Default)]
pub struct Handles {
    table: Mutex<(HashMap<u64, Arc<Handle>>, u64)>,
    /// The directories with entries that have not been sent.
    pub buffers: Arc<AtomicUsize>,
}

impl Handles {
    fn with<T>(&self, access: impl FnOnce(&mut HashMap<u64, Arc<Handle>>, &mut u64) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, last) = &mut *table;
        access(map, last)
    }

    /// Adds an open file. Returns its number.
    pub fn insert(&self, file: OwnedFd, inode: Arc<Inode>) -> Result<u64> {
        let handle = Arc::new(Handle { file, inode, entries: Mutex::default() });
        self.with(|map, last| {
            if map.len() >= MAX_HANDLES {
                return Err(Errno::NFILE);
            }
            *last += 1;
            map.insert(*last, handle);
            Ok(*last)
        })
    }

    /// The open file with this number.
    pub fn get(&self, number: u64) -> Result<Arc<Handle>> {
        self.with(|map, _| map.get(&number).cloned()).ok_or(Errno::BADF)
    }

    /// Closes the file with this number.
    pub fn remove(&self, number: u64) -> Result<()> {
        self.with(|map, _| map.remove(&number)).map(drop).ok_or(Errno::BADF) // closed without the lock
    }

    /// Closes all files.
    pub fn clear(&self) {
        drop(self.with(|map, _| std::mem::take(map)));
    }
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    pub name: CString,
    pub ino: u64,
    /// `DT_` of its type.
    pub kind: u8,
    /// The position of the next entry.
    pub next: u64,
}

/// Entries of a directory, from a position on.
#[derive(Debug, Default)]
pub struct Entries {
    queue: VecDeque<DirectoryEntry>,
    position: u64, // of the first in the queue
    ended: bool,   // the directory has none after the queue
    slot: Option<Slot>,
}

/// One of the directories with entries that have not been sent.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Entries {
    /// The entry at `position` of `directory`; `None` at its end.
    pub fn at(&mut self, directory: &OwnedFd, position: u64) -> Result<Option<&DirectoryEntry>> {
        if position != self.position {
            seek(directory, SeekFrom::Start(position))?;
            *self = Self { position, ..Self::default() };
        }
        if self.queue.is_empty() && !self.ended {
            self.fill(directory)?;
        }
        if self.queue.is_empty() {
            self.ended = false; // a later read may find new entries
        }
        Ok(self.queue.front())
    }

    /// Removes the first entry.
    pub fn advance(&mut self) {
        if let Some(entry) = self.queue.pop_front() {
            self.position = entry.next;
        }
    }

    /// Keeps what has not been sent, unless that is so for too many directories: `buffers`. Then it is read again.
    pub fn limit(&mut self, buffers: &Arc<AtomicUsize>) {
        if self.queue.is_empty() {
            (self.queue, self.slot) = (VecDeque::new(), None);
        } else if self.slot.is_none() {
            let slot = Slot(buffers.clone());
            if buffers.fetch_add(1, Ordering::Relaxed) < MAX_BUFFERS {
                self.slot = Some(slot);
            } else {
                *self = Self { position: u64::MAX, ..Self::default() }; // not where the next read begins
            }
        }
    }

    fn fill(&mut self, directory: &OwnedFd) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); DIRECTORY_BUFFER];
        let mut list = RawDir::new(directory, &mut buffer);
        while let Some(entry) = list.next() {
            let entry = entry?;
            self.queue.push_back(DirectoryEntry {
                name: entry.file_name().to_owned(),
                ino: entry.ino(),
                kind: kind(entry.file_type()),
                next: entry.next_entry_cookie(),
            });
            if list.is_buffer_empty() {
                return Ok(());
            }
        }
        self.ended = true;
        Ok(())
    }
}

fn kind(kind: rustix::fs::FileType) -> u8 {
    ((kind.as_raw_mode() >> 12) & 0xf).to_le_bytes()[0] // DT_ numbers are the upper bits of the mode
}
