//! The virtual machine as KVM has it: interrupt controllers, RAM, vCPUs, and the threads that run them.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};

use super::config::MAX_CPUS;
use super::error::Error;
use super::exit_handler::ExitHandler;
use super::outcome::ExitReason;
use super::subscribers::kick;
use crate::boot::Entry;
use crate::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestRam;
use crate::sys::os_error;
use crate::vcpu::{self, Buses, CpuidTemplate, ExitStats, RunState, Vcpu, VmRunState};

/// How long a vCPU may take to leave the guest once it is kicked, before it is kicked again.
const KICK_PERIOD: Duration = Duration::from_millis(10);
/// How often it is kicked: for a second, which is counted and not timed, as a host may stand still for longer than that.
const KICKS: u32 = 100;

/// A virtual machine whose vCPUs end the event loop through `EH` when they are done.
#[derive(Debug)]
pub struct KvmVm<EH: ExitHandler + Send> {
    fd: Arc<VmFd>,
    exit_handler: EH,
    state: Arc<RunState>,
    vcpus: Vec<Vcpu>,
    threads: Vec<VcpuThread>,
    stopped: (Sender<u8>, Receiver<u8>),
}

#[derive(Debug)]
struct VcpuThread {
    id: u8,
    handle: JoinHandle<VcpuSummary>,
    running: bool,
}

/// What is left of a vCPU.
#[derive(Clone, Debug, Default)]
pub struct VcpuSummary {
    /// Its number.
    pub id: u8,
    /// Its instruction pointer, where KVM still tells it.
    pub rip: Option<u64>,
    /// Its exits.
    pub stats: ExitStats,
}

impl<EH: ExitHandler + Send + 'static> KvmVm<EH> {
    /// Creates the machine with `cpus` vCPUs and `ram`. Nothing runs yet.
    pub fn new(
        kvm: &Kvm,
        cpuid: &CpuidTemplate,
        ram: &Arc<GuestRam>,
        cpus: u8,
        exit_handler: EH,
    ) -> Result<Self, Error> {
        let limit = kvm.get_max_vcpus().min(kvm.get_max_vcpu_id()).min(MAX_CPUS.into());
        if !(1..=limit).contains(&usize::from(cpus)) {
            return Err(Error::Cpus { asked: cpus, limit });
        }
        let fd = Arc::new(create_vm(kvm).map_err(Error::kvm("create a virtual machine"))?);
        fd.set_identity_map_address(KVM_IDENTITY_MAP).map_err(Error::kvm("place KVM's identity map"))?;
        fd.set_tss_address(KVM_TSS as usize).map_err(Error::kvm("place KVM's task-state segment"))?;
        fd.create_irq_chip().map_err(Error::kvm("create the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(Error::kvm("create the interval timer"))?;
        ram.register(&fd).map_err(Error::kvm("give the guest its memory"))?;
        let vcpus = (0..cpus).map(|id| Vcpu::new(&fd, ram.clone(), cpuid, id, cpus));
        let vcpus = vcpus.collect::<Result<_, _>>().map_err(Error::kvm("create a vCPU"))?;
        let state = Arc::new(RunState::default());
        Ok(Self { fd, exit_handler, state, vcpus, threads: Vec::new(), stopped: channel() })
    }

    /// KVM's descriptor of this machine.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The vCPUs that have not been started.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Starts one thread a vCPU, `vcpu0`, `vcpu1` and so on; the guest begins at `entry` on the first. If `by_port`,
    /// exits are counted for each port.
    pub fn run(&mut self, entry: &Entry, buses: &Arc<Buses>, by_port: bool) -> Result<(), Error> {
        vcpu::prepare_kicks().map_err(Error::host("install the vCPUs' signal handler"))?;
        if let Some(first) = self.vcpus.first() {
            first.set_entry(entry).map_err(Error::kvm("set a vCPU's registers"))?;
        }
        for vcpu in std::mem::take(&mut self.vcpus) {
            let id = vcpu.id();
            let handle = self.spawn(vcpu, buses.clone(), by_port).map_err(Error::host("start a vCPU's thread"));
            // If one cannot start, those that did are ended by whoever drops this machine.
            self.threads.push(VcpuThread { id, handle: handle?, running: true });
        }
        Ok(())
    }

    fn spawn(&self, mut vcpu: Vcpu, buses: Arc<Buses>, by_port: bool) -> io::Result<JoinHandle<VcpuSummary>> {
        let id = vcpu.id();
        let state = self.state.clone();
        let mut guard = KickOnDrop {
            exit_handler: self.exit_handler.clone(),
            stopped: self.stopped.0.clone(),
            id,
            reason: Some(ExitReason::Failed(format!("vCPU {id}'s thread panicked"))),
        };
        thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
            let mut stats = ExitStats::new(by_port);
            guard.disarm(match vcpu.run(&buses, &state, &mut stats) {
                Ok(stop) => ExitReason::of_vcpu(id, stop),
                Err(error) => Some(ExitReason::Failed(format!("cannot run vCPU {id}: {}", os_error::describe(&error)))),
            });
            VcpuSummary { id, rip: vcpu.rip(), stats }
        })
    }
}

impl<EH: ExitHandler + Send> KvmVm<EH> {
    /// Gets every vCPU out of the guest and joins its thread. Returns what is left of each, in order.
    ///
    /// Takes a second at most; an error names the vCPUs that do not stop, whose threads are then left behind.
    pub fn shutdown(&mut self) -> Result<Vec<VcpuSummary>, Error> {
        self.state.set(VmRunState::Exiting);
        for _ in 0..KICKS {
            if self.threads.iter().all(|thread| !thread.running) {
                break;
            }
            for thread in self.threads.iter().filter(|thread| thread.running) {
                let _ = vcpu::kick(&thread.handle); // one that has just ended cannot be kicked and need not be
            }
            let patience = Instant::now() + KICK_PERIOD;
            while let Ok(id) = self.stopped.1.recv_timeout(patience.saturating_duration_since(Instant::now())) {
                self.threads.iter_mut().filter(|thread| thread.id == id).for_each(|thread| thread.running = false);
                if self.threads.iter().all(|thread| !thread.running) {
                    break;
                }
            }
        }
        let mut ends = Vec::new();
        let mut stuck = Vec::new();
        for VcpuThread { id, handle, running } in self.threads.drain(..) {
            match running {
                true => stuck.push(id.to_string()),
                // What a panicked thread counted is lost.
                false => ends.push(handle.join().unwrap_or(VcpuSummary { id, ..VcpuSummary::default() })),
            }
        }
        if stuck.is_empty() { Ok(ends) } else { Err(Error::Stuck(stuck.join(", "))) }
    }
}

impl<EH: ExitHandler + Send> Drop for KvmVm<EH> {
    fn drop(&mut self) {
        let _ = self.shutdown(); // there is nothing to do if `run` ended well and somebody called it
    }
}

/// Lives on a vCPU's thread and kicks when that ends, even by a panic.
struct KickOnDrop<EH: ExitHandler> {
    exit_handler: EH,
    stopped: Sender<u8>,
    id: u8,
    reason: Option<ExitReason>,
}

impl<EH: ExitHandler> KickOnDrop<EH> {
    /// The thread ends well, because of `reason`; without one nobody is kicked.
    fn disarm(&mut self, reason: Option<ExitReason>) {
        self.reason = reason;
    }
}

impl<EH: ExitHandler> Drop for KickOnDrop<EH> {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            kick(&self.exit_handler, reason);
        }
        let _ = self.stopped.send(self.id); // nobody waits any more if the machine is gone
    }
}

/// A signal may interrupt the call; then it is to be made again (Documentation/virt/kvm/api.rst, 4.2).
fn create_vm(kvm: &Kvm) -> io::Result<VmFd> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
