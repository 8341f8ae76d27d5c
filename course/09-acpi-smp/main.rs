//! Chapter 9: a stock Linux kernel with two processors, which powers off. `make chapter N=09`

#[path = "../03-exits/bus.rs"]
mod bus;
mod devices;
#[path = "../07-exit-handler/exit_handler.rs"]
mod exit_handler;
#[path = "../07-exit-handler/kick.rs"]
mod kick;
mod tables;
#[path = "../07-exit-handler/threads.rs"]
mod threads;
#[path = "../08-linux/uart.rs"]
mod uart;
#[path = "../03-exits/vcpu.rs"]
mod vcpu;
#[path = "../08-linux/vm.rs"]
mod vm;

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bus::Bus;
use devices::{PowerSwitch, Shared};
use exit_handler::WrappedExitHandler;
use kick::RunPage;
use kickvm::boot::{self, BootParams, Image, layout};
use kickvm::device::acpi_pm;
use kickvm::event::{EventManager, MutEventSubscriber, SubscriberOps};
use threads::{shut_down, start_vcpu};
use uart::Uart;
use vm::Vm;

const RAM: u64 = 256 << 20;
const CPUS: u8 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = std::env::args_os().skip(1).map(PathBuf::from);
    let image = Image::File(files.next().ok_or("usage: 09-acpi-smp KERNEL INITRAMFS...")?);
    let initramfs: Vec<_> = files.collect();

    // ANCHOR: load
    let vm = Vm::new(RAM, CPUS)?;
    let params = BootParams {
        image: &image,
        initramfs: &initramfs,
        initramfs_source: None,
        cmdline: "console=ttyS0 quiet kickvm.once",
        cpus: CPUS,
        second_serial: false,
        virtio_devices: 0,
    };
    let entry = boot::load(&vm.memory, &params)?;
    tables::print(&vm.memory, layout::ACPI_TABLES)?;
    vm.set_entry(entry.address.0, entry.boot_data.0, layout::GDT, layout::PAGE_TABLES)?;
    // ANCHOR_END: load

    // ANCHOR: run
    let exit_handler = WrappedExitHandler::new()?;
    let mut event_mgr = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new()?;
    event_mgr.add_subscriber(exit_handler.subscriber());
    kick::install(kick::sets_immediate_exit)?;

    let uart = Shared::new(Uart::new(&vm.fd, 4)?);
    let mut threads = Vec::new();
    for mut vcpu in vm.vcpus {
        let (mut uart, mut power) = (uart.clone(), PowerSwitch);
        threads.push(start_vcpu(exit_handler.clone(), move || {
            let _page = RunPage::new(&vcpu)?;
            let mut bus = Bus::default();
            bus.insert(0x3f8, 8, &mut uart);
            bus.insert(acpi_pm::BASE_PORT, acpi_pm::PORTS, &mut power);
            let (end, _) = vcpu::run(&mut vcpu, &mut bus)?;
            Ok(format!("{end:?}"))
        }));
    }
    while exit_handler.keep_running() {
        event_mgr.run()?;
    }
    println!("the loop has ended: {}", exit_handler.reason().unwrap_or_default());
    shut_down(threads)?;
    println!("{CPUS} vCPU threads joined");
    // ANCHOR_END: run
    Ok(())
}
