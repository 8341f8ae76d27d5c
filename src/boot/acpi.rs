//! Hardware-reduced ACPI tables, which describe CPUs and devices. Stock kernels have no other way to find them: they
//! are built without an MP-table parser and without virtio_mmio devices on the command line.
//!
//! RSDP → XSDT → FADT (→ DSDT) and MADT, one after the other from [`ACPI_TABLES`] (ACPI 6.5, chapters 4.1 and 5).

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{ACPI_TABLES, IO_APIC, LOCAL_APIC, PAGE_SIZE, virtio_slots};
use super::{BootParams, Error};
use crate::device::{acpi_pm, pvpanic, serial};

// Identification of this machine's tables (ACPI 6.5, 5.2.6).
const OEM_ID: [u8; 6] = *b"KICKVM";
const OEM_TABLE_ID: [u8; 8] = *b"KICKVM  ";
const OEM_REVISION: u32 = 1;
/// Alignment of the tables. ACPI requires it of the RSDP only (5.2.5.1).
const ALIGNMENT: u64 = 16;
/// Length of the header that all tables share (ACPI 6.5, table 5.4).
const HEADER_LEN: u32 = 36;
/// From this revision on, AML integers have 64 bits (ACPI 6.5, 5.2.11.1).
const DSDT_REVISION: u8 = 2;

// FADT IA-PC boot architecture flags (ACPI 6.5, table 5.11). Bit 1 is left clear: no 8042 keyboard controller.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The interrupt of the generic event device: the power button was pressed.
pub const POWER_BUTTON_GSI: u32 = 9;
/// Notification "the button was pressed" (ACPI 6.5, table 4.17).
const BUTTON_PRESSED: u8 = 0x80;

/// Writes all tables of the machine that `params` describes.
pub(super) fn write(memory: &GuestMemoryMmap, params: &BootParams) -> Result<(), Error> {
    let mut next = ACPI_TABLES + Rsdp::len() as u64;
    let mut put = |table: &dyn Aml| -> Result<u64, Error> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = next.next_multiple_of(ALIGNMENT);
        memory.write_slice(&bytes, GuestAddress(at))?;
        next = at + bytes.len() as u64;
        Ok(at)
    };
    let dsdt = put(&dsdt(params.virtio_devices, params.second_serial))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(put(&fadt(dsdt))?);
    xsdt.add_entry(put(&madt(params.cpus))?);
    let xsdt = put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    Ok(memory.write_slice(&rsdp, GuestAddress(ACPI_TABLES))?)
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    // The last two: these buttons have no fixed registers. The DSDT has a power button.
    let flags = [Flags::HwReducedAcpi, Flags::ResetRegSup, Flags::Headless, Flags::PwrButton, Flags::SlpButton];
    let fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION).dsdt_64(dsdt);
    let mut fadt = flags.into_iter().fold(fadt, FADTBuilder::flag);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(acpi_pm::RESET_PORT);
    fadt.reset_value = acpi_pm::RESET_VALUE;
    fadt.sleep_control_reg = port(acpi_pm::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(acpi_pm::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(virtio_devices: usize, second_serial: bool) -> impl Aml {
    let mut table = Sdt::new(*b"DSDT", HEADER_LEN, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = Vec::new();

    // The off state. The kernel writes its sleep type to the sleep control register (ACPI 6.5, 4.8.3.7).
    let off = Package::new(vec![&acpi_pm::S5_SLEEP_TYPE, &0u8, &0u8, &0u8]);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut body);

    let mut serial_port = |path, port, irq| {
        let ports = IO::new(port, port, 1, serial::COM1_PORTS);
        let irq = interrupt(irq);
        body.extend(device(path, &EISAName::new("PNP0501"), &[&crs(&[&ports, &irq])]));
    };
    serial_port("_SB_.COM1", serial::COM1_PORT, serial::COM1_IRQ);
    if second_serial {
        serial_port("_SB_.COM2", serial::COM2_PORT, serial::COM2_IRQ);
    }

    let panic_port = IO::new(pvpanic::PVPANIC_PORT, pvpanic::PVPANIC_PORT, 1, 1);
    body.extend(device("_SB_.PEVT", &"QEMU0001", &[&crs(&[&panic_port])]));

    for (uid, (registers, gsi)) in (0u8..).zip(virtio_slots().take(virtio_devices)) {
        #[expect(clippy::cast_possible_truncation, reason = "the registers are below 4 GiB")]
        let registers = Memory32Fixed::new(true, registers as u32, PAGE_SIZE as u32);
        let irq = interrupt(gsi);
        let children: [&dyn Aml; 2] = [&Name::new("_UID".into(), &uid), &crs(&[&registers, &irq])];
        body.extend(device(&format!("_SB_.VR{uid:02}"), &"LNRO0005", &children)); // Linux: virtio_mmio_acpi_match
    }

    // The power button has no register on such a machine. The generic event device notifies it (ACPI 6.5, 5.6.9).
    body.extend(device("_SB_.PWRB", &EISAName::new("PNP0C0C"), &[]));
    let button_irq = interrupt(POWER_BUTTON_GSI);
    let button = aml::Path::new("\\_SB_.PWRB"); // absolute: only a single name is searched for in parent scopes
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let on_event = Method::new("_EVT".into(), 1, true, vec![&notify]); // its argument can only be this interrupt
    body.extend(device("_SB_.GED_", &"ACPI0013", &[&crs(&[&button_irq]), &on_event]));

    table.append_slice(&body);
    table
}

fn device(path: &str, hid: &dyn Aml, children: &[&dyn Aml]) -> Vec<u8> {
    let hid = Name::new("_HID".into(), hid);
    let mut bytes = Vec::new();
    Device::new(path.into(), [&[&hid as &dyn Aml], children].concat()).to_aml_bytes(&mut bytes);
    bytes
}

/// The resources of a device.
fn crs(resources: &[&dyn Aml]) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec()))
}

/// An edge-triggered, active-high interrupt that is not shared.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
