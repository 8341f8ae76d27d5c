//! The keyboard controller, by which a PC can be reset.

use std::ops::ControlFlow;

use super::bus::Device;
use super::vcpu::End;

// ANCHOR: reset
/// The keyboard controller's command port. Its only command pulses the reset line of the processor.
pub struct KeyboardController;

impl Device for KeyboardController {
    fn read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0); // not busy
    }

    fn write(&mut self, _offset: u16, data: &[u8]) -> ControlFlow<End> {
        if data[0] == 0xfe { ControlFlow::Break(End::Status(0)) } else { ControlFlow::Continue(()) }
    }
}
// ANCHOR_END: reset
