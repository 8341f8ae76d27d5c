//! The VMM: from a [`VMMConfig`] to an [`Outcome`].
//!
//! Read [`Vmm::run`] first; it is the pattern this program exists to show. Then `exit_handler` and `vm`.

mod config;
mod error;
mod exit_handler;
mod fast_path;
mod hooks;
mod legacy_devices;
mod outcome;
mod subscribers;
mod virtio;
mod vm;

pub use crate::console::{ConsoleLog, KernelFault, Rules};
pub use config::{
    ConsoleConfig, DEFAULT_CMDLINE, DEFAULT_MEMORY, DiskConfig, MAX_CPUS, MIN_MEMORY, NetConfig, VIRTIO_CMDLINE,
    VMMConfig, VsockConfig,
};
pub use error::Error;
pub(crate) use error::hint;
pub use exit_handler::{ExitHandler, VmmExitHandler, WrappedExitHandler};
pub use hooks::Companion;
pub use outcome::{ExitReason, code};
pub(crate) use subscribers::kick;
pub use vm::{KvmVm, VcpuSummary};

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::boot::{self, BootParams, ByteSize, Entry, Image, layout};
use crate::console::output::{DRAIN_TIMEOUT, Stdout, has_room};
use crate::console::terminal::{self, RawTerminal};
use crate::console::{ConsoleIo, ConsoleMonitor, input::Stdin, terminal_size};
use crate::device::virtio::console::Port;
use crate::device::{BusError, ConsolePort, Device};
use crate::event::{EventManager, MutEventSubscriber, Signals, SubscriberOps};
use crate::memory::GuestRam;
use crate::sys::os_error;
use crate::vcpu::{Buses, CpuidTemplate, ExitStats};
use legacy_devices::Devices;
use subscribers::{SignalSubscriber, TimeoutSubscriber};
use virtio::{Attachment, VirtioDevices};

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub reason: ExitReason,
    /// The exits of all vCPUs.
    pub stats: ExitStats,
    /// What is left of each vCPU, in order.
    pub vcpus: Vec<VcpuSummary>,
    /// What the console had to say.
    pub console: ConsoleLog,
    /// Problems that did not change the reason, such as disks that did not answer.
    pub notes: Vec<String>,
    /// When the vCPUs were started, and when the run was known to be over; between the two the guest ran.
    pub guest: Option<(Instant, Instant)>,
}

/// A virtual machine with all that belongs to it, ready to run once.
pub struct Vmm {
    config: VMMConfig,
    event_mgr: EventManager<Subscriber>,
    exit_handler: WrappedExitHandler,
    vm: KvmVm<WrappedExitHandler>,
    buses: Buses,
    virtio: VirtioDevices,
    console: Arc<Mutex<ConsoleIo<WrappedExitHandler>>>,
    companion: Option<Arc<Mutex<dyn Companion>>>,
    watch: ConsoleMonitor<WrappedExitHandler>,
    ram: Arc<GuestRam>, // last, so that it is unmapped when nobody else has it any more
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
        let Devices { serial, events, mut buses } = Devices::new(vm.fd(), vm.vcpus().first())?;

        let mut ports: Vec<Arc<dyn ConsolePort>> = vec![serial];
        let mut hvc = None;
        if config.console == ConsoleConfig::Virtio {
            let wake = events.wake.try_clone().and_then(|wake| Port::new(wake, terminal_size()));
            let port = Arc::new(wake.map_err(Error::host("make a virtio console"))?);
            ports.push(port.clone());
            hvc = Some(port);
        }
        let virtio = VirtioDevices::new(
            &config,
            hvc.as_ref(),
            &mut Attachment { vm: vm.fd(), ram: &ram, bus: &mut buses.mmio },
        )?;

        let watch = ConsoleMonitor::new(&config.rules, exit_handler.clone()).map_err(Error::Rule)?;
        if let Some(port) = ports.last() {
            port.set_tap(Box::new(watch.clone()));
        }
        let output = Stdout::open(&config.console)?;
        let input = match config.console {
            ConsoleConfig::Stdio | ConsoleConfig::Virtio => Stdin::new().map_err(Error::host("use standard input"))?,
            _ => None,
        };
        let console = ConsoleIo::new(ports, events, output, input, exit_handler.clone());
        let mut console = console.map_err(Error::host("set up the console"))?;
        if let Some(port) = hvc {
            console.follow_size(port).map_err(Error::host("follow the terminal's size"))?;
        }
        let console = Arc::new(Mutex::new(console));
        let companion = None;
        let vmm = Self { config, event_mgr, exit_handler, vm, buses, virtio, console, companion, watch, ram };
        vmm.narrate("Vmm::try_from: the machine is built; the exit handler is the event manager's first subscriber");
        Ok(vmm)
    }
}

impl Vmm {
    /// Puts one more device on the port bus. What is there already keeps its ports.
    pub fn add_port_device(&mut self, base: u16, ports: u16, device: Arc<dyn Device>) -> Result<(), BusError> {
        self.buses.ports.insert(base.into(), ports.into(), device)
    }

    /// Lets `companion` live with the machine.
    pub fn set_companion<C: Companion + 'static>(&mut self, companion: &Arc<Mutex<C>>) {
        self.companion = Some(companion.clone());
    }

    /// The way out, to be kicked.
    pub fn exit_handler(&self) -> &WrappedExitHandler {
        &self.exit_handler
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// KVM's descriptor of the machine, to connect interrupts and doorbells of devices that are added.
    pub fn vm_fd(&self) -> &VmFd {
        self.vm.fd()
    }

    /// Runs the guest until somebody kicks the exit handler. The signals that ask to stop are blocked from when the guest
    /// is loaded, for the calling thread, and stay so.
    ///
    /// An error is kickvm's own. A guest that crashes is none: it is an [`Outcome`].
    pub fn run(mut self) -> Result<Outcome, Error> {
        let entry = self.load()?;
        self.begin_output()?;
        let stop = self.subscribe()?;
        let raw =
            matches!(self.config.console, ConsoleConfig::Stdio | ConsoleConfig::Virtio) || self.config.raw_terminal;
        let terminal = match raw {
            true => RawTerminal::enter().map_err(Error::host("make the terminal raw"))?,
            false => None,
        };
        let deadline = self.config.timeout.and_then(|after| Instant::now().checked_add(after));
        let buses = Arc::new(std::mem::take(&mut self.buses));
        self.narrate("KvmVm::run: starting one thread a vCPU");
        let began = Instant::now();
        self.vm.run(&entry, &buses, self.config.verbosity >= 2)?;

        self.narrate("loop: event_mgr.run() waits");
        loop {
            if let Err(error) = self.event_mgr.run() {
                subscribers::kick(&self.exit_handler, ExitReason::Failed(format!("the event loop failed: {error}")));
                break;
            }
            if !self.exit_handler.keep_running() {
                break;
            }
        }
        let guest = Some((began, Instant::now()));
        let reason = self.exit_handler.reason().unwrap_or(ExitReason::Kicked);
        self.narrate(&format!("loop: kicked because {reason}; keep_running() is false, break"));

        self.console().close(); // a vCPU that waits for room in the console's buffer must not wait any longer
        let shutdown = self.vm.shutdown();
        let notes = self.virtio.stop();
        drop(terminal); // Ctrl-C is a signal again, should the last words find no reader
        let reason = self.drain_output(reason, &stop, deadline);
        let vcpus = shutdown?;
        self.narrate("vm.shutdown(): every vCPU has left the guest, every thread is joined");
        let mut stats = ExitStats::default();
        vcpus.iter().for_each(|vcpu| stats.add(&vcpu.stats));
        self.report(&stats);
        Ok(Outcome { reason, stats, vcpus, console: self.watch.log(), notes, guest })
    }

    /// Empties the console's file. Not before the guest is loaded: a mistyped kernel must not cost the last run's log.
    fn begin_output(&self) -> Result<(), Error> {
        let ConsoleConfig::File(path) = &self.config.console else { return Ok(()) };
        let kernel = match &self.config.image {
            Image::File(kernel) => Some(kernel),
            Image::Raw(_) => None,
        };
        let disks = self.config.disks.iter().map(|disk| &disk.path);
        let inputs = kernel.into_iter().chain(&self.config.initramfs).chain(disks).map(PathBuf::as_path);
        self.console().begin(inputs).map_err(|source| Error::ConsoleFile { path: path.clone(), source })
    }

    /// Adds what can end the run from outside, and the console. Returns where signals can be read.
    fn subscribe(&mut self) -> Result<Arc<Signals>, Error> {
        let stop = Arc::new(subscribers::stop_signals().map_err(Error::host("wait for signals"))?);
        let (signals, companion) = (stop.clone(), self.companion.clone());
        let signals = SignalSubscriber { signals, exit_handler: self.exit_handler.clone(), companion };
        self.event_mgr.add_subscriber(Arc::new(Mutex::new(signals)));
        if let Some(companion) = &self.companion {
            self.event_mgr.add_subscriber(companion.clone());
        }
        if let Some(after) = self.config.timeout {
            let timeout =
                TimeoutSubscriber::new(after, self.exit_handler.clone()).map_err(Error::host("set a timer"))?;
            self.event_mgr.add_subscriber(Arc::new(Mutex::new(timeout)));
        }
        self.event_mgr.add_subscriber(self.console.clone());
        for device in &self.virtio.subscribers {
            self.event_mgr.add_subscriber(device.clone());
        }
        Ok(stop)
    }

    fn load(&self) -> Result<Entry, Error> {
        let VMMConfig { image, initramfs, root, cmdline, cpus, wake_line, .. } = &self.config;
        let (root, cpus, wake_line, virtio) = (root.as_ref(), *cpus, *wake_line, self.virtio.subscribers.len());
        let payload = BootParams { image, initramfs, root, cmdline, cpus, virtio, wake_line };
        let entry = boot::load_noting(self.ram.memory(), &payload, &mut |note| complain(note))?;
        self.say(1, format_args!("boot protocol: {}, entry at {:#x}", entry.protocol, entry.address.0));
        self.say(1, format_args!("command line: {cmdline}"));
        Ok(entry)
    }

    /// Writes the rest of the guest's output, and lets a console that announced a panic explain the end.
    fn drain_output(&self, reason: ExitReason, stop: &Signals, deadline: Option<Instant>) -> ExitReason {
        let hurry = matches!(reason, ExitReason::Signal(_) | ExitReason::Timeout(_) | ExitReason::UserQuit);
        let soon = Instant::now() + DRAIN_TIMEOUT;
        let deadline = if hurry { Some(soon) } else { deadline.map(|deadline| deadline.max(soon)) };
        let reason = match &self.companion {
            Some(it) => it.lock().unwrap_or_else(PoisonError::into_inner).finish(reason, stop, deadline, hurry),
            None => reason,
        };
        let mut console = self.console();
        match console.finish(stop.as_fd(), deadline) {
            Err(error) if !hurry => {
                ExitReason::Failed(format!("cannot write the guest's output: {}", os_error::describe(&error)))
            }
            _ if console.panicked() => self.watch.judge(reason.after_panic()),
            _ => self.watch.judge(reason),
        }
    }

    fn console(&self) -> MutexGuard<'_, ConsoleIo<WrappedExitHandler>> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, stats: &ExitStats) {
        self.say(1, format_args!("{stats}"));
        for (tap, dropped) in &self.virtio.dropped {
            match dropped.load(Ordering::Relaxed) {
                0 => {}
                1 => self.say(1, format_args!("1 frame of tap interface '{tap}' was dropped")),
                count => self.say(1, format_args!("{count} frames of tap interface '{tap}' were dropped")),
            }
        }
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

/// Says `what` on standard error, in one line whatever a file's name may hold. If that is closed, or has had no room for a
/// second, nobody is told, then or later.
pub fn complain(what: impl fmt::Display) {
    static DEAF: AtomicBool = AtomicBool::new(false);
    let line = format!("kickvm: {what}").replace(char::is_control, "?") + terminal::line_end();
    let mut stderr = io::stderr();
    for piece in line.as_bytes().chunks(libc::PIPE_BUF) {
        // What is ready takes so much without waiting (poll(2), pipe(7)).
        let heard = !DEAF.load(Ordering::Relaxed) && has_room(stderr.as_fd(), DRAIN_TIMEOUT);
        if !heard || stderr.write_all(piece).is_err() {
            return DEAF.store(!heard, Ordering::Relaxed);
        }
    }
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
pub(crate) const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "map guest memory (KVM_CAP_USER_MEMORY)"),
    (Cap::Irqchip, "emulate interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "take interrupts from event descriptors (KVM_CAP_IRQFD)"),
    (Cap::Pit2, "emulate the interval timer (KVM_CAP_PIT2)"),
    (Cap::ExtCpuid, "say what CPUID leaves it supports (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "leave a guest at once (KVM_CAP_IMMEDIATE_EXIT)"),
];

fn map_ram(size: u64, address_bits: u32) -> Result<Arc<GuestRam>, Error> {
    let refuse = |why| Error::Memory { size: ByteSize(size), why };
    let end = layout::ram_ranges(size).map(|(start, len)| start.saturating_add(len)).max().unwrap_or(0);
    let most = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX).min(MAX_ADDRESSES);
    if end > most {
        return Err(refuse(format!("this host's guests can have {} at most", ByteSize(most - GAP))));
    }
    let ram = GuestRam::new(layout::ram_ranges(size)).map_err(|error| refuse(os_error::describe(&error)))?;
    Ok(Arc::new(ram))
}

const GAP: u64 = layout::MMIO_GAP_END - layout::MMIO_GAP;
/// Where guest-physical addresses end: KVM takes less than 2^31 pages a slot (`KVM_MEM_MAX_NR_PAGES`).
const MAX_ADDRESSES: u64 = 4 << 40;
