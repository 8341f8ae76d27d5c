//! Exits as values: what KVM_RUN returned, and the decision that follows from it.

use std::error::Error;
use std::ops::ControlFlow;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::bus::Bus;

// ANCHOR: values
/// Why KVM_RUN returned. Nothing in it belongs to KVM, so any code can construct one.
pub enum VmExit<'a> {
    PortRead { port: u16, data: &'a mut [u8] },
    PortWrite { port: u16, data: &'a [u8] },
    MmioRead { data: &'a mut [u8] },
    MmioWrite,
    Halt,
    TripleFault,
    Unhandled(String),
}

/// Why a vCPU has ended.
#[derive(Debug, PartialEq)]
pub enum End {
    Halted,
    Status(u8),
    TripleFault,
    Unhandled(String),
}
// ANCHOR_END: values

// ANCHOR: from
impl<'a> From<VcpuExit<'a>> for VmExit<'a> {
    fn from(exit: VcpuExit<'a>) -> Self {
        match exit {
            VcpuExit::IoIn(port, data) => Self::PortRead { port, data },
            VcpuExit::IoOut(port, data) => Self::PortWrite { port, data },
            VcpuExit::MmioRead(_, data) => Self::MmioRead { data },
            VcpuExit::MmioWrite(..) => Self::MmioWrite,
            VcpuExit::Hlt => Self::Halt,
            VcpuExit::Shutdown => Self::TripleFault,
            exit => Self::Unhandled(format!("{exit:?}")),
        }
    }
}
// ANCHOR_END: from

// ANCHOR: handle
/// Decides what an exit means: an access to a device, or the end of the vCPU.
pub fn handle(exit: VmExit, bus: &mut Bus) -> ControlFlow<End> {
    match exit {
        VmExit::PortRead { port, data } => bus.read(port, data),
        VmExit::PortWrite { port, data } => bus.write(port, data)?,
        VmExit::MmioRead { data } => data.fill(0xff), // no device of this machine has registers in memory
        VmExit::MmioWrite => {}
        VmExit::Halt => return ControlFlow::Break(End::Halted),
        VmExit::TripleFault => return ControlFlow::Break(End::TripleFault),
        VmExit::Unhandled(exit) => return ControlFlow::Break(End::Unhandled(exit)),
    }
    ControlFlow::Continue(())
}
// ANCHOR_END: handle

// ANCHOR: run
/// Runs the vCPU until it ends. Also returns the number of exits.
pub fn run(vcpu: &mut VcpuFd, bus: &mut Bus) -> Result<(End, u32), Box<dyn Error>> {
    let mut exits = 0;
    loop {
        let exit = match vcpu.run() {
            Err(error) if error.errno() == libc::EAGAIN => continue, // chapter 9: the vCPU was started
            result => result?.into(),
        };
        exits += 1;
        if let ControlFlow::Break(end) = handle(exit, bus) {
            return Ok((end, exits));
        }
    }
}
// ANCHOR_END: run
