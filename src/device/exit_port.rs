//! A port that ends the machine with an exit status, for test kernels.

use std::ops::ControlFlow;

use super::{Device, GuestRequest, Response};

/// The exit port, which is the usual port of isa-debug-exit in QEMU.
pub const EXIT_PORT: u16 = 0xf4;

/// The largest exit status of a guest. The exit codes above it report how the machine ended.
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
