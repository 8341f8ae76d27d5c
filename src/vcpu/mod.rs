//! One virtual CPU: how it is set up, how it runs, and how it is kicked out of the guest.

mod cpuid;
mod exit;
mod kick_signal;
mod registers;
mod run_page;
mod stats;

pub use cpuid::CpuidTemplate;
pub use exit::{Buses, UnhandledExit, VcpuExit, VmExit, handle};
pub use kick_signal::{install_kick_handler, kick_signal};
pub use stats::ExitStats;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Entry;
use crate::memory::GuestRam;
use crate::sys::os_error;
use kick_signal::KickGuard;
use run_page::RunPage;

/// The state of a VM. There is one per VM, and only shutdown changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VmRunState {
    /// The vCPUs run the guest.
    Running,
    /// The vCPUs leave the guest, and their threads end.
    Exiting,
}

/// The run state, shared by all vCPU threads.
#[derive(Debug)]
pub struct RunState(AtomicU8);

impl Default for RunState {
    fn default() -> Self {
        Self(AtomicU8::new(VmRunState::Running as u8))
    }
}

impl RunState {
    /// The state now.
    pub fn get(&self) -> VmRunState {
        match self.0.load(Ordering::Acquire) {
            state if state == VmRunState::Running as u8 => VmRunState::Running,
            _ => VmRunState::Exiting,
        }
    }

    /// Changes the state. A vCPU in the guest sees it after a kick.
    pub fn set(&self, state: VmRunState) {
        self.0.store(state as u8, Ordering::Release);
    }
}

/// A virtual CPU that has not started, or runs on its own thread.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    page: RunPage,
    id: u8,
    ram: Arc<GuestRam>,
}

impl Vcpu {
    /// Creates vCPU `id` of `cpus`. All but the first wait until the guest starts them.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn new(vm: &VmFd, ram: Arc<GuestRam>, cpuid: &CpuidTemplate, id: u8, cpus: u8) -> io::Result<Self> {
        let fd = vm.create_vcpu(id.into())?;
        let leaves = CpuId::from_entries(&cpuid.for_vcpu(id, cpus));
        fd.set_cpuid2(&leaves.map_err(|error| io::Error::other(format!("{error:?}")))?)?;
        registers::set_msrs(&fd)?;
        let page = RunPage::new(&fd, vm.run_size())?;
        Ok(Self { fd, page, id, ram })
    }

    /// The vCPU's number, which is also its APIC ID.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// KVM's descriptor of this vCPU.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Sets the registers of the boot vCPU so that it begins at `entry`.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn set_entry(&self, entry: &Entry) -> io::Result<()> {
        registers::set(&self.fd, entry)
    }

    /// Runs the guest on the calling thread until it ends or `state` is [`VmRunState::Exiting`]. After a change of the state,
    /// the thread must receive the [`kick_signal`].
    pub fn run(&mut self, buses: &Buses, state: &RunState, stats: &mut ExitStats) -> VcpuExit {
        match self.run_to_exit(buses, state, stats) {
            VcpuExit::TripleFault { .. } => VcpuExit::TripleFault { rip: self.rip() },
            VcpuExit::Unhandled { mut exit, .. } => {
                let rip = self.rip();
                if exit.code.is_empty() {
                    exit.code = rip.map(|rip| self.code_at(rip)).unwrap_or_default();
                }
                VcpuExit::Unhandled { rip, exit }
            }
            exit => exit,
        }
    }

    fn run_to_exit(&mut self, buses: &Buses, state: &RunState, stats: &mut ExitStats) -> VcpuExit {
        let mut guard = KickGuard::new(&mut self.page);
        while state.get() == VmRunState::Running {
            match self.fd.run().map(drop) {
                Ok(()) => {
                    let exit = guard.page.last_exit();
                    stats.count(&exit);
                    if let ControlFlow::Break(exit) = handle(exit, buses) {
                        return exit;
                    }
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    stats.count_interruption();
                    guard.acknowledge();
                }
                Err(error) => return VcpuExit::Failed(os_error::describe(&error.into())),
            }
        }
        VcpuExit::Cancelled
    }

    /// The instruction pointer of a vCPU that does not run, where KVM still has it.
    pub fn rip(&self) -> Option<u64> {
        self.fd.get_regs().ok().map(|regs| regs.rip)
    }

    /// Up to 15 bytes, the longest instruction, at `rip`.
    fn code_at(&self, rip: u64) -> Vec<u8> {
        let mut code = vec![0; 15];
        // In 64-bit mode the base is 0; in real mode it is most of the address.
        let base = self.fd.get_sregs().map_or(0, |sregs| sregs.cs.base);
        let len = match self.fd.translate_gva(base.wrapping_add(rip)) {
            Ok(to) if to.valid != 0 => {
                self.ram.memory().read(&mut code, GuestAddress(to.physical_address)).unwrap_or(0)
            }
            _ => 0,
        };
        code.truncate(len);
        code
    }
}
