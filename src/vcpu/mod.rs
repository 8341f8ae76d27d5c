//! One virtual CPU: its set-up, its run loop, and the signal that ends its `KVM_RUN`.
//!
//! [`Vcpu::run`] calls `KVM_RUN` until the guest ends. Each exit becomes a [`VmExit`], a plain value; [`handle`]
//! maps it to an access to a device or to the end of the vCPU, and needs no KVM. A [`VcpuExit`] states how the vCPU
//! ended. To stop a vCPU, set the [`RunState`] and send the [`kick_signal`] to its thread.
//!
//! This floor may import `event`, `sys`, `memory`, `device` and `boot`.
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//!
//! use kickvm::device::GuestRequest;
//! use kickvm::device::exit_port::{EXIT_PORT, ExitPort};
//! use kickvm::vcpu::{Buses, VcpuExit, VmExit, handle};
//!
//! let mut buses = Buses::default();
//! buses.ports.insert(EXIT_PORT.into(), 1, Arc::new(ExitPort))?;
//! let exit = VmExit::PortWrite { port: EXIT_PORT, size: 1, data: &[7] };
//! assert_eq!(handle(exit, &buses), ControlFlow::Break(VcpuExit::Guest(GuestRequest::Exit(7))));
//! # Ok::<(), kickvm::device::BusError>(())
//! ```

mod cpuid;
mod kick_signal;
mod registers;
mod run_page;
mod stats;
mod vm_exit;

pub use cpuid::CpuidTemplate;
pub use kick_signal::{install_kick_handler, kick_signal};
pub use stats::ExitStats;
pub use vm_exit::{Buses, UnhandledExit, VcpuExit, VmExit, handle};

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Entry;
use crate::memory::GuestRam;
use crate::sys::os_error;
use kick_signal::KickGuard;
use run_page::RunPage;

/// The state of a VM. Only its shutdown changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmRunState {
    /// The vCPUs run the guest.
    Running,
    /// The vCPUs leave the guest, and their threads end.
    Exiting,
}

/// The run state, shared by all vCPU threads.
#[derive(Debug, Default)]
pub struct RunState(AtomicBool);

impl RunState {
    /// Returns the current state.
    pub fn get(&self) -> VmRunState {
        if self.0.load(Ordering::Acquire) { VmRunState::Exiting } else { VmRunState::Running }
    }

    /// Changes the state. A vCPU that is in the guest reads it after the [`kick_signal`].
    pub fn set(&self, state: VmRunState) {
        self.0.store(state == VmRunState::Exiting, Ordering::Release);
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
    /// Creates vCPU `id` of `cpus`. All but the first wait until the guest starts them (INIT and SIPI).
    ///
    /// # Errors
    ///
    /// KVM cannot create the vCPU, or rejects its CPUID leaves or MSRs.
    pub fn new(vm: &VmFd, ram: Arc<GuestRam>, cpuid: &CpuidTemplate, id: u8, cpus: u8) -> io::Result<Self> {
        let fd = vm.create_vcpu(id.into())?;
        let leaves = CpuId::from_entries(&cpuid.for_vcpu(id, cpus));
        fd.set_cpuid2(&leaves.map_err(|error| io::Error::other(format!("{error:?}")))?)?;
        registers::set_msrs(&fd)?;
        let page = RunPage::new(&fd, vm.run_size())?;
        Ok(Self { fd, page, id, ram })
    }

    /// Returns the vCPU's number, which is also its APIC ID.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Returns the vCPU's file descriptor.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Sets the registers of the boot vCPU so that it starts at `entry`.
    ///
    /// # Errors
    ///
    /// KVM rejects the registers.
    pub fn set_entry(&self, entry: &Entry) -> io::Result<()> {
        registers::set(&self.fd, entry)
    }

    /// Runs the guest on the calling thread until it ends or `state` is [`VmRunState::Exiting`]. The thread must
    /// receive the [`kick_signal`] after a change of the state. Counts the exits in `stats`.
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
                    stats.other += 1;
                    guard.acknowledge();
                }
                Err(error) => return VcpuExit::Failed(os_error::describe(&error.into())),
            }
        }
        VcpuExit::Cancelled
    }

    /// Returns the instruction pointer; `None` if KVM cannot read it. The vCPU must not be running.
    pub fn rip(&self) -> Option<u64> {
        self.fd.get_regs().ok().map(|regs| regs.rip)
    }

    /// Reads up to 15 bytes at `rip`, the length of the longest instruction (Intel SDM volume 2, 2.3.11).
    fn code_at(&self, rip: u64) -> Vec<u8> {
        let mut code = vec![0; 15];
        // The base is 0 in 64-bit mode. In real mode it is 16 times the selector.
        let base = self.fd.get_sregs().map_or(0, |sregs| sregs.cs.base);
        let to = self.fd.translate_gva(base.wrapping_add(rip)).ok().filter(|to| to.valid != 0);
        let len = to.and_then(|to| self.ram.memory().read(&mut code, GuestAddress(to.physical_address)).ok());
        code.truncate(len.unwrap_or(0));
        code
    }
}
