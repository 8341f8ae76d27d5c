//! A 16550 serial port without interrupts: the part of it that a polling driver uses.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::bus::Device;
use super::vcpu::End;

// ANCHOR: registers
// Offsets from the base port, 0x3f8 for COM1 (16550 data sheet, table 2).
const DATA: u16 = 0; // write: transmit; read: receive
const INTERRUPT_ENABLE: u16 = 1;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;

/// Line control: offsets 0 and 1 are the divisor of the baud rate.
const DIVISOR_ACCESS: u8 = 1 << 7;
// Line status.
const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;
// ANCHOR_END: registers

// ANCHOR: serial
#[derive(Default)]
pub struct Serial {
    /// The bytes that the guest has sent.
    pub output: Vec<u8>,
    /// The bytes that the guest has not received yet.
    pub input: VecDeque<u8>,
    line_control: u8,
    divisor: [u8; 2],
}

impl Serial {
    fn divisor_access(&self) -> bool {
        self.line_control & DIVISOR_ACCESS != 0
    }
}

impl Device for Serial {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        data[0] = match offset {
            DATA | INTERRUPT_ENABLE if self.divisor_access() => self.divisor[usize::from(offset)],
            DATA => self.input.pop_front().unwrap_or(0),
            LINE_CONTROL => self.line_control,
            LINE_STATUS if self.input.is_empty() => TRANSMITTER_EMPTY,
            LINE_STATUS => TRANSMITTER_EMPTY | DATA_READY,
            _ => 0,
        };
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> ControlFlow<End> {
        match offset {
            DATA | INTERRUPT_ENABLE if self.divisor_access() => self.divisor[usize::from(offset)] = data[0],
            DATA => self.output.extend(data),
            LINE_CONTROL => self.line_control = data[0],
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
// ANCHOR_END: serial
