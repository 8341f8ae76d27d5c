//! What a driver asks of a disk (virtio 1.3, 5.2.6), checked against what the disk has.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemoryMmap;

use crate::device::virtio::Chain;
use crate::sys::vectored_io::Direction;

/// Bytes a sector, whatever the disk's block size is (5.2.6).
pub const SECTOR: u64 = 512;
/// The most sectors one request may discard: 2 GiB.
pub const MAX_DISCARDED: u32 = 1 << 22;
/// The most sectors one request may fill with zeros: 64 MiB, because a file system may know no better way than to write them.
pub const MAX_ZEROED: u32 = 1 << 17;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// As it should.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// It could not be done, or makes no sense.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// No such request is known.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A request that the disk can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Moves bytes between what is left of the chain and the disk.
    Transfer {
        /// Which way.
        direction: Direction,
        /// Where on the disk, in bytes.
        offset: u64,
    },
    /// Brings to the medium what was written before.
    Flush,
    /// Tells the disk's serial number.
    Identify,
    /// Gives a range back to the file system. What it holds afterwards does not matter.
    Discard(Range),
    /// Fills a range with zeros.
    Zero {
        /// The range.
        range: Range,
        /// Whether it may be given back to the file system.
        unmap: bool,
    },
}

/// A part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sectors of the disk.
    pub sectors: u64,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// The request in a chain whose status byte was taken off. Takes off all but the data to be moved.
pub fn parse(chain: &mut Chain, memory: &GuestMemoryMmap, limits: Limits) -> Result<Request, Status> {
    let [kind, _priority, sector_low, sector_high] =
        chain.readable.read_obj::<[u32; 4]>(memory).map_err(|_| Status::IoError)?.map(u32::from_le);
    let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
    match kind {
        VIRTIO_BLK_T_IN => transfer(Direction::Read, sector, chain.writable.len(), limits),
        VIRTIO_BLK_T_OUT => transfer(Direction::Write, sector, chain.readable.len(), limits),
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Request::Identify),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !limits.read_only => {
            let segment = match chain.readable.len() {
                16 => chain.readable.read_obj(memory).map_err(|_| Status::IoError)?,
                _ => return Err(Status::IoError), // one segment is what the driver was told it may give
            };
            range(kind == VIRTIO_BLK_T_DISCARD, segment, limits)
        }
        _ => Err(Status::Unsupported),
    }
}

fn transfer(direction: Direction, sector: u64, len: usize, limits: Limits) -> Result<Request, Status> {
    let len = len as u64;
    if !len.is_multiple_of(SECTOR) || direction == Direction::Write && limits.read_only {
        return Err(Status::IoError);
    }
    let Range { offset, .. } = on_disk(sector, len / SECTOR, limits)?;
    Ok(Request::Transfer { direction, offset })
}

/// The segment of a discard or write-zeroes request (5.2.6).
fn range(discard: bool, segment: [u32; 4], limits: Limits) -> Result<Request, Status> {
    let [sector_low, sector_high, count, flags] = segment.map(u32::from_le);
    let unmap = flags == VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if flags != 0 && (discard || !unmap) {
        return Err(Status::Unsupported); // 5.2.6.2 wants it so
    }
    if count > if discard { MAX_DISCARDED } else { MAX_ZEROED } {
        return Err(Status::IoError);
    }
    let range = on_disk(u64::from(sector_high) << 32 | u64::from(sector_low), count.into(), limits)?;
    Ok(if discard { Request::Discard(range) } else { Request::Zero { range, unmap } })
}

/// The bytes of `count` sectors from `sector` on, if the disk has them.
fn on_disk(sector: u64, count: u64, limits: Limits) -> Result<Range, Status> {
    match sector.checked_add(count) {
        // The disk's size in bytes is one that files can have, so nothing overflows.
        Some(end) if end <= limits.sectors => Ok(Range { offset: sector * SECTOR, len: count * SECTOR }),
        _ => Err(Status::IoError),
    }
}
