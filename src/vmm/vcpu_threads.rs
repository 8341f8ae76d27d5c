//! The vCPU threads: each runs its vCPU, then kicks the event loop. A shutdown kicks them out of the guest.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::Killable;

use super::exit_handler::ExitHandler;
use super::outcome::ExitReason;
use crate::vcpu::{self, Buses, ExitStats, RunState, Vcpu, VmRunState};

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

/// The threads of a VM.
#[derive(Debug)]
pub struct VcpuThreads {
    state: Arc<RunState>,
    /// The threads, by the number of the vCPU.
    threads: Vec<(u8, JoinHandle<VcpuSummary>)>,
    /// Each thread holds a clone until it ends.
    running: Option<Sender<Infallible>>,
    /// Disconnected as soon as `running` and all its clones are dropped.
    stopped: Receiver<Infallible>,
}

impl Default for VcpuThreads {
    fn default() -> Self {
        let (running, stopped) = channel();
        Self { state: Arc::default(), threads: Vec::new(), running: Some(running), stopped }
    }
}

impl VcpuThreads {
    /// Starts the thread of `vcpu`: run the vCPU, then kick.
    ///
    /// # Errors
    ///
    /// The host has no memory or too many threads.
    pub fn spawn(
        &mut self,
        mut vcpu: Vcpu,
        buses: Arc<Buses>,
        by_port: bool,
        exit_handler: impl ExitHandler + Send + 'static,
    ) -> io::Result<()> {
        let (id, state, running) = (vcpu.id(), self.state.clone(), self.running.clone());
        let thread = thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
            let guard = ThreadGuard { id, exit_handler, _running: running };
            let mut stats = ExitStats::new(by_port);
            let exit = vcpu.run(&buses, &state, &mut stats);
            guard.exit_handler.set_reason(ExitReason::Vcpu { id, exit });
            if let Err(error) = guard.exit_handler.kick() {
                log::error!("vCPU {id} cannot kick the event loop: {error}");
            }
            VcpuSummary { id, rip: vcpu.rip(), stats }
        })?;
        self.threads.push((id, thread));
        Ok(())
    }

    /// Gets every vCPU out of the guest and joins its thread. Takes a second at most.
    pub fn shutdown(&mut self) -> Shutdown {
        self.state.set(VmRunState::Exiting);
        self.running = None;
        let kick = |_| {
            for (_, thread) in &self.threads {
                // Gets the vCPU out of the guest, now or, if it has not entered it yet, as soon as it does.
                let _ = thread.kill(vcpu::kick_signal()); // fails only for a thread that has ended
            }
            self.stopped.recv_timeout(KICK_PERIOD) == Err(RecvTimeoutError::Disconnected)
        };
        let all_stopped = self.threads.is_empty() || (0..MAX_KICKS).any(kick);
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

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.shutdown(); // does nothing if it has been called
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
