//! Chapter 4: a serial port, and a guest with the driver for it.

#[path = "../03-exits/bus.rs"]
mod bus;
#[path = "../03-exits/exit_port.rs"]
mod exit_port;
#[path = "../02-long-mode/machine.rs"]
mod machine;
mod serial;
#[path = "../03-exits/vcpu.rs"]
mod vcpu;

use std::error::Error;

use bus::Bus;
use exit_port::ExitPort;
use machine::{Machine, guest};
use serial::Serial;

// ANCHOR: driver
guest!(
    echoes,
    "mov dx, 0x3fb", // line control: divisor access
    "mov al, 0x80",
    "out dx, al",
    "mov dx, 0x3f8", // divisor 1: 115200 baud
    "mov al, 1",
    "out dx, al",
    "mov dx, 0x3fb", // line control: 8 data bits, no parity, 1 stop bit
    "mov al, 3",
    "out dx, al",
    "lea rsi, [rip + 9f]",
    "2: lodsb", // sends the text
    "test al, al",
    "jz 4f",
    "call 7f",
    "jmp 2b",
    "4: mov dx, 0x3fd", // waits until the line status has DATA_READY
    "in al, dx",
    "test al, 1",
    "jz 4b",
    "mov dx, 0x3f8",
    "in al, dx",
    "cmp al, 'a'",
    "jb 5f",
    "sub al, 32", // upper case
    "5: call 7f",
    "cmp al, 10",
    "jne 4b",
    "mov al, 0",
    "out 0xf4, al",
    "7: mov bl, al", // sends AL when the line status has bit 5, the transmitter is empty
    "mov dx, 0x3fd",
    "8: in al, dx",
    "test al, 0x20",
    "jz 8b",
    "mov dx, 0x3f8",
    "mov al, bl",
    "out dx, al",
    "ret",
    "9: .asciz \"name? \"",
);
// ANCHOR_END: driver

fn main() -> Result<(), Box<dyn Error>> {
    // ANCHOR: main
    let mut serial = Serial::default();
    serial.input.extend(b"ada\n");
    let mut exit_port = ExitPort;
    let mut bus = Bus::default();
    bus.insert(0xf4, 1, &mut exit_port);
    bus.insert(0x3f8, 8, &mut serial);
    let (end, exits) = vcpu::run(&mut Machine::new(&echoes)?.vcpu, &mut bus)?;
    print!("{}", String::from_utf8_lossy(&serial.output));
    println!("{end:?} after {exits} exits; {} bytes sent", serial.output.len());
    // ANCHOR_END: main
    Ok(())
}
