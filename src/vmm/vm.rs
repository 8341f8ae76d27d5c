//! The VM: RAM, interrupt controllers and vCPUs.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};

use super::config::MAX_CPUS;
use super::error::Error;
use super::exit_handler::ExitHandler;
use super::vcpu_threads::VcpuSummary;
use crate::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestRam;
use crate::vcpu::{CpuidTemplate, RunState, Vcpu};

/// A virtual machine whose vCPUs end the event loop through `EH`.
#[derive(Debug)]
pub struct KvmVm<EH: ExitHandler + Send> {
    fd: Arc<VmFd>,
    pub(super) exit_handler: EH,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) state: Arc<RunState>,
    /// The threads, by the number of the vCPU.
    pub(super) threads: Vec<(u8, JoinHandle<VcpuSummary>)>,
    /// Disconnected as soon as all threads have ended.
    pub(super) stopped: Option<Receiver<Infallible>>,
}

impl<EH: ExitHandler + Send> KvmVm<EH> {
    /// Creates the VM with `cpus` vCPUs and `ram`. Nothing runs yet.
    ///
    /// # Errors
    ///
    /// KVM refuses, or allows fewer vCPUs.
    pub fn new(
        kvm: &Kvm,
        cpuid: &CpuidTemplate,
        ram: &Arc<GuestRam>,
        cpus: u8,
        exit_handler: EH,
    ) -> Result<Self, Error> {
        let limit = kvm.get_max_vcpus().min(kvm.get_max_vcpu_id()).min(MAX_CPUS.into());
        if !(1..=limit).contains(&usize::from(cpus)) {
            return Err(Error::Cpus { requested: cpus, limit });
        }
        let fd = Arc::new(create_vm(kvm).map_err(Error::host("create a virtual machine"))?);
        // First of all: a memory slot that is set once the interrupt controllers exist waits for a grace period of some
        // milliseconds (kvm_swap_active_memslots synchronizes with the irqfds' readers).
        ram.register(&fd).map_err(Error::host("register the guest's memory"))?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP).map_err(Error::host("place KVM's identity map"))?;
        fd.set_tss_address(KVM_TSS).map_err(Error::host("place KVM's task-state segment"))?;
        fd.create_irq_chip().map_err(Error::host("create the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(Error::host("create the interval timer"))?;
        let vcpus = (0..cpus).map(|id| Vcpu::new(&fd, ram.clone(), cpuid, id, cpus));
        let vcpus = vcpus.collect::<Result<_, _>>().map_err(Error::host("create a vCPU"))?;
        Ok(Self { fd, exit_handler, vcpus, state: Arc::default(), threads: Vec::new(), stopped: None })
    }

    /// KVM's descriptor of this VM.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The vCPUs that have not been started.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }
}

/// A signal may interrupt the call, which must then be repeated (Documentation/virt/kvm/api.rst, 4.2).
fn create_vm(kvm: &Kvm) -> io::Result<VmFd> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
