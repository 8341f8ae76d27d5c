//! The paravirtual panic notifier (`CONFIG_PVPANIC` in Linux). The DSDT describes it as `QEMU0001`.

use std::ops::ControlFlow;

use super::{Device, GuestRequest, Response};

/// The port, the same as in QEMU.
pub const PVPANIC_PORT: u16 = 0x505;

/// Event bit: the guest kernel panicked (QEMU, docs/specs/pvpanic).
const PANICKED: u8 = 1 << 0;

/// The notifier. A read returns the supported events; a write reports an event.
#[derive(Debug)]
pub struct PvPanic;

impl Device for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data[0] = PANICKED;
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Response {
        if data[0] & PANICKED != 0 { ControlFlow::Break(GuestRequest::Panic) } else { ControlFlow::Continue(()) }
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
