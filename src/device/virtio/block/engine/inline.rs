//! The inline path: what never blocks is done by the thread that takes the request.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::GuestMemoryMmap;

use crate::device::virtio::Buffers;
use crate::device::virtio::block::disk::{Disk, Inline};
use crate::sys::async_io::Operation;
use crate::sys::vectored_io::{Direction, IoVecs, MAX_BYTES, ZEROS};

/// The most bytes that are moved in one turn of the event loop or one exit of a vCPU.
const MAX_TURN_BYTES: usize = 8 << 20;

/// With so many requests in flight, reads are not tried inline. A read that finds nothing in the page cache starts
/// readahead, and even that waits for a device which does not answer as soon as its queue is full.
const MAX_MISSES: usize = 8;

/// What may still be done in this turn.
#[derive(Debug)]
pub struct TurnBudget {
    bytes: usize,
    cached: bool,
}

impl TurnBudget {
    /// The budget of a new turn, which begins with `in_flight` requests in flight.
    pub fn new(in_flight: usize) -> Self {
        Self { bytes: MAX_TURN_BYTES, cached: in_flight < MAX_MISSES }
    }

    /// Whether nothing is left.
    pub fn is_used_up(&self) -> bool {
        self.bytes == 0
    }
}

/// Executes an operation on `disk`, perhaps only its first part. `None` if it might block or `budget` is used up.
pub fn execute(
    disk: &Disk,
    operation: Operation,
    memory: &GuestMemoryMmap,
    data: &Buffers,
    iovecs: &mut IoVecs,
    budget: &mut TurnBudget,
) -> Option<io::Result<usize>> {
    let file = disk.files.first()?;
    let len = data.len();
    let mut transfer = |direction, offset, flags| {
        iovecs.transfer(file.as_fd(), direction, memory, data.iter().copied(), Some(offset), flags)
    };
    let result = match (disk.inline, operation) {
        (Inline::CachedReads, Operation::Transfer { direction: Direction::Read, offset, flags })
            if budget.cached && !disk.direct && len <= MAX_BYTES =>
        {
            match transfer(Direction::Read, offset, flags | libc::RWF_NOWAIT) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    budget.cached = false; // what follows is probably not cached either
                    return None;
                }
                // Linux 5.9 and 5.10 may return 0 where they would have to wait (readv(2)).
                Ok(0) => return None,
                result => result,
            }
        }
        (Inline::Everything, _) if budget.is_used_up() => return None,
        (Inline::Everything, Operation::Transfer { direction, offset, flags }) => transfer(direction, offset, flags),
        #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits")]
        (Inline::Everything, Operation::WriteZeros { offset, len }) => {
            file.write_at(&ZEROS[..ZEROS.len().min(len as usize)], offset)
        }
        (Inline::Everything, Operation::Allocate { mode, offset, len }) => {
            budget.bytes = budget.bytes.saturating_sub(MAX_BYTES);
            fallocate(file, FallocateFlags::from_bits_retain(mode), offset.cast_signed(), len.cast_signed())
                .map(|()| 0)
                .map_err(io::Error::from)
        }
        (Inline::Everything, Operation::Sync) => Ok(0),
        _ => return None,
    };
    budget.bytes = budget.bytes.saturating_sub(*result.as_ref().unwrap_or(&0));
    Some(result)
}
