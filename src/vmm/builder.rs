//! Builds a [`Vmm`]: everything that can fail before a guest runs, and the hooks of embedders.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::config::{ConsoleConfig, VMMConfig};
use super::error::Error;
use super::exit_handler::{ExitHandler, WrappedExitHandler};
use super::outcome::ExitReason;
use super::timeout_and_signals::on_resize;
use super::virtio::VirtioDevices;
use super::{KvmVm, Subscriber, Vmm, capabilities, platform_devices};
use crate::boot::{ByteSize, InitramfsSource, POWER_BUTTON_GSI, layout};
use crate::console::escape_keys::Key;
use crate::console::input::Stdin;
use crate::console::output::OutputFile;
use crate::console::{ConsoleEvent, ConsoleIo, ConsoleMonitor, Drain, Verdict};
use crate::device::serial::{COM1_PORTS, COM2_IRQ, COM2_PORT, Serial};
use crate::device::virtio::console::Port;
use crate::device::{Bus, BusError, ConsolePort, Device};
use crate::event::{EventManager, SubscriberOps};
use crate::memory::GuestRam;
use crate::sys::os_error;
use crate::sys::winsize::WinSize;
use crate::vcpu::{Buses, CpuidTemplate};

/// Called when a signal requests the end. Returns whether it has handled the signal; otherwise the run ends.
pub(super) type SignalHook = Box<dyn FnMut(i32) -> bool + Send>;
/// Called when the vCPUs have stopped. Returns the reason that counts.
pub(super) type ExitHook = Box<dyn FnOnce(ExitReason, &mut Drain<'_>) -> ExitReason + Send>;

/// What an embedder has added.
#[derive(Default)]
pub(super) struct Hooks {
    pub subscribers: Vec<Subscriber>,
    pub on_signal: Option<SignalHook>,
    pub on_exit: Option<ExitHook>,
    pub raw_terminal: bool,
    pub second_serial: bool,
    pub initramfs_source: Option<Box<dyn InitramfsSource + Send>>,
}

/// A VM that is built but can still be extended: with port devices, subscribers of the event loop, and hooks.
///
/// `examples/embed.rs` shows all of them.
#[derive(Debug)]
pub struct VmmBuilder(Vmm);

impl fmt::Debug for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmm").field("config", &self.config).field("buses", &self.buses).finish_non_exhaustive()
    }
}

impl TryFrom<VMMConfig> for Vmm {
    type Error = Error;

    /// Builds the whole machine.
    fn try_from(config: VMMConfig) -> Result<Self, Error> {
        let vmm = VmmBuilder::new(config)?.build();
        log::trace!("Vmm::try_from: the machine is built; the exit handler is the event manager's first subscriber");
        Ok(vmm)
    }
}

impl VmmBuilder {
    /// Builds the machine of `config`.
    ///
    /// # Errors
    ///
    /// The host's KVM cannot run it, or a file, interface or limit of the host is in the way; see [`Error`].
    pub fn new(config: VMMConfig) -> Result<Self, Error> {
        let kvm = capabilities::open_kvm()?;
        let cpuid = CpuidTemplate::new(&kvm).map_err(Error::host("list KVM's CPUID leaves"))?;
        let ram = map_ram(config.memory, cpuid.physical_address_bits())?;

        let exit_handler = WrappedExitHandler::new().map_err(Error::host("create the exit event"))?;
        let mut event_mgr = EventManager::<Subscriber>::new()?;
        event_mgr.add_subscriber(exit_handler.subscriber());
        if let Some(reason) = exit_handler.reason() {
            return Err(Error::host("set up the exit handler")(io::Error::other(reason.to_string())));
        }

        let vm = KvmVm::new(&kvm, &cpuid, &ram, config.cpus, exit_handler.clone())?;
        let wake = eventfd()?;
        let power_button = irqfd(vm.fd(), POWER_BUTTON_GSI, "connect the power button's interrupt")?;
        let copy = wake.try_clone().map_err(Error::host("duplicate an event descriptor"))?;
        let serial = platform_devices::serial_console(vm.fd(), vm.vcpus().first(), copy)?;
        let mut buses = Buses { ports: platform_devices::port_bus(&serial)?, mmio: Bus::default() };
        let hvc = || wake.try_clone().and_then(|wake| Port::new(wake, WinSize::of(io::stdin()).ok()));
        let hvc = (config.console == ConsoleConfig::Virtio).then(hvc).transpose();
        let hvc = hvc.map_err(Error::host("create a virtio console"))?.map(Arc::new);
        let virtio = VirtioDevices::new(&config, hvc.as_ref(), vm.fd(), &ram, &mut buses.mmio)?;
        let (mut ports, mut hooks) = (vec![serial as Arc<dyn ConsolePort>], Hooks::default());
        if let Some(port) = hvc {
            hooks.subscribers.push(on_resize(port.clone()).map_err(Error::host("wait for signals"))?);
            ports.push(port);
        }
        let console = console(&config, ports, wake, power_button, exit_handler.clone())?;
        Ok(Self(Vmm { config, event_mgr, exit_handler, vm, buses, virtio, console, hooks, ram }))
    }

    /// Puts a device on the port bus, at `ports` ports from `base` on.
    ///
    /// # Errors
    ///
    /// Another device has one of the ports.
    pub fn port_device(mut self, base: u16, ports: u16, device: Arc<dyn Device>) -> Result<Self, BusError> {
        self.0.buses.ports.insert(base.into(), ports.into(), device)?;
        Ok(self)
    }

    /// Adds a second serial port (COM2), which ACPI describes. The guest's output there is discarded.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors, or KVM refuses the interrupt.
    pub fn second_serial(mut self) -> Result<(Self, Arc<Serial>), Error> {
        let irq = irqfd(self.vm_fd(), COM2_IRQ, "connect COM2's interrupt")?;
        let serial = Arc::new(Serial::new(irq, eventfd()?));
        serial.close();
        self.0.hooks.second_serial = true;
        Ok((self.port_device(COM2_PORT, COM1_PORTS.into(), serial.clone())?, serial))
    }

    /// Adds a subscriber of the event loop.
    pub fn subscriber(mut self, subscriber: Subscriber) -> Self {
        self.0.hooks.subscribers.push(subscriber);
        self
    }

    /// Calls `hook` when a signal requests the end. The hook returns whether it has handled the signal; otherwise the
    /// run ends.
    pub fn on_signal(mut self, hook: impl FnMut(i32) -> bool + Send + 'static) -> Self {
        self.0.hooks.on_signal = Some(Box::new(hook));
        self
    }

    /// Calls `hook` when the vCPUs have stopped: with the reason, and the limit for writing last output. The hook
    /// returns the reason that counts.
    pub fn on_exit(mut self, hook: impl FnOnce(ExitReason, &mut Drain<'_>) -> ExitReason + Send + 'static) -> Self {
        self.0.hooks.on_exit = Some(Box::new(hook));
        self
    }

    /// Adds an archive that is generated in guest memory, after the initramfs files of the configuration.
    pub fn initramfs_source(mut self, source: Box<dyn InitramfsSource + Send>) -> Self {
        self.0.hooks.initramfs_source = Some(source);
        self
    }

    /// Makes a terminal on standard input raw while the guest runs, although the console does not read it.
    pub fn raw_terminal(mut self, raw: bool) -> Self {
        self.0.hooks.raw_terminal = raw;
        self
    }

    /// The exit handler, to kick.
    pub fn exit_handler(&self) -> &WrappedExitHandler {
        &self.0.exit_handler
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.0.ram
    }

    /// KVM's descriptor of the VM, to connect interrupts and doorbells of devices that are added.
    pub fn vm_fd(&self) -> &VmFd {
        self.0.vm.fd()
    }

    /// The finished machine.
    pub fn build(self) -> Vmm {
        self.0
    }
}

/// Connects the guest's consoles to standard input and output, and the console's events to the exit handler.
fn console(
    config: &VMMConfig,
    ports: Vec<Arc<dyn ConsolePort>>,
    wake: EventFd,
    power_button: EventFd,
    exit_handler: WrappedExitHandler,
) -> Result<Arc<Mutex<ConsoleIo>>, Error> {
    let output = match &config.console {
        ConsoleConfig::None => Ok(OutputFile::discard()),
        ConsoleConfig::Stderr => OutputFile::stream(&io::stderr()).map_err(Error::host("use standard error")),
        ConsoleConfig::File(path) => {
            OutputFile::open(path).map_err(|source| Error::ConsoleFile { path: path.clone(), source })
        }
        _ => OutputFile::stream(&io::stdout()).map_err(Error::host("use standard output")),
    }?;
    let input = if config.console.has_input() { Stdin::new(true) } else { Ok(None) };
    let on_event = move |event| match event {
        ConsoleEvent::Key(Key::PowerButton) => drop(power_button.write(1)), // a full counter is readable already
        ConsoleEvent::Key(Key::Quit) => exit_handler.exit(ExitReason::UserQuit),
        ConsoleEvent::Panicked => exit_handler.exit(ExitReason::KernelPanic),
        ConsoleEvent::Verdict(Verdict::ExpectationsMet) => exit_handler.exit(ExitReason::ExpectationsMet),
        ConsoleEvent::Verdict(Verdict::RuleViolated(why)) => exit_handler.exit(ExitReason::RuleViolated(why)),
        ConsoleEvent::Failed(why) => exit_handler.exit(ExitReason::Failed(why)),
    };
    let input = input.map_err(Error::host("use standard input"))?;
    let monitor = ConsoleMonitor::new(&config.rules).map_err(Error::Rule)?;
    let console = ConsoleIo::new(ports, wake, output, input, monitor, config.log.clone(), Box::new(on_event));
    Ok(Arc::new(Mutex::new(console.map_err(Error::host("set up the console"))?)))
}

/// KVM takes less than 2^31 pages per memory slot (`KVM_MEM_MAX_NR_PAGES`), so guest-physical addresses end here.
const MAX_ADDRESS: u64 = 4 << 40;

fn map_ram(size: u64, address_bits: u32) -> Result<Arc<GuestRam>, Error> {
    let refuse = |why| Error::Memory { size: ByteSize(size), why };
    let end = layout::ram_ranges(size).map(|(start, len)| start.saturating_add(len)).max().unwrap_or(0);
    let max = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX).min(MAX_ADDRESS);
    if end > max {
        let gap = layout::MMIO_GAP_END - layout::MMIO_GAP;
        return Err(refuse(format!("a guest on this host can have at most {}", ByteSize(max - gap))));
    }
    let ram = GuestRam::new(layout::ram_ranges(size)).map_err(|error| refuse(os_error::describe(&error)))?;
    Ok(Arc::new(ram))
}

fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("create an event descriptor"))
}

/// An eventfd that raises the interrupt `gsi`.
pub(super) fn irqfd(vm: &VmFd, gsi: u32, action: &'static str) -> Result<EventFd, Error> {
    let irqfd = eventfd()?;
    vm.register_irqfd(&irqfd, gsi).map_err(Error::host(action))?;
    Ok(irqfd)
}
