//! Exercise 04a: the divisor latch.
//!
//! Before a driver sends, it sets the baud rate: with bit 7 of the line control register (offset 3) set, offsets 0 and
//! 1 are the low and the high byte of a divisor. A port that ignores the bit sends the divisor as the first byte.

/// The registers of a serial port, by their offset.
#[derive(Default)]
pub struct Serial {
    /// The bytes that the guest has sent.
    pub output: Vec<u8>,
    line_control: u8,
}

impl Serial {
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            // TODO: not if bit 7 of the line control register is set.
            0 => self.output.push(value),
            3 => self.line_control = value,
            _ => {}
        }
    }

    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            3 => self.line_control,
            5 => 0x60, // the transmitter is empty
            _ => 0,
        }
    }
}
