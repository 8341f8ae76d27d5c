//! Devices, and the bus that finds the device of a port.

use std::ops::ControlFlow;

use super::vcpu::End;

// ANCHOR: device
/// What the guest can access by `in` and `out`. Offsets count from the device's first port.
pub trait Device {
    fn read(&mut self, offset: u16, data: &mut [u8]);
    /// `Break` ends the vCPU.
    fn write(&mut self, offset: u16, data: &[u8]) -> ControlFlow<End>;
}
// ANCHOR_END: device

// ANCHOR: bus
/// The devices of the port space. Their ranges are disjoint.
#[derive(Default)]
pub struct Bus<'a>(Vec<(u16, u16, &'a mut dyn Device)>);

impl<'a> Bus<'a> {
    /// Assigns the `len` ports from `base` to `device`.
    pub fn insert(&mut self, base: u16, len: u16, device: &'a mut dyn Device) {
        self.0.push((base, len, device));
    }

    fn find(&mut self, port: u16) -> Option<(u16, &mut dyn Device)> {
        let (base, _, device) = self.0.iter_mut().find(|(base, len, _)| port.wrapping_sub(*base) < *len)?;
        Some((port - *base, *device))
    }

    /// A port without a device reads as all ones, as on a PC.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        match self.find(port) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A port without a device ignores writes.
    pub fn write(&mut self, port: u16, data: &[u8]) -> ControlFlow<End> {
        match self.find(port) {
            Some((offset, device)) => device.write(offset, data),
            None => ControlFlow::Continue(()),
        }
    }
}
// ANCHOR_END: bus
