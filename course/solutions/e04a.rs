//! Solution of exercise 04a: the divisor latch.

/// The registers of a serial port, by their offset.
#[derive(Default)]
pub struct Serial {
    /// The bytes that the guest has sent.
    pub output: Vec<u8>,
    line_control: u8,
    divisor: [u8; 2],
}

impl Serial {
    fn divisor_access(&self) -> bool {
        self.line_control & 0x80 != 0
    }

    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            0 | 1 if self.divisor_access() => self.divisor[usize::from(offset)] = value,
            0 => self.output.push(value),
            3 => self.line_control = value,
            _ => {}
        }
    }

    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 | 1 if self.divisor_access() => self.divisor[usize::from(offset)],
            3 => self.line_control,
            5 => 0x60,
            _ => 0,
        }
    }
}
