//! Exercise 10b: how many requests are pending.
//!
//! The driver's available index counts requests. It has 16 bits and wraps; the device's own position does, too. An
//! index that is ahead by more than the size of the queue is an error: the device would execute old entries again.

/// Returns the number of pending requests, or `None` if the driver's index is wrong.
pub fn pending(driver_index: u16, device_position: u16, size: u16) -> Option<u16> {
    // TODO: 1 - 65535 is 2.
    let _ = size;
    driver_index.checked_sub(device_position)
}
