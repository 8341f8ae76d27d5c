//! One virtual CPU: how it is set up, how it runs, and how it is kicked out of the guest.

mod cpuid;
mod exit;
mod kick_signal;
mod registers;
mod run_page;
mod stats;

pub use cpuid::CpuidTemplate;
pub use exit::{Buses, End, Fault, VmExit, handle};
pub use stats::ExitStats;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::Killable;

use crate::boot::Entry;
use crate::device::GuestRequest;
use crate::memory::GuestRam;
use kick_signal::KickGuard;
use run_page::RunPage;

/// What the machine's vCPUs should do. There is one such word a machine, and only shutdown changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VmRunState {
    /// Run the guest.
    Running,
    /// Leave it, and end the thread.
    Exiting,
}

/// The run state as the threads share it.
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

    /// Changes the state. vCPUs see it once they have been kicked.
    pub fn set(&self, state: VmRunState) {
        self.0.store(state as u8, Ordering::Release);
    }
}

/// Why a vCPU stopped for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuStop {
    /// The guest asked for it.
    Guest(GuestRequest),
    /// The run state said so.
    Told,
    /// The guest crashed, at this instruction pointer (0 where the processor was reset already).
    TripleFault {
        /// Instruction pointer.
        rip: u64,
    },
    /// The guest cannot be run on.
    Fault {
        /// Instruction pointer, where KVM still tells it.
        rip: Option<u64>,
        /// What happened.
        fault: Fault,
    },
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
    /// Creates vCPU `id` of `cpus`. All but the first wait for the guest to start them.
    pub fn new(vm: &VmFd, ram: Arc<GuestRam>, cpuid: &CpuidTemplate, id: u8, cpus: u8) -> io::Result<Self> {
        let fd = vm.create_vcpu(id.into())?;
        let leaves = CpuId::from_entries(&cpuid.for_vcpu(id, cpus));
        fd.set_cpuid2(&leaves.map_err(|error| io::Error::other(format!("{error:?}")))?)?;
        registers::set_msrs(&fd)?;
        let page = RunPage::new(&fd, vm.run_size())?;
        Ok(Self { fd, page, id, ram })
    }

    /// The vCPU's number, which is its APIC ID too.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// KVM's descriptor of this vCPU.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Lets this vCPU, the first, begin at `entry`.
    pub fn set_entry(&self, entry: &Entry) -> io::Result<()> {
        registers::set(&self.fd, entry)
    }

    /// Runs the guest on the calling thread until it ends or `state` says so, which a [`kick`] makes it look at.
    ///
    /// Returns an error if `KVM_RUN` itself fails.
    pub fn run(&mut self, buses: &Buses, state: &RunState, stats: &mut ExitStats) -> io::Result<VcpuStop> {
        Ok(match self.run_to_end(buses, state, stats)? {
            None => VcpuStop::Told,
            Some(End::Guest(request)) => VcpuStop::Guest(request),
            Some(End::TripleFault) => VcpuStop::TripleFault { rip: self.rip().unwrap_or(0) },
            Some(End::Fault(mut fault)) => {
                let rip = self.rip();
                if fault.code.is_empty() {
                    fault.code = rip.map(|rip| self.code_at(rip)).unwrap_or_default();
                }
                VcpuStop::Fault { rip, fault }
            }
        })
    }

    fn run_to_end(&mut self, buses: &Buses, state: &RunState, stats: &mut ExitStats) -> io::Result<Option<End>> {
        let mut kickable = KickGuard::new(&mut self.page);
        while state.get() == VmRunState::Running {
            match self.fd.run().map(drop) {
                Ok(()) => {
                    let exit = kickable.page.last_exit();
                    stats.count(&exit);
                    if let ControlFlow::Break(end) = handle(exit, buses) {
                        return Ok(Some(end));
                    }
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    stats.count_interruption();
                    kickable.acknowledge();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// The instruction pointer of a vCPU that does not run, where KVM tells it.
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

/// Prepares this process for [`kick`]. To be called before the first vCPU thread starts.
pub fn prepare_kicks() -> io::Result<()> {
    kick_signal::install_kick_handler()
}

/// Gets the vCPU that `thread` runs out of the guest, now or, if it has not entered it, as soon as it does.
pub fn kick<T>(thread: &JoinHandle<T>) -> io::Result<()> {
    thread.kill(kick_signal::kick_signal()).map_err(io::Error::from)
}
