//! Exercise 03a: an access that is longer than its device.
//!
//! A guest may read 4 bytes from the last port of a device. Only the first of them belongs to the device; a device that
//! receives all 4 accesses memory behind its registers, or panics.

/// A device has the `len` ports from `base`. The guest accesses `size` bytes from `port` on. Returns the offset of the
/// first byte in the device and how many bytes belong to it, or `None` if the first byte does not.
pub fn part_of(base: u16, len: u16, port: u16, size: usize) -> Option<(u16, usize)> {
    // TODO: the access may end behind the device. And what is `base + len` for the last port, 0xffff?
    (port >= base && port < base.wrapping_add(len)).then(|| (port - base, size))
}
