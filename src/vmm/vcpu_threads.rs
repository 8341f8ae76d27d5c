//! The vCPU threads: each runs its vCPU, then kicks the event loop. A shutdown kicks them out of the guest.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use vmm_sys_util::signal::Killable;

use super::error::Error;
use super::exit_handler::ExitHandler;
use super::outcome::ExitReason;
use super::vm::KvmVm;
use crate::boot::Entry;
use crate::vcpu::{self, Buses, ExitStats, VmRunState};

/// The time a vCPU has to leave the guest before it is kicked again.
const KICK_PERIOD: Duration = Duration::from_millis(10);
/// The number of kicks: for a second, which is counted and not timed, because a host may stand still for longer than
/// that.
const MAX_KICKS: u32 = 100;

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
    /// Starts one thread per vCPU, `vcpu0`, `vcpu1` and so on: each runs its vCPU, then kicks. The boot vCPU begins at
    /// `entry`. `by_port` counts the exits of each port.
    ///
    /// # Errors
    ///
    /// A thread cannot be started. Those that were started end when this VM is dropped.
    pub fn run(&mut self, entry: &Entry, buses: &Arc<Buses>, by_port: bool) -> Result<(), Error> {
        vcpu::install_kick_handler().map_err(Error::host("install the vCPUs' signal handler"))?;
        if let Some(first) = self.vcpus.first() {
            first.set_entry(entry).map_err(Error::host("set a vCPU's registers"))?;
        }
        let (running, stopped) = channel();
        self.stopped = Some(stopped);
        for mut vcpu in self.vcpus.drain(..) {
            let (id, buses, state) = (vcpu.id(), buses.clone(), self.state.clone());
            let (exit_handler, running) = (self.exit_handler.clone(), running.clone());
            let thread = thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
                let guard = ThreadGuard { id, exit_handler, _running: running };
                let mut stats = ExitStats::new(by_port);
                let exit = vcpu.run(&buses, &state, &mut stats);
                guard.exit_handler.set_reason(ExitReason::Vcpu { id, exit });
                if let Err(error) = guard.exit_handler.kick() {
                    log::error!("vCPU {id} cannot kick the event loop: {error}");
                }
                VcpuSummary { id, rip: vcpu.rip(), stats }
            });
            self.threads.push((id, thread.map_err(Error::host("start a vCPU's thread"))?));
        }
        Ok(())
    }
}

impl<EH: ExitHandler + Send> KvmVm<EH> {
    /// Gets every vCPU out of the guest and joins its thread. Takes a second at most.
    pub fn shutdown(&mut self) -> Shutdown {
        self.state.set(VmRunState::Exiting);
        let kick = |stopped: &Receiver<Infallible>| {
            for (_, thread) in &self.threads {
                // Gets the vCPU out of the guest, now or, if it has not entered it yet, as soon as it does.
                let _ = thread.kill(vcpu::kick_signal()); // fails only for a thread that has ended
            }
            stopped.recv_timeout(KICK_PERIOD) == Err(RecvTimeoutError::Disconnected)
        };
        let all_stopped = self.stopped.take().is_none_or(|stopped| (0..MAX_KICKS).any(|_| kick(&stopped)));
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

/// Kicks if the vCPU thread panics: without a kick the event loop would wait forever. Its drop is the end of the thread
/// for [`KvmVm::shutdown`].
struct ThreadGuard<EH: ExitHandler> {
    id: u8,
    exit_handler: EH,
    _running: Sender<Infallible>,
}

impl<EH: ExitHandler> Drop for ThreadGuard<EH> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.exit_handler.exit(ExitReason::Failed(format!("the thread of vCPU {} panicked", self.id)));
        }
    }
}
