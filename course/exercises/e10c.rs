//! Exercise 10c: a device of your own, which Linux drives.
//!
//! An entropy device has one queue and no configuration (virtio 1.3, 5.4). Linux's driver offers buffers, the device
//! fills them with random bytes, and the guest's /dev/hwrng reads them. This is all that makes it an entropy device and
//! not a disk.

/// A buffer of a request.
#[derive(Debug)]
pub struct Buffer<'a> {
    pub bytes: &'a mut [u8],
    /// Whether the device may write to it. A correct driver of this device offers no others.
    pub writable: bool,
}

/// Executes one request: fills the writable buffers by `random`, in order, but takes 64 bytes at most from it, so that
/// a hostile guest cannot keep the device busy. Returns the number of bytes written, which the used ring reports.
pub fn execute(buffers: &mut [Buffer], mut random: impl FnMut(&mut [u8])) -> u32 {
    // TODO: the limit, the result, and:
    for buffer in buffers {
        let _ = buffer.writable;
        random(buffer.bytes);
    }
    0
}
