//! Chapter 3: exits as plain values, and a bus that finds the device of a port.

mod bus;
mod exit_port;
#[path = "../02-long-mode/machine.rs"]
mod machine;
mod vcpu;

use std::error::Error;
use std::ops::ControlFlow;

use bus::{Bus, Device};
use exit_port::ExitPort;
use machine::{Machine, guest};
use vcpu::{End, VmExit, handle, run};

// ANCHOR: console
/// Prints each written byte.
struct Console;

impl Device for Console {
    fn read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u16, data: &[u8]) -> ControlFlow<End> {
        print!("{}", String::from_utf8_lossy(data));
        ControlFlow::Continue(())
    }
}
// ANCHOR_END: console

// ANCHOR: guest
guest!(
    ends_with_status,
    "lea rsi, [rip + 3f]",
    "mov dx, 0x3f8",
    "2: lodsb",
    "out dx, al",
    "cmp al, 10",
    "jne 2b",
    "in al, 0x99", // there is no such device
    "out 0xf4, al",
    "3: .ascii \"My status is what port 0x99 contains.\\n\"",
);
guest!(
    crashes, "ud2", // raises an exception; without an interrupt table, it becomes a triple fault
);
// ANCHOR_END: guest

fn main() -> Result<(), Box<dyn Error>> {
    let (mut console, mut exit_port) = (Console, ExitPort);
    let mut bus = Bus::default();
    bus.insert(0x3f8, 8, &mut console);
    bus.insert(0xf4, 1, &mut exit_port);

    // ANCHOR: synthetic
    println!("halt: {:?}", handle(VmExit::Halt, &mut bus));
    println!("status 7: {:?}", handle(VmExit::PortWrite { port: 0xf4, data: &[7] }, &mut bus));
    println!("port 0x99: {:?}", handle(VmExit::PortWrite { port: 0x99, data: &[7] }, &mut bus));
    // ANCHOR_END: synthetic

    for guest in [&ends_with_status, &crashes] {
        let mut machine = Machine::new(guest)?;
        let (end, exits) = run(&mut machine.vcpu, &mut bus)?;
        println!("{end:?} after {exits} exits");
    }
    Ok(())
}
