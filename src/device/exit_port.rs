//! A port for guests that want to end with a status of their own, as test kernels do.

use std::ops::ControlFlow;

use super::{Device, GuestRequest, Response};

/// Where the exit port is; QEMU's isa-debug-exit is usually put at the same place.
pub const EXIT_PORT: u16 = 0xf4;

/// The highest status a guest can end with; codes above it speak of how the machine ended.
pub const MAX_STATUS: u8 = 119;

/// Ends the machine with the first byte written, at most [`MAX_STATUS`].
#[derive(Debug)]
pub struct ExitPort;

impl Device for ExitPort {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) -> Response {
        ControlFlow::Break(GuestRequest::Exit(data[0].min(MAX_STATUS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_above_119_ends_as_119() {
        for (written, status) in [(0, 0), (7, 7), (119, 119), (120, 119), (255, 119)] {
            assert_eq!(ExitPort.write(0, &[written]), ControlFlow::Break(GuestRequest::Exit(status)));
        }
    }
}
