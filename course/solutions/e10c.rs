//! Solution of exercise 10c: a device of your own, which Linux drives.

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
    let mut written = 0;
    for buffer in buffers.iter_mut().filter(|buffer| buffer.writable) {
        let len = buffer.bytes.len().min(64 - written);
        random(&mut buffer.bytes[..len]);
        written += len;
    }
    u32::try_from(written).unwrap_or(0)
}
