//! The command port of the keyboard controller, by which a PC can be reset. There is no keyboard.

use std::ops::ControlFlow;

use super::{Device, GuestRequest, Response};

/// The command (write) and status (read) port.
pub const COMMAND_PORT: u16 = 0x64;

/// The i8042 at [`COMMAND_PORT`]. It is never busy, and supports the reset command only.
#[derive(Debug)]
pub struct I8042;

impl Device for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Both buffers are empty. If all bits were 1, Linux would wait until the controller is not busy.
        data[0] = 0;
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Response {
        // Commands 0xf0-0xff pulse the output lines whose bit is 0. Bit 0 is the processor's reset line.
        if data[0] & 0xf1 == 0xf0 { ControlFlow::Break(GuestRequest::Reset) } else { ControlFlow::Continue(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pulse_of_line_0_resets() {
        let resets: Vec<u8> = (0..=255).filter(|&command| I8042.write(0, &[command]).is_break()).collect();
        assert_eq!(resets, [0xf0, 0xf2, 0xf4, 0xf6, 0xf8, 0xfa, 0xfc, 0xfe]);
    }

    #[test]
    fn the_status_is_never_busy() {
        let mut status = [0xff];
        I8042.read(0, &mut status);
        assert_eq!(status, [0]);
    }
}
