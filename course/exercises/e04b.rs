//! Exercise 04b: loopback.
//!
//! Linux tests a port before it uses it. While bit 4 of the modem control register (offset 4) is set, the port receives
//! what the driver sends, and sends nothing. Bit 0 of the line status (offset 5) states that a byte was received.

/// The registers of a serial port, by their offset.
#[derive(Default)]
pub struct Serial {
    /// The bytes that the guest has sent.
    pub output: Vec<u8>,
    modem_control: u8,
}

impl Serial {
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            // TODO: in loopback, the driver reads this byte from offset 0.
            0 => self.output.push(value),
            4 => self.modem_control = value,
            _ => {}
        }
    }

    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            4 => self.modem_control,
            5 => 0x60, // the transmitter is empty
            _ => 0,
        }
    }
}
