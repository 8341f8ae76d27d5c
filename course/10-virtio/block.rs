//! A block device: what it does with a request (virtio 1.3, 5.2.6).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::queue::{Buffer, Error, Queue};

pub const SECTOR: u64 = 512;
/// The only type of request that this device has.
pub const READ: u32 = 0;
const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

// ANCHOR: block
/// Executes all requests of the queue. Returns their number.
pub fn serve(queue: &mut Queue, memory: &GuestMemoryMmap, disk: &[u8]) -> Result<u32, Error> {
    let mut count = 0;
    while let Some((head, buffers)) = queue.pop(memory)? {
        let written = execute(memory, disk, &buffers)?;
        queue.push(memory, head, written)?;
        count += 1;
    }
    Ok(count)
}

/// A request has a header, buffers for the data, and a last byte for the status.
fn execute(memory: &GuestMemoryMmap, disk: &[u8], buffers: &[Buffer]) -> Result<u32, Error> {
    let [header, data, status] = buffers else { return Ok(0) };
    if !status.writable {
        return Ok(0);
    }
    let kind: u32 = memory.read_obj(header.address)?;
    let sector: u64 = memory.read_obj(GuestAddress(header.address.0.wrapping_add(8)))?;
    // Both numbers are the guest's: the product and the sum may exceed 64 bits, and the range the disk.
    let start = sector.checked_mul(SECTOR).and_then(|start| usize::try_from(start).ok());
    let bytes = start.and_then(|start| disk.get(start..start.checked_add(usize::try_from(data.len).ok()?)?));
    let (result, written) = match (kind, bytes) {
        (READ, Some(bytes)) if data.writable => {
            memory.write_slice(bytes, data.address)?;
            (STATUS_OK, data.len.saturating_add(1))
        }
        (READ, _) => (STATUS_IO_ERROR, 1),
        _ => (STATUS_UNSUPPORTED, 1),
    };
    memory.write_obj(result, status.address)?;
    Ok(written)
}
// ANCHOR_END: block
