//! Exercise 01b: answer an `in` instruction.
//!
//! The guest reads one byte from port 0x60 and writes it to port 0x3f8. The data of `VcpuExit::IoIn` is a part of the
//! run page: KVM takes the answer from there when the vCPU runs again.

use kvm_ioctls::VcpuExit;

/// Handles one exit. Port 0x60 reads as `key`; any other port reads as 0xff. Returns whether the guest goes on.
pub fn handle(exit: VcpuExit, key: u8, output: &mut Vec<u8>) -> bool {
    match exit {
        VcpuExit::IoIn(port, data) => {
            // TODO: answer.
            let _ = (port, data, key);
            true
        }
        VcpuExit::IoOut(_, data) => {
            output.extend(data);
            true
        }
        _ => false,
    }
}
