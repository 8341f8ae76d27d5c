//! The `kvm_run` page that the kernel shares with a vCPU, and the exit that it describes
//! (Documentation/virt/kvm/api.rst, section 5).

use std::io;
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_INTERNAL_ERROR_EMULATION, kvm_run,
};
use kvm_ioctls::VcpuFd;

use super::vm_exit::VmExit;
use crate::sys::mapping::Mapping;

/// The page that the kernel shares with a vCPU, and the data pages that follow it. This is a second mapping beside that
/// of `VcpuFd`: the kick signal's handler writes to it, and must not alias the `&mut kvm_run` that `VcpuFd` creates.
#[derive(Debug)]
pub(super) struct RunPage(Mapping);

impl RunPage {
    /// Maps the `size` bytes that the kernel shares with `vcpu` (`KVM_GET_VCPU_MMAP_SIZE`).
    ///
    /// # Errors
    ///
    /// The error of mmap(2).
    pub fn new(vcpu: &VcpuFd, size: usize) -> io::Result<Self> {
        Mapping::shared(vcpu, size.max(size_of::<kvm_run>()), 0).map(Self)
    }

    fn run(&self) -> *mut kvm_run {
        self.0.as_ptr().cast()
    }

    pub(super) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping is not smaller than a `kvm_run`, whose `immediate_exit` is one byte. This process
        // accesses it only through this function and in the kick signal's handler, each time as an atomic.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).immediate_exit) }
    }

    /// Returns the exit with which the last `KVM_RUN` returned.
    pub fn last_exit(&mut self) -> VmExit<'_> {
        let page = self.0.as_ptr();
        // SAFETY: the mapping holds a whole `kvm_run`, which the kernel writes only during KVM_RUN. The result borrows
        // `self` mutably, so there are no other references. `immediate_exit`, which a signal handler writes, is not
        // among the fields that are borrowed here.
        let (reason, exit) = unsafe { ((*self.run()).exit_reason, &mut (*self.run()).__bindgen_anon_1) };
        match reason {
            KVM_EXIT_IO => {
                // SAFETY: with this exit reason, this member of the union is in use.
                let io = unsafe { exit.io };
                // The kernel's values are in bounds; `min` makes that independent of the kernel.
                let start = usize::try_from(io.data_offset).map_or(self.0.len(), |offset| offset.min(self.0.len()));
                let len = (usize::from(io.size) * io.count as usize).min(self.0.len() - start);
                // SAFETY: `start + len` is inside the mapping. The kernel puts `count` items of `size` bytes into a
                // page after the `kvm_run`, so the slice overlaps no other reference.
                let data = unsafe { std::slice::from_raw_parts_mut(page.add(start), len) };
                let size = usize::from(io.size).max(1);
                match u32::from(io.direction) {
                    KVM_EXIT_IO_IN => VmExit::PortRead { port: io.port, size, data },
                    _ => VmExit::PortWrite { port: io.port, size, data },
                }
            }
            KVM_EXIT_MMIO => {
                // SAFETY: with this exit reason, this member of the union is in use.
                let mmio = unsafe { &mut exit.mmio };
                let len = (mmio.len as usize).min(mmio.data.len());
                let data = &mut mmio.data[..len];
                match mmio.is_write {
                    0 => VmExit::MmioRead { address: mmio.phys_addr, data },
                    _ => VmExit::MmioWrite { address: mmio.phys_addr, data },
                }
            }
            KVM_EXIT_SHUTDOWN => VmExit::TripleFault,
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: with this exit reason, this member of the union is in use.
                let entry = unsafe { exit.fail_entry };
                VmExit::FailedEntry(entry.hardware_entry_failure_reason)
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: with this exit reason, `internal` is in use; `emulation_failure` begins with the same fields.
                let failure = unsafe { &exit.emulation_failure };
                let mut code = &[][..];
                // The kernel provides the instruction only with this suberror, enough data words, and bit 0 of the
                // flags (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, linux/kvm.h).
                if failure.suberror == KVM_INTERNAL_ERROR_EMULATION && failure.ndata >= 3 && failure.flags & 1 != 0 {
                    // SAFETY: the union has one member, which is in use if the flag is set.
                    let instruction = unsafe { &failure.__bindgen_anon_1.__bindgen_anon_1 };
                    let len = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
                    code = &instruction.insn_bytes[..len];
                }
                VmExit::InternalError { suberror: failure.suberror, code }
            }
            reason => VmExit::Other(reason),
        }
    }
}
