//! Chapter 8: boots a stock Linux kernel. `make chapter N=08`, or `08-linux KERNEL INITRAMFS...`.

#[path = "../03-exits/bus.rs"]
mod bus;
mod keyboard;
mod load;
mod uart;
#[path = "../03-exits/vcpu.rs"]
mod vcpu;
mod vm;

use std::error::Error;
use std::fs;

use bus::Bus;
use keyboard::KeyboardController;
use uart::Uart;
use vm::Vm;

// ANCHOR: main
const RAM: u64 = 256 << 20;
/// Runs two programs of the initramfs, and resets by the keyboard controller.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 nolapic rdinit=/bin/sh \
    -- -c \"echo Hello from $(/bin/uname -sr); /bin/stty opost; /bin/reboot -f\"";

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<_> = std::env::args_os().skip(1).map(fs::read).collect::<Result<_, _>>()?;
    let (kernel, archives) = files.split_first().ok_or("usage: 08-linux KERNEL INITRAMFS...")?;
    let initramfs = archives.concat(); // Linux unpacks one archive after the other

    let mut vm = Vm::new(RAM, 1)?;
    let entry = load::load(&vm.memory, RAM, kernel, &initramfs, COMMAND_LINE)?;
    println!("{entry:x?}");
    vm.set_entry(entry.rip, entry.rsi, load::GDT, load::PAGE_TABLES)?;

    let (mut uart, mut keyboard) = (Uart::new(&vm.fd, 4)?, KeyboardController);
    let mut bus = Bus::default();
    bus.insert(0x3f8, 8, &mut uart);
    bus.insert(0x64, 1, &mut keyboard);
    let (end, _) = vcpu::run(&mut vm.vcpus[0], &mut bus)?;
    println!("{end:?}");
    Ok(())
}
// ANCHOR_END: main
