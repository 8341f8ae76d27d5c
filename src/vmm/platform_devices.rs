//! The platform devices on the port bus.

use std::sync::Arc;

use kvm_bindings::KVM_CAP_COALESCED_PIO;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::builder::irqfd;
use super::error::Error;
use crate::device::acpi_pm::{self, AcpiPm};
use crate::device::cmos::{self, Cmos};
use crate::device::exit_port::{EXIT_PORT, ExitPort};
use crate::device::i8042::{COMMAND_PORT, I8042};
use crate::device::pvpanic::{PVPANIC_PORT, PvPanic};
use crate::device::serial::{COM1_IRQ, COM1_PORT, COM1_PORTS, Serial};
use crate::device::{Bus, BusError};
use crate::sys::coalesced_port::CoalescedPort;
use crate::vcpu::Vcpu;

/// The serial console (COM1), connected to its interrupt. It signals `wake` when the event loop has work.
///
/// # Errors
///
/// KVM refuses the interrupt, or the host has no more descriptors.
pub fn serial_console(vm: &Arc<VmFd>, boot_vcpu: Option<&Vcpu>, wake: EventFd) -> Result<Arc<Serial>, Error> {
    let serial = Serial::new(irqfd(vm, COM1_IRQ, "connect the serial port's interrupt")?, wake);
    // Without KVM's ring the port works, too, with an exit for each byte.
    if vm.check_extension_raw(KVM_CAP_COALESCED_PIO.into()) > 0
        && let Some(vcpu) = boot_vcpu
        && let Ok(ring) = CoalescedPort::new(vm.clone(), vcpu.fd(), COM1_PORT)
    {
        serial.set_coalescer(Box::new(ring));
    }
    Ok(Arc::new(serial))
}

/// The port bus with all platform devices.
///
/// # Errors
///
/// Two devices have the same port.
pub fn port_bus(serial: &Arc<Serial>) -> Result<Bus, BusError> {
    let mut bus = Bus::default();
    bus.insert(COM1_PORT.into(), COM1_PORTS.into(), serial.clone())?;
    bus.insert(COMMAND_PORT.into(), 1, Arc::new(I8042))?;
    bus.insert(cmos::INDEX_PORT.into(), cmos::PORTS.into(), Arc::new(Cmos::default()))?;
    bus.insert(EXIT_PORT.into(), 1, Arc::new(ExitPort))?;
    bus.insert(PVPANIC_PORT.into(), 1, Arc::new(PvPanic))?;
    bus.insert(acpi_pm::BASE_PORT.into(), acpi_pm::PORTS.into(), Arc::new(AcpiPm))?;
    Ok(bus)
}
