//! The VMM: from a [`VMMConfig`] to an [`Outcome`].
//!
//! # One run
//!
//! [`Vmm::run`] has these steps, in this order:
//!
//! 1. `load` copies the kernel, the initramfs and the tables into guest memory. `truncate_output` empties the console's
//!    file.
//! 2. `subscribe` adds signals, the embedder's subscribers, the timeout, the console and the virtio devices to the
//!    event loop. The [builder](VmmBuilder) has already added the exit handler. `enter_terminal` makes the terminal
//!    raw.
//! 3. [`KvmVm::run`] starts one thread per vCPU. Each thread runs its vCPU, then stores an [`ExitReason`] and kicks the
//!    exit handler.
//! 4. The loop calls `event_mgr.run()` until the exit handler's `keep_running()` is false. Power-off, crash, signal,
//!    timeout and error all take this path: a reason and a kick.
//! 5. [`KvmVm::shutdown`] kicks every vCPU out of `KVM_RUN` and joins the threads, for about a second at most.
//!    `virtio.stop` ends the devices' I/O or abandons it.
//! 6. The terminal is restored. `drain` writes the last output; the `on_exit` hook and the console's rules may replace
//!    the reason. The reason, the vCPUs, the console log and the notes become the [`Outcome`]. Another process waits
//!    until KVM has destroyed the VM.
//!
//! `setup.rs` has steps 1 and 2, `exit_handler.rs` the exit handler, `vcpu_threads.rs` the vCPU threads,
//! `timeout_and_signals.rs` the timeout and the signals, `vm.rs` the VM's creation, `virtio.rs` and
//! `platform_devices.rs` its devices, `outcome.rs` the reasons and exit codes.
//!
//! This floor imports `event`, `sys`, `memory`, `device`, `boot`, `vcpu`, `results` and `console`.
//!
//! ```
//! use kickvm::vmm::{ExitReason, code};
//! use std::time::Duration;
//!
//! let reason = ExitReason::Timeout(Duration::from_secs(30));
//! assert_eq!(reason.code(), code::TIMEOUT);
//! assert_eq!(reason.to_string(), "the timeout of 30s expired");
//! ```

mod builder;
mod capabilities;
mod config;
mod error;
mod exit_handler;
mod fast_path;
mod outcome;
mod platform_devices;
mod setup;
mod timeout_and_signals;
mod vcpu_threads;
mod virtio;
mod vm;

pub use builder::VmmBuilder;
pub use capabilities::{API_VERSION, CAPABILITIES};
pub use config::{
    ConsoleConfig, DEFAULT_CMDLINE, DiskConfig, MAX_CPUS, MIN_MEMORY, NetConfig, ShareConfig, VIRTIO_CMDLINE,
    VMMConfig, VsockConfig,
};
pub use error::{Error, open_kvm_hint};
pub use exit_handler::{ExitHandler, VmmExitHandler, WrappedExitHandler};
pub use outcome::{AgentExit, ExitReason, Outcome, code};
pub use timeout_and_signals::stop_signals;
pub use vcpu_threads::{Shutdown, VcpuSummary};
pub use vm::KvmVm;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::console::output::is_given_up;
use crate::console::{ConsoleIo, Drain};
use crate::event::{EventManager, MutEventSubscriber};
use crate::memory::GuestRam;
use crate::sys::os_error;
use crate::sys::vm_close::VmCloser;
use crate::vcpu::Buses;
use builder::Hooks;
use virtio::VirtioDevices;

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// A virtual machine with its devices and event loop, ready to run once.
pub struct Vmm {
    config: VMMConfig,
    event_mgr: EventManager<Subscriber>,
    exit_handler: WrappedExitHandler,
    vm: KvmVm<WrappedExitHandler>,
    buses: Buses,
    virtio: VirtioDevices,
    console: Arc<Mutex<ConsoleIo>>,
    hooks: Hooks,
    ram: Arc<GuestRam>,
}

impl Vmm {
    /// Runs the guest until the exit handler is kicked. The signals that request the end, and SIGCONT, are blocked
    /// for the calling thread once the guest is loaded, and stay blocked.
    ///
    /// # Errors
    ///
    /// The VMM fails before the guest starts. A guest that crashes is an [`Outcome`].
    pub fn run(mut self) -> Result<Outcome, Error> {
        let entry = self.load()?;
        self.truncate_output()?;
        let stop = self.subscribe()?;
        let terminal = self.enter_terminal()?;
        let buses = Arc::new(std::mem::take(&mut self.buses));
        log::trace!("KvmVm::run: starting one thread per vCPU");
        let started = Instant::now();
        self.vm.run(&entry, &buses, self.config.port_stats)?;

        log::trace!("loop: event_mgr.run() waits");
        loop {
            if let Err(error) = self.event_mgr.run() {
                self.exit_handler.exit(ExitReason::Failed(format!("the event loop failed: {error}")));
                break;
            }
            if !self.exit_handler.keep_running() {
                break;
            }
        }
        let kicked = Instant::now();
        let reason = self.exit_handler.reason().unwrap_or(ExitReason::Kicked);
        log::trace!("loop: kicked because {reason}; keep_running() is false, break");

        self.console().close(); // a vCPU that waits for room in the output buffer must not wait any longer
        let shutdown = self.vm.shutdown();
        match shutdown.stuck.len() {
            0 => log::trace!("vm.shutdown(): every vCPU has left the guest, every thread is joined"),
            stuck => log::trace!("vm.shutdown(): {stuck} vCPUs are stuck in the guest"),
        }
        let mut notes = self.virtio.stop();
        drop(terminal); // Ctrl-C is a signal again, so that it can end the wait for a slow reader
        let deadline = self.config.timeout.and_then(|after| started.checked_add(after));
        let mut drain = Drain::new(kicked, reason.is_urgent(), stop.as_fd(), deadline);
        let reason = self.drain(reason, &mut drain, entry.is_linux);
        notes.append(&mut drain.notes);
        notes.extend(shutdown.stuck.iter().map(|id| format!("vCPU {id} did not stop in time")));
        let console = self.console().monitor().log();
        let results = self.console().take_results();
        // Without this process, the drop waits for KVM. A thread that is stuck could delay fork(2).
        let closer = notes.is_empty().then(|| VmCloser::start(&**self.vm.fd()));
        drop(self);
        drop(closer);
        let guest = Some((started, kicked));
        let mut outcome = Outcome {
            reason,
            vcpus: shutdown.vcpus,
            console,
            guest,
            notes,
            unterminated: drain.unterminated,
            tests: None,
        };
        outcome.judge_tests(results);
        outcome.explain_panic();
        Ok(outcome)
    }

    /// Writes the rest of the output. The embedder's hook and the console's rules may replace the reason.
    fn drain(&mut self, reason: ExitReason, drain: &mut Drain<'_>, is_linux: bool) -> ExitReason {
        let reason = match self.hooks.on_exit.take() {
            Some(hook) => hook(reason, drain),
            None => reason,
        };
        let mut console = self.console();
        if let Some(error) = console.finish(drain)
            && !drain.is_urgent()
        {
            if !is_given_up(error) {
                return ExitReason::Failed(format!("cannot write the guest's output: {}", os_error::describe(error)));
            }
            drain.notes.push("the guest's last output is lost: its reader takes nothing".into());
        }
        drain.notes.extend(drain.kernel_log.take().and_then(|log| console.add_kernel_log(&log)));
        reason.after_console(console.monitor(), is_linux)
    }

    fn console(&self) -> MutexGuard<'_, ConsoleIo> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
