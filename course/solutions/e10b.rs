//! Solution of exercise 10b: how many requests are pending.

/// Returns the number of pending requests, or `None` if the driver's index is wrong.
pub fn pending(driver_index: u16, device_position: u16, size: u16) -> Option<u16> {
    Some(driver_index.wrapping_sub(device_position)).filter(|pending| *pending <= size)
}
