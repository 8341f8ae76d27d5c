//! The registers of hardware-reduced ACPI: sleep control, sleep status and reset (ACPI 6.5, 4.8.3.6-7).

use std::ops::ControlFlow;

use super::{Device, GuestRequest, Response};

/// The first port.
pub const BASE_PORT: u16 = 0x600;
/// Number of ports.
pub const PORTS: u16 = 3;
/// Port of the sleep control register (FADT `SLEEP_CONTROL_REG`).
pub const SLEEP_CONTROL_PORT: u16 = BASE_PORT;
/// Port of the sleep status register (FADT `SLEEP_STATUS_REG`).
pub const SLEEP_STATUS_PORT: u16 = BASE_PORT + 1;
/// Port of the reset register (FADT `RESET_REG`).
pub const RESET_PORT: u16 = BASE_PORT + 2;
/// The value that resets the machine when it is written to the reset register (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 1;
/// The sleep type of the off state, also in the DSDT's `\_S5` object.
pub const S5_SLEEP_TYPE: u8 = 5;

// Sleep control (ACPI 6.5, 4.8.3.7): bit 5 is SLP_EN, and bits 4-2 are SLP_TYP.
const OFF_MASK: u8 = 1 << 5 | 0b111 << 2;
const OFF: u8 = 1 << 5 | S5_SLEEP_TYPE << 2;

/// The power-management registers. They have no state.
#[derive(Debug)]
pub struct AcpiPm;

impl Device for AcpiPm {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0); // there are no wake-up events
    }

    fn write(&self, offset: u64, data: &[u8]) -> Response {
        for (&value, port) in data.iter().zip(u64::from(BASE_PORT) + offset..) {
            if port == u64::from(SLEEP_CONTROL_PORT) && value & OFF_MASK == OFF {
                return ControlFlow::Break(GuestRequest::PowerOff);
            }
            if port == u64::from(RESET_PORT) && value == RESET_VALUE {
                return ControlFlow::Break(GuestRequest::Reset);
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_sleep_enable_powers_off() {
        let off: Vec<u8> = (0..=255).filter(|&value| AcpiPm.write(0, &[value]).is_break()).collect();
        assert_eq!(
            off,
            [0x34, 0x35, 0x36, 0x37, 0x74, 0x75, 0x76, 0x77, 0xb4, 0xb5, 0xb6, 0xb7, 0xf4, 0xf5, 0xf6, 0xf7]
        );
    }

    #[test]
    fn only_the_reset_value_resets() {
        let reset: Vec<u8> = (0..=255).filter(|&value| AcpiPm.write(2, &[value]).is_break()).collect();
        assert_eq!(reset, [RESET_VALUE]);
        assert!(AcpiPm.write(1, &[0xff]).is_continue());
        assert_eq!(AcpiPm.write(1, &[0, RESET_VALUE]), ControlFlow::Break(GuestRequest::Reset));
    }
}
