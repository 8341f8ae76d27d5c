//! A port by which the guest ends the run.

use std::ops::ControlFlow;

use super::bus::Device;
use super::vcpu::End;

// ANCHOR: exit_port
/// Ends the vCPU with the written byte as status.
pub struct ExitPort;

impl Device for ExitPort {
    fn read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u16, data: &[u8]) -> ControlFlow<End> {
        ControlFlow::Break(End::Status(data[0]))
    }
}
// ANCHOR_END: exit_port
