//! Solution of exercise 03b: memory-mapped I/O.

use kvm_ioctls::VcpuExit;

/// Handles one exit. Returns whether the guest goes on.
pub fn handle(exit: VcpuExit, output: &mut Vec<u8>) -> bool {
    match exit {
        VcpuExit::MmioWrite(0x1f_0000, data) => output.extend(data),
        VcpuExit::MmioRead(0x1f_0000, data) => {
            data.fill(0);
            data[0] = u8::try_from(output.len()).unwrap_or(u8::MAX);
        }
        VcpuExit::MmioRead(_, data) => data.fill(0xff),
        VcpuExit::MmioWrite(..) => {}
        _ => return false,
    }
    true
}
