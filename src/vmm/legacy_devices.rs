//! The platform devices on the port bus, and their interrupts.

use std::io;
use std::sync::Arc;

use kvm_bindings::KVM_CAP_COALESCED_PIO;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::builder::eventfd;
use super::error::Error;
use crate::boot::POWER_BUTTON_GSI;
use crate::device::acpi_pm::{self, AcpiPm};
use crate::device::cmos::{self, Cmos};
use crate::device::exit_port::{EXIT_PORT, ExitPort};
use crate::device::i8042::{COMMAND_PORT, I8042};
use crate::device::pvpanic::{PVPANIC_PORT, PvPanic};
use crate::device::serial::{COM1_IRQ, COM1_PORT, COM1_PORTS, Serial};
use crate::device::{Bus, BusError};
use crate::sys::coalesced_port::CoalescedPort;
use crate::vcpu::{Buses, Vcpu};

/// The platform devices of one VM.
#[derive(Debug)]
pub struct LegacyDevices {
    /// The serial console.
    pub serial: Arc<Serial>,
    /// Signalled by the consoles when the event loop has work.
    pub wake: EventFd,
    /// Raises the power button's interrupt.
    pub power_button: EventFd,
    /// The buses, with all devices.
    pub buses: Buses,
}

impl LegacyDevices {
    /// Creates the devices and connects their interrupts.
    ///
    /// # Errors
    ///
    /// KVM refuses an interrupt, or the host has no more descriptors.
    pub fn new(vm: &Arc<VmFd>, boot_vcpu: Option<&Vcpu>) -> Result<Self, Error> {
        let (wake, serial_irq, power_button) = (eventfd()?, eventfd()?, eventfd()?);
        vm.register_irqfd(&serial_irq, COM1_IRQ).map_err(Error::kvm("connect the serial port's interrupt"))?;
        vm.register_irqfd(&power_button, POWER_BUTTON_GSI)
            .map_err(Error::kvm("connect the power button's interrupt"))?;
        let copy = wake.try_clone().map_err(Error::host("duplicate an event descriptor"))?;
        let serial = Arc::new(Serial::new(serial_irq, copy));
        if let Some(ring) = boot_vcpu.and_then(|vcpu| coalesced_port(vm, vcpu)) {
            serial.set_coalescer(Box::new(ring));
        }
        let ports = ports(&serial).map_err(|error| Error::host("place the port devices")(io::Error::other(error)))?;
        Ok(Self { serial, wake, power_button, buses: Buses { ports, mmio: Bus::new() } })
    }
}

fn ports(serial: &Arc<Serial>) -> Result<Bus, BusError> {
    let mut bus = Bus::new();
    bus.insert(COM1_PORT.into(), COM1_PORTS.into(), serial.clone())?;
    bus.insert(COMMAND_PORT.into(), 1, Arc::new(I8042))?;
    bus.insert(cmos::INDEX_PORT.into(), cmos::PORTS.into(), Arc::new(Cmos::default()))?;
    bus.insert(EXIT_PORT.into(), 1, Arc::new(ExitPort))?;
    bus.insert(PVPANIC_PORT.into(), 1, Arc::new(PvPanic))?;
    bus.insert(acpi_pm::BASE_PORT.into(), acpi_pm::PORTS.into(), Arc::new(AcpiPm))?;
    Ok(bus)
}

/// KVM's ring for the serial port. Without one the port works, too, with an exit for each byte.
fn coalesced_port(vm: &Arc<VmFd>, vcpu: &Vcpu) -> Option<CoalescedPort> {
    if vm.check_extension_raw(KVM_CAP_COALESCED_PIO.into()) <= 0 {
        return None;
    }
    CoalescedPort::new(vm.clone(), vcpu.fd(), COM1_PORT).ok()
}
