//! The `kvm_run` page that the kernel shares with a vCPU, and the exit that it describes.

use std::io;
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_INTERNAL_ERROR_EMULATION, kvm_run,
};
use kvm_ioctls::VcpuFd;

use super::exit::VmExit;
use crate::sys::mapping::Mapping;

/// The page that the kernel shares with a vCPU, and the data pages behind it. This is a mapping of its own beside the one
/// that `VcpuFd` has, so that no reference of that one's is in the way of the pointers made here.
#[derive(Debug)]
pub(super) struct RunPage(Mapping);

impl RunPage {
    /// Maps the `size` bytes that the kernel shares with `vcpu` (`KVM_GET_VCPU_MMAP_SIZE`).
    pub fn new(vcpu: &VcpuFd, size: usize) -> io::Result<Self> {
        Mapping::shared(vcpu, size.max(size_of::<kvm_run>()), 0).map(Self)
    }

    fn run(&self) -> *mut kvm_run {
        self.0.as_ptr().cast()
    }

    pub(super) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping is larger than a `kvm_run`, whose `immediate_exit` is one byte; on our side it is reached
        // through this function and the kick's handler only, each time as an atomic.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).immediate_exit) }
    }

    /// Reads the exit that the last `KVM_RUN` left.
    pub fn last_exit(&mut self) -> VmExit<'_> {
        let page = self.0.as_ptr();
        // SAFETY: the mapping holds a whole `kvm_run`, which the kernel writes only during KVM_RUN; `&mut self` keeps this
        // the only way to it while what is returned lives. The fields made references here are not `immediate_exit`,
        // the one that a signal handler writes.
        let (reason, exit) = unsafe { ((*self.run()).exit_reason, &mut (*self.run()).__bindgen_anon_1) };
        match reason {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason says that this member of the union is the one in use.
                let io = unsafe { exit.io };
                // The kernel's bounds; `min` keeps the slice in the mapping whatever they are.
                let start = usize::try_from(io.data_offset).map_or(self.0.len(), |offset| offset.min(self.0.len()));
                let len = (usize::from(io.size) * io.count as usize).min(self.0.len() - start);
                // SAFETY: `start + len` is inside the mapping. The kernel puts `count` items of `size` bytes there, in a page
                // behind the `kvm_run`, so the slice overlaps no other reference.
                let data = unsafe { std::slice::from_raw_parts_mut(page.add(start), len) };
                let size = usize::from(io.size).max(1);
                match u32::from(io.direction) {
                    KVM_EXIT_IO_IN => VmExit::PortRead { port: io.port, size, data },
                    _ => VmExit::PortWrite { port: io.port, size, data },
                }
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the exit reason says that this member of the union is the one in use.
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
                // SAFETY: the exit reason says that this member of the union is the one in use.
                let entry = unsafe { exit.fail_entry };
                VmExit::FailedEntry { hardware_reason: entry.hardware_entry_failure_reason }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says that `internal` is in use, whose fields `emulation_failure` repeats.
                let failure = unsafe { exit.emulation_failure };
                let mut code = [0; 15];
                let mut len = 0;
                // The kernel tells the instruction only with this suberror, enough data words, and this flag
                // (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, linux/kvm.h).
                if failure.suberror == KVM_INTERNAL_ERROR_EMULATION && failure.ndata >= 3 && failure.flags & 1 != 0 {
                    // SAFETY: the union has one variant, in use when the flag is set.
                    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
                    code = instruction.insn_bytes;
                    len = usize::from(instruction.insn_size).min(code.len());
                }
                VmExit::InternalError { suberror: failure.suberror, code, len }
            }
            reason => VmExit::Other { reason },
        }
    }
}
