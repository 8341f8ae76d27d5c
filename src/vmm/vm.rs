//! The VM: RAM, interrupt controllers and vCPUs.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};

use super::config::MAX_CPUS;
use super::error::Error;
use super::exit_handler::ExitHandler;
use super::vcpu_threads::{Shutdown, VcpuThreads};
use crate::boot::Entry;
use crate::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestRam;
use crate::vcpu::{self, Buses, CpuidTemplate, Vcpu};

/// A virtual machine whose vCPUs end the event loop through `EH`.
#[derive(Debug)]
pub struct KvmVm<EH: ExitHandler + Send> {
    fd: Arc<VmFd>,
    exit_handler: EH,
    vcpus: Vec<Vcpu>,
    threads: VcpuThreads,
}

impl<EH: ExitHandler + Send + 'static> KvmVm<EH> {
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
        Ok(Self { fd, exit_handler, vcpus, threads: VcpuThreads::default() })
    }

    /// KVM's descriptor of this VM.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The vCPUs that have not been started.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Starts one thread per vCPU, `vcpu0`, `vcpu1` and so on. The boot vCPU begins at `entry`. `by_port` counts the
    /// exits of each port.
    ///
    /// # Errors
    ///
    /// A thread cannot be started. Those that were started end when this VM is dropped.
    pub fn run(&mut self, entry: &Entry, buses: &Arc<Buses>, by_port: bool) -> Result<(), Error> {
        vcpu::install_kick_handler().map_err(Error::host("install the vCPUs' signal handler"))?;
        if let Some(first) = self.vcpus.first() {
            first.set_entry(entry).map_err(Error::host("set a vCPU's registers"))?;
        }
        for vcpu in self.vcpus.drain(..) {
            let spawned = self.threads.spawn(vcpu, buses.clone(), by_port, self.exit_handler.clone());
            spawned.map_err(Error::host("start a vCPU's thread"))?;
        }
        Ok(())
    }

    /// Gets every vCPU out of the guest and joins its thread. Takes a second at most.
    pub fn shutdown(&mut self) -> Shutdown {
        self.threads.shutdown()
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
