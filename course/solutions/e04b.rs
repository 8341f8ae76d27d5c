//! Solution of exercise 04b: loopback.

/// The registers of a serial port, by their offset.
#[derive(Default)]
pub struct Serial {
    /// The bytes that the guest has sent.
    pub output: Vec<u8>,
    modem_control: u8,
    received: std::collections::VecDeque<u8>,
}

impl Serial {
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            0 if self.modem_control & 0x10 != 0 => self.received.push_back(value),
            0 => self.output.push(value),
            4 => self.modem_control = value,
            _ => {}
        }
    }

    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 => self.received.pop_front().unwrap_or(0),
            4 => self.modem_control,
            5 => 0x60 | u8::from(!self.received.is_empty()),
            _ => 0,
        }
    }
}
