//! The VM: interrupt controllers, RAM, vCPUs, and the threads that run them.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::signal::Killable;

use super::config::MAX_CPUS;
use super::error::Error;
use super::exit_handler::ExitHandler;
use super::outcome::ExitReason;
use crate::boot::Entry;
use crate::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestRam;
use crate::vcpu::{self, Buses, CpuidTemplate, ExitStats, RunState, Vcpu, VmRunState};

/// The time a vCPU has to leave the guest before it is kicked again.
const KICK_PERIOD: Duration = Duration::from_millis(10);
/// The number of kicks: for a second, which is counted and not timed, because a host may stand still for longer than
/// that.
const MAX_KICKS: u32 = 100;

/// A virtual machine whose vCPUs end the event loop through `EH`.
#[derive(Debug)]
pub struct KvmVm<EH: ExitHandler + Send> {
    fd: Arc<VmFd>,
    exit_handler: EH,
    state: Arc<RunState>,
    vcpus: Vec<Vcpu>,
    /// The threads, by the number of the vCPU.
    threads: Vec<(u8, JoinHandle<VcpuSummary>)>,
    /// Each thread holds a clone until it ends.
    running: Option<Sender<Infallible>>,
    /// Disconnected as soon as `running` and all its clones are dropped.
    stopped: Receiver<Infallible>,
}

/// What is left of a vCPU that has ended.
#[derive(Clone, Debug, Default)]
pub struct VcpuSummary {
    /// Its number.
    pub id: u8,
    /// Its instruction pointer, where KVM still has it.
    pub rip: Option<u64>,
    /// Its exits.
    pub stats: ExitStats,
}

/// The vCPUs after a shutdown.
#[derive(Debug, Default)]
pub struct Shutdown {
    /// Those that have ended, in order.
    pub vcpus: Vec<VcpuSummary>,
    /// The numbers of those that did not leave the guest in time. Their threads are left behind.
    pub stuck: Vec<u8>,
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
        fd.set_tss_address(KVM_TSS as usize).map_err(Error::host("place KVM's task-state segment"))?;
        fd.create_irq_chip().map_err(Error::host("create the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(Error::host("create the interval timer"))?;
        let vcpus = (0..cpus).map(|id| Vcpu::new(&fd, ram.clone(), cpuid, id, cpus));
        let vcpus = vcpus.collect::<Result<_, _>>().map_err(Error::host("create a vCPU"))?;
        let state = Arc::new(RunState::default());
        let (running, stopped) = channel();
        Ok(Self { fd, exit_handler, state, vcpus, threads: Vec::new(), running: Some(running), stopped })
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
        for vcpu in std::mem::take(&mut self.vcpus) {
            let id = vcpu.id();
            let handle = self.spawn(vcpu, buses.clone(), by_port).map_err(Error::host("start a vCPU's thread"))?;
            self.threads.push((id, handle));
        }
        Ok(())
    }

    /// The vCPU thread: run the vCPU, then kick.
    fn spawn(&self, mut vcpu: Vcpu, buses: Arc<Buses>, by_port: bool) -> io::Result<JoinHandle<VcpuSummary>> {
        let (id, state) = (vcpu.id(), self.state.clone());
        let (exit_handler, running) = (self.exit_handler.clone(), self.running.clone());
        thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
            let guard = ThreadGuard { id, exit_handler, _running: running };
            let mut stats = ExitStats::new(by_port);
            let exit = vcpu.run(&buses, &state, &mut stats);
            guard.exit_handler.set_reason(ExitReason::Vcpu { id, exit });
            if let Err(error) = guard.exit_handler.kick() {
                log::error!("vCPU {id} cannot kick the event loop: {error}");
            }
            VcpuSummary { id, rip: vcpu.rip(), stats }
        })
    }
}

/// Kicks if the vCPU thread panics: without a kick the event loop would wait forever. Its drop is the end of the thread
/// for [`KvmVm::shutdown`].
struct ThreadGuard<EH: ExitHandler> {
    id: u8,
    exit_handler: EH,
    _running: Option<Sender<Infallible>>,
}

impl<EH: ExitHandler> Drop for ThreadGuard<EH> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.exit_handler.exit(ExitReason::Failed(format!("the thread of vCPU {} panicked", self.id)));
        }
    }
}

impl<EH: ExitHandler + Send> KvmVm<EH> {
    /// Gets every vCPU out of the guest and joins its thread. Takes a second at most.
    pub fn shutdown(&mut self) -> Shutdown {
        self.state.set(VmRunState::Exiting);
        self.running = None;
        let mut all_stopped = self.threads.is_empty();
        let mut kicks = 0;
        while !all_stopped && kicks < MAX_KICKS {
            for (_, thread) in &self.threads {
                // Gets the vCPU out of the guest, now or, if it has not entered it yet, as soon as it does.
                let _ = thread.kill(vcpu::kick_signal()); // fails only for a thread that has ended
            }
            kicks += 1;
            all_stopped = self.stopped.recv_timeout(KICK_PERIOD) == Err(RecvTimeoutError::Disconnected);
        }
        let mut shutdown = Shutdown::default();
        for (id, thread) in self.threads.drain(..) {
            match all_stopped || thread.is_finished() {
                // The counts of a thread that panicked are lost.
                true => shutdown.vcpus.push(thread.join().unwrap_or(VcpuSummary { id, ..VcpuSummary::default() })),
                false => shutdown.stuck.push(id),
            }
        }
        shutdown
    }
}

impl<EH: ExitHandler + Send> Drop for KvmVm<EH> {
    fn drop(&mut self) {
        self.shutdown(); // does nothing if it has been called
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
