//! The VMM: from a [`VMMConfig`] to an [`Outcome`].
//!
//! Read [`Vmm::run`] first; it is the pattern this program exists to show. Then `exit_handler` and `vm`.

mod config;
mod console;
mod demo;
mod doctor;
mod error;
mod exit_handler;
mod guests;
mod machine;
mod outcome;
mod stdin;
mod stdout;
pub mod terminal;
mod vm;
mod watchers;

pub use config::{Console, DEFAULT_CMDLINE, DEFAULT_MEMORY, MAX_CPUS, MIN_MEMORY, VMMConfig};
pub use demo::demo_config;
pub use doctor::{Finding, doctor};
pub use error::Error;
pub use exit_handler::{ExitHandler, VmmExitHandler, WrappedExitHandler};
pub use outcome::{ExitReason, code};
pub use vm::KvmVm;

use crate::boot::{self, Entry, Image, Payload, Size, layout};
use crate::cause::cause;
use crate::device::serial::Serial;
use crate::device::{BusError, Device};
use crate::event::{EventManager, MutEventSubscriber, Signals, SubscriberOps};
use crate::vcpu::{Buses, CpuidTemplate, ExitStats, GuestRam};
use console::ConsoleIo;
use kvm_ioctls::{Cap, Kvm};
use machine::Devices;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use stdin::Stdin;
use stdout::{LAST_WORDS, Stdout};
use terminal::RawTerminal;
use watchers::{SignalWatch, TimeoutWatch};

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub reason: ExitReason,
    /// The exits of all vCPUs.
    pub stats: ExitStats,
}

/// A virtual machine with all that belongs to it, ready to run once.
pub struct Vmm {
    config: VMMConfig,
    event_mgr: EventManager<Subscriber>,
    exit_handler: WrappedExitHandler,
    vm: KvmVm<WrappedExitHandler>,
    ram: Arc<GuestRam>,
    serial: Arc<Serial>,
    buses: Buses,
    console: Arc<Mutex<ConsoleIo<WrappedExitHandler>>>,
}

impl fmt::Debug for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmm").field("config", &self.config).field("buses", &self.buses).finish_non_exhaustive()
    }
}

impl TryFrom<VMMConfig> for Vmm {
    type Error = Error;

    /// Builds the whole machine, or says what is wrong.
    fn try_from(config: VMMConfig) -> Result<Self, Error> {
        let kvm = open_kvm()?;
        let cpuid = CpuidTemplate::new(&kvm).map_err(Error::kvm("ask KVM for its CPUID leaves"))?;
        let ram = map_ram(config.memory, cpuid.physical_address_bits())?;

        let exit_handler = WrappedExitHandler::new().map_err(Error::host("create the exit event"))?;
        let mut event_mgr = EventManager::<Subscriber>::new()?;
        event_mgr.add_subscriber(exit_handler.subscriber());
        if let Some(reason) = exit_handler.reason() {
            return Err(Error::host("set up the way out")(io::Error::other(reason.to_string())));
        }

        let vm = KvmVm::new(&kvm, &cpuid, &ram, config.cpus, exit_handler.clone())?;
        let Devices { serial, events, buses } = Devices::new(vm.fd(), vm.vcpus().first())?;

        let output = Stdout::open(&config.console)?;
        let input = match config.console {
            Console::Stdio => Stdin::new().map_err(Error::host("use standard input"))?,
            _ => None,
        };
        let console = ConsoleIo::new(serial.clone(), events, output, input, exit_handler.clone());
        let console = Arc::new(Mutex::new(console.map_err(Error::host("set up the console"))?));
        let vmm = Self { config, event_mgr, exit_handler, vm, ram, serial, buses, console };
        vmm.narrate("Vmm::try_from: the machine is built; the exit handler is the event manager's first subscriber");
        Ok(vmm)
    }
}

impl Vmm {
    /// Puts one more device on the port bus. What is there already keeps its ports.
    pub fn add_port_device(&mut self, base: u16, ports: u16, device: Arc<dyn Device>) -> Result<(), BusError> {
        self.buses.ports.insert(base.into(), ports.into(), device)
    }

    /// Runs the guest until somebody kicks the exit handler. The signals that ask to stop are blocked from when the guest
    /// is loaded, for the calling thread, and stay so.
    ///
    /// An error is kickvm's own. A guest that crashes is none: it is an [`Outcome`].
    pub fn run(mut self) -> Result<Outcome, Error> {
        let entry = self.load()?;
        self.begin_output()?;
        let stop = self.subscribe()?;
        let terminal = match self.config.console {
            Console::Stdio => RawTerminal::enter().map_err(Error::host("make the terminal raw"))?,
            _ => None,
        };
        let deadline = self.config.timeout.and_then(|after| Instant::now().checked_add(after));
        let buses = Arc::new(std::mem::take(&mut self.buses));
        self.narrate("KvmVm::run: starting one thread a vCPU");
        self.vm.run(&entry, &buses, self.config.verbosity >= 2)?;

        self.narrate("loop: event_mgr.run() waits");
        loop {
            if let Err(error) = self.event_mgr.run() {
                watchers::kick(&self.exit_handler, ExitReason::Failed(format!("the event loop failed: {error}")));
                break;
            }
            if !self.exit_handler.keep_running() {
                break;
            }
        }
        let reason = self.exit_handler.reason().unwrap_or(ExitReason::Kicked);
        self.narrate(&format!("loop: kicked because {reason}; keep_running() is false, break"));

        self.serial.close(); // a vCPU that waits for room in the console's buffer must not wait any longer
        let shutdown = self.vm.shutdown();
        drop(terminal); // Ctrl-C is a signal again, should the last words find no reader
        let reason = self.last_words(reason, &stop, deadline);
        let stats = shutdown?;
        self.narrate("vm.shutdown(): every vCPU has left the guest, every thread is joined");
        self.report(&stats);
        Ok(Outcome { reason, stats })
    }

    /// Empties the console's file. Not before the guest is loaded: a mistyped kernel must not cost the last run's log.
    fn begin_output(&self) -> Result<(), Error> {
        let Console::File(path) = &self.config.console else { return Ok(()) };
        let kernel = match &self.config.image {
            Image::File(kernel) => Some(kernel),
            Image::Raw(_) => None,
        };
        let inputs = kernel.into_iter().chain(&self.config.initramfs).map(PathBuf::as_path);
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.begin(inputs).map_err(|source| Error::ConsoleFile { path: path.clone(), source })
    }

    /// Adds what can end the run from outside, and the console. Returns where signals can be read.
    fn subscribe(&mut self) -> Result<Arc<Signals>, Error> {
        let stop = Arc::new(watchers::stop_signals().map_err(Error::host("wait for signals"))?);
        let signals = SignalWatch { signals: stop.clone(), exit_handler: self.exit_handler.clone() };
        self.event_mgr.add_subscriber(Arc::new(Mutex::new(signals)));
        if let Some(after) = self.config.timeout {
            let timeout = TimeoutWatch::new(after, self.exit_handler.clone()).map_err(Error::host("set a timer"))?;
            self.event_mgr.add_subscriber(Arc::new(Mutex::new(timeout)));
        }
        self.event_mgr.add_subscriber(self.console.clone());
        Ok(stop)
    }

    fn load(&self) -> Result<Entry, Error> {
        let VMMConfig { image, initramfs, cmdline, cpus, .. } = &self.config;
        let entry = boot::load(self.ram.memory(), &Payload { image, initramfs, cmdline, cpus: *cpus })?;
        self.say(1, format_args!("boot protocol: {}, entry at {:#x}", entry.protocol, entry.address.0));
        self.say(1, format_args!("command line: {cmdline}"));
        Ok(entry)
    }

    /// Writes the rest of the guest's output, and lets a console that announced a panic explain the end.
    fn last_words(&self, reason: ExitReason, stop: &Signals, deadline: Option<Instant>) -> ExitReason {
        let hurry = matches!(reason, ExitReason::Signal(_) | ExitReason::Timeout(_) | ExitReason::UserQuit);
        let soon = Instant::now() + LAST_WORDS;
        let deadline = if hurry { Some(soon) } else { deadline.map(|deadline| deadline.max(soon)) };
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        match console.finish(stop.as_fd(), deadline) {
            Err(error) if !hurry => ExitReason::Failed(format!("cannot write the guest's output: {}", cause(&error))),
            _ if self.serial.panicked() => reason.after_panic(),
            _ => reason,
        }
    }

    fn report(&self, stats: &ExitStats) {
        self.say(1, format_args!("{stats}"));
        let busiest = if self.config.verbosity >= 2 { stats.busiest_ports(10) } else { Vec::new() };
        for (port, count) in busiest {
            self.say(2, format_args!("port {port:#x}: {count} exits"));
        }
    }

    fn say(&self, verbosity: u8, what: fmt::Arguments<'_>) {
        if self.config.verbosity >= verbosity {
            complain(what);
        }
    }

    fn narrate(&self, step: &str) {
        if self.config.narrate {
            complain(step);
        }
    }
}

/// Says `what` on standard error, in one line whatever a file's name may hold. If that is closed, nobody is told.
pub fn complain(what: impl fmt::Display) {
    let line = format!("kickvm: {what}").replace(char::is_control, "?") + terminal::line_end();
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Opens /dev/kvm and checks that it is one this VMM can use.
fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| Error::OpenKvm(error.into()))?;
    match kvm.get_api_version() {
        12 => {} // the only one since Linux 2.6.22 (Documentation/virt/kvm/api.rst, 4.1)
        version => return Err(Error::ApiVersion(version)),
    }
    match CAPABILITIES.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        None => Ok(kvm),
        Some((_, lack)) => Err(Error::Capability(lack)),
    }
}

/// What a machine needs from KVM, and what it is for.
const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "map guest memory (KVM_CAP_USER_MEMORY)"),
    (Cap::Irqchip, "emulate interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "take interrupts from event descriptors (KVM_CAP_IRQFD)"),
    (Cap::Pit2, "emulate the interval timer (KVM_CAP_PIT2)"),
    (Cap::ExtCpuid, "say what CPUID leaves it supports (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "leave a guest at once (KVM_CAP_IMMEDIATE_EXIT)"),
];

fn map_ram(size: u64, address_bits: u32) -> Result<Arc<GuestRam>, Error> {
    let refuse = |why| Error::Memory { size: Size(size), why };
    let end = layout::ram_ranges(size).map(|(start, len)| start.saturating_add(len)).max().unwrap_or(0);
    let most = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX).min(MOST_ADDRESSES);
    if end > most {
        return Err(refuse(format!("this host's guests can have {} at most", Size(most - GAP))));
    }
    let ram = GuestRam::new(layout::ram_ranges(size)).map_err(|error| refuse(cause(&error)))?;
    Ok(Arc::new(ram))
}

const GAP: u64 = layout::MMIO_GAP_END - layout::MMIO_GAP;
/// Where guest-physical addresses end: KVM takes less than 2^31 pages a slot (`KVM_MEM_MAX_NR_PAGES`).
const MOST_ADDRESSES: u64 = 4 << 40;
