//! Exercise 05c: an edge-triggered byte stream.
//!
//! epoll reports an edge-triggered descriptor when more bytes arrive, and not because some are left. A reader that does
//! not read until the source is empty leaves bytes behind, and may wait forever.

use std::io::{ErrorKind, Read, Result};

/// Handles one event of a nonblocking, edge-triggered source: appends all its bytes to `buffer`. Returns whether the
/// source has ended.
pub fn receive(source: &mut impl Read, buffer: &mut Vec<u8>) -> Result<bool> {
    let mut bytes = [0; 16];
    // TODO: until when?
    let _ = ErrorKind::WouldBlock;
    let len = source.read(&mut bytes)?;
    buffer.extend(&bytes[..len]);
    Ok(len == 0)
}
