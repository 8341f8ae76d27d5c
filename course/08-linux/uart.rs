//! A serial port with an interrupt.

use std::error::Error;
use std::io::{self, Stdout, stdout};
use std::ops::ControlFlow;

use kvm_ioctls::VmFd;
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::Device;
use super::vcpu::End;

// ANCHOR: interrupt
/// An input of the interrupt controllers: a write to the eventfd raises it, without a call of this program.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port of chapter 4, complete, whose output is standard output.
pub struct Uart(Serial<Interrupt, NoEvents, Stdout>);

impl Uart {
    pub fn new(vm: &VmFd, irq: u32) -> Result<Self, Box<dyn Error>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&event, irq)?; // KVM_IRQFD
        Ok(Self(Serial::new(Interrupt(event), stdout())))
    }
}
// ANCHOR_END: interrupt

impl Device for Uart {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        data[0] = self.0.read(offset.to_le_bytes()[0]);
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> ControlFlow<End> {
        let _ = self.0.write(offset.to_le_bytes()[0], data[0]); // fails if standard output is closed
        ControlFlow::Continue(())
    }
}
