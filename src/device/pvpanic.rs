//! The paravirtual panic notifier (Linux: `CONFIG_PVPANIC`), found by the guest through the DSDT as `QEMU0001`.

use std::ops::ControlFlow;

use super::{Device, GuestRequest, Response};

/// Where the device is, as QEMU puts it.
pub const PVPANIC_PORT: u16 = 0x505;

/// Event bit: the guest kernel panicked (QEMU, docs/specs/pvpanic).
const PANICKED: u8 = 1 << 0;

/// Reads as the events it understands; a guest writes the event that happened.
#[derive(Debug)]
pub struct PvPanic;

impl Device for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data[0] = PANICKED;
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Response {
        if data[0] & PANICKED != 0 {
            return ControlFlow::Break(GuestRequest::Panic);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_panicked_event_ends_the_machine() {
        assert_eq!(PvPanic.write(0, &[PANICKED]), ControlFlow::Break(GuestRequest::Panic));
        assert_eq!(PvPanic.write(0, &[!PANICKED]), ControlFlow::Continue(()));
    }
}
