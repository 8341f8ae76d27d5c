//! Solution of exercise 03a: an access that is longer than its device.

/// A device has the `len` ports from `base`. The guest accesses `size` bytes from `port` on. Returns the offset of the
/// first byte in the device and how many bytes belong to it, or `None` if the first byte does not.
pub fn part_of(base: u16, len: u16, port: u16, size: usize) -> Option<(u16, usize)> {
    let offset = port.checked_sub(base)?;
    let rest = len.checked_sub(offset).filter(|rest| *rest > 0)?;
    Some((offset, size.min(usize::from(rest))))
}
