//! Devices that several vCPUs share, and the power switch.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use super::bus::Device;
use super::vcpu::End;

// ANCHOR: shared
/// A device behind a lock. Each vCPU thread has its own bus, with clones of the same devices.
pub struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    pub fn new(device: T) -> Self {
        Self(Arc::new(Mutex::new(device)))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Device> Device for Shared<T> {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> ControlFlow<End> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data)
    }
}
// ANCHOR_END: shared

// ANCHOR: power
/// The sleep control register of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7).
#[derive(Clone)]
pub struct PowerSwitch;

impl Device for PowerSwitch {
    fn read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> ControlFlow<End> {
        // Bit 5: enter the sleep state. Bits 4 to 2: its type, 5 in the DSDT.
        if offset == 0 && data[0] == 1 << 5 | 5 << 2 {
            return ControlFlow::Break(End::Status(0));
        }
        ControlFlow::Continue(())
    }
}
// ANCHOR_END: power
