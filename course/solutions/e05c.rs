//! Solution of exercise 05c: an edge-triggered byte stream.

use std::io::{ErrorKind, Read, Result};

/// Handles one event of a nonblocking, edge-triggered source: appends all its bytes to `buffer`. Returns whether the
/// source has ended.
pub fn receive(source: &mut impl Read, buffer: &mut Vec<u8>) -> Result<bool> {
    let mut bytes = [0; 16];
    loop {
        match source.read(&mut bytes) {
            Ok(0) => return Ok(true),
            Ok(len) => buffer.extend(&bytes[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
