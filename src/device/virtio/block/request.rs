//! A driver's request (virtio 1.3, 5.2.6), checked against the disk, and the file operations that it takes.

use std::io;

use virtio_bindings::virtio_blk::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::disk::Disk;
use crate::device::virtio::{Buffer, Buffers, Chain};
use crate::sys::async_io::{Operation, Payload};
use crate::sys::vectored_io::Direction;

/// Number of bytes in a sector, independent of the disk's block size (5.2.6).
pub const SECTOR: u64 = 512;
/// The most sectors that one request discards: 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The most sectors that one request fills with zeros: 64 MiB, because some file systems can only write them.
pub const MAX_ZERO_SECTORS: u32 = 1 << 17;
/// The most bytes that one fallocate(2) changes, so that others have their turn.
const MAX_ALLOCATE: u64 = 128 << 20;

/// The status of a request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(clippy::cast_possible_truncation, reason = "the values are 0 to 2")]
pub enum Status {
    /// Success.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// The host failed, or the request is not valid for this disk.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// The request's type is unknown.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What is left of a valid request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    #[default]
    Done,
    /// Move bytes between the chain's data and the disk, from `offset` on.
    Transfer {
        /// Which way.
        direction: Direction,
        /// In bytes.
        offset: u64,
    },
    /// Bring what was written before to the medium.
    Flush,
    /// Deallocate a range, whose content does not matter any more.
    Discard(Range),
    /// Fill a range with zeros.
    Zero {
        /// The range.
        range: Range,
        /// Whether it may be deallocated.
        unmap: bool,
    },
    /// Fill a range with zeros by writing them.
    WriteZeros(Range),
}

/// A part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub len: u64,
}

impl Range {
    fn skip(&mut self, count: u64) {
        self.offset += count; // inside the disk
        self.len = self.len.saturating_sub(count);
    }
}

/// A request from when it is taken from the queue to when it is returned.
#[derive(Debug, Default)]
pub struct Inflight {
    /// Its descriptor chain. The data is what is left of the readable or writable buffers.
    pub chain: Chain,
    /// What is left of it.
    pub request: Request,
    /// Where its status goes.
    pub status: GuestAddress,
    /// The length of the driver's buffers before anything was written to them.
    pub room: usize,
    /// Whether its transfers bypass the host's page cache.
    pub direct: bool,
}

impl Payload for Box<Inflight> {
    fn buffers(&self) -> impl Iterator<Item = Buffer> {
        self.data().iter().copied()
    }
}

impl Inflight {
    /// The data that is still to be moved.
    pub fn data(&self) -> &Buffers {
        match self.request {
            Request::Transfer { direction: Direction::Write, .. } => &self.chain.readable,
            _ => &self.chain.writable,
        }
    }

    /// The next operation on the disk's file; `None` if nothing is left. If the request is `durable`, what it writes is
    /// on the medium afterwards.
    pub fn operation(&self, durable: bool) -> Option<Operation> {
        let allocate = |mode, Range { offset, len }: Range| {
            let len = len.min(MAX_ALLOCATE);
            Operation::Allocate { mode: mode | libc::FALLOC_FL_KEEP_SIZE, offset, len }
        };
        match self.request {
            Request::Done => None,
            Request::Transfer { .. } if self.data().is_empty() => None,
            Request::Transfer { direction, offset } => {
                let flags = if durable && direction == Direction::Write { libc::RWF_DSYNC } else { 0 };
                Some(Operation::Transfer { direction, offset, flags })
            }
            Request::Flush => Some(Operation::Sync),
            Request::Discard(range) | Request::Zero { range, unmap: true } => {
                Some(allocate(libc::FALLOC_FL_PUNCH_HOLE, range))
            }
            Request::Zero { range, unmap: false } => Some(allocate(libc::FALLOC_FL_ZERO_RANGE, range)),
            Request::WriteZeros(Range { offset, len }) => Some(Operation::WriteZeros { offset, len }),
        }
    }

    /// Continues after the [`operation`](Inflight::operation), which has ended with `result`.
    ///
    /// # Errors
    ///
    /// The request has failed.
    pub fn resume(&mut self, result: io::Result<usize>, durable: bool) -> io::Result<()> {
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
        // The latter where a block device's blocks are larger than the guest's.
        let unsupported = matches!(errno, Some(libc::EOPNOTSUPP | libc::EINVAL));
        match &mut self.request {
            // O_DIRECT requires an alignment that the driver does not guarantee.
            Request::Transfer { .. } if self.direct && errno == Some(libc::EINVAL) => self.direct = false,
            Request::Transfer { direction, offset } => {
                let count = result.and_then(moved)?;
                *offset += count as u64; // inside the disk
                match direction {
                    Direction::Read => self.chain.writable.skip(count),
                    Direction::Write => self.chain.readable.skip(count),
                }
            }
            Request::Discard(_) if unsupported => self.request = Request::Done, // it was only a hint
            Request::Zero { range, unmap: true } if unsupported => {
                self.request = Request::Zero { range: *range, unmap: false };
            }
            Request::Zero { range, unmap: false } if unsupported => self.request = Request::WriteZeros(*range),
            Request::Discard(range) | Request::Zero { range, .. } => {
                result?;
                range.skip(range.len.min(MAX_ALLOCATE));
            }
            Request::WriteZeros(range) => range.skip(result.and_then(moved)? as u64),
            Request::Flush | Request::Done => {
                result?;
                self.request = Request::Done;
            }
        }
        if let Request::Discard(range) | Request::Zero { range, .. } | Request::WriteZeros(range) = self.request
            && range.len == 0
        {
            self.request = if durable { Request::Flush } else { Request::Done };
        }
        Ok(())
    }
}

/// The number of bytes that a transfer has moved. Zero means that the file ends before the end of the disk.
fn moved(count: usize) -> io::Result<usize> {
    let truncated = || io::Error::new(io::ErrorKind::UnexpectedEof, "the file was truncated");
    if count == 0 { Err(truncated()) } else { Ok(count) }
}

/// Parses the request in a chain without its status byte. Removes all but the data from the chain. A request for the
/// disk's serial number, `id`, is answered and done.
///
/// # Errors
///
/// The status of a request that is not valid.
pub fn parse(chain: &mut Chain, memory: &GuestMemoryMmap, disk: &Disk, id: &[u8]) -> Result<Request, Status> {
    let [kind, _priority, sector_low, sector_high] =
        chain.readable.read_obj::<[u32; 4]>(memory).ok_or(Status::IoError)?.map(u32::from_le);
    let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
    match kind {
        VIRTIO_BLK_T_IN => transfer(Direction::Read, sector, chain.writable.len(), disk),
        VIRTIO_BLK_T_OUT => transfer(Direction::Write, sector, chain.readable.len(), disk),
        VIRTIO_BLK_T_FLUSH => Ok(if disk.read_only { Request::Done } else { Request::Flush }),
        VIRTIO_BLK_T_GET_ID => {
            chain.writable.write(memory, id);
            Ok(Request::Done)
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !disk.read_only => {
            let segment = match chain.readable.len() {
                16 => chain.readable.read_obj(memory).ok_or(Status::IoError)?,
                _ => return Err(Status::IoError), // the configuration space allows one segment
            };
            range(kind == VIRTIO_BLK_T_DISCARD, segment, disk)
        }
        _ => Err(Status::Unsupported),
    }
}

fn transfer(direction: Direction, sector: u64, len: usize, disk: &Disk) -> Result<Request, Status> {
    let len = len as u64;
    if !len.is_multiple_of(SECTOR) || direction == Direction::Write && disk.read_only {
        return Err(Status::IoError);
    }
    let Range { offset, .. } = on_disk(sector, len / SECTOR, disk)?;
    Ok(Request::Transfer { direction, offset })
}

/// The request of a segment to discard or to zero (5.2.6).
fn range(discard: bool, segment: [u32; 4], disk: &Disk) -> Result<Request, Status> {
    let [sector_low, sector_high, count, flags] = segment.map(u32::from_le);
    let unmap = flags == VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if flags != 0 && (discard || !unmap) {
        return Err(Status::Unsupported); // 5.2.6.2
    }
    if count > if discard { MAX_DISCARD_SECTORS } else { MAX_ZERO_SECTORS } {
        return Err(Status::IoError);
    }
    let range = on_disk(u64::from(sector_high) << 32 | u64::from(sector_low), count.into(), disk)?;
    Ok(match range.len {
        0 => Request::Done,
        _ if discard => Request::Discard(range),
        _ => Request::Zero { range, unmap },
    })
}

/// The range of `count` sectors from `sector` on, if it is on the disk.
fn on_disk(sector: u64, count: u64, disk: &Disk) -> Result<Range, Status> {
    match sector.checked_add(count) {
        // The disk's size in bytes is one that files can have, so nothing overflows.
        Some(end) if end <= disk.sectors => Ok(Range { offset: sector * SECTOR, len: count * SECTOR }),
        _ => Err(Status::IoError),
    }
}
