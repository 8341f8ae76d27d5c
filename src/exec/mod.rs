//! `kickvm exec`: one command in a fresh guest, whose exit status becomes kickvm's own.
//!
//! On the host's side [`run`] packs a root file system with kickvm itself as the guest's first process, boots a kernel on
//! it, and lets a [`Companion`](crate::vmm::Companion) move the command's streams. On the guest's side [`act`] is that first
//! process. Between them is a channel in guest memory that needs no driver and no kernel module.

mod channel;
mod host;
mod init;
mod job;
mod pages;
mod port;
pub mod rootfs;
mod stream;

pub use host::Timings;
pub use init::act;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::EventFd;

use crate::console::input::Stdin;
use crate::console::output::Stdout;
use crate::console::terminal;
use crate::device::ConsolePort;
use crate::device::serial::{COM1_PORTS, COM2_IRQ, COM2_PORT, Serial};
use crate::event::Signals;
use crate::sys::winsize::WinSize;
use crate::vcpu::ExitStats;
use crate::vmm::{ConsoleConfig, ConsoleLog, Error, ExitReason, Outcome, VMMConfig, Vmm};
use channel::Lane;
use host::{Host, Parts};
use job::{INIT_PATH, JOB_PATH, Job, LIBRARIES_PATH, LINKER_PATH};
use port::{BELL, EXEC_PORT, EXEC_PORTS, ExecPort};
use rootfs::{NewFile, Overlay, Root, libraries_of};
use stream::Outlet;

/// One command, the guest it runs in, and what belongs to both.
#[derive(Clone, Debug)]
pub struct ExecConfig {
    /// The machine. What this module needs of it is added.
    pub vmm: VMMConfig,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// A directory that becomes the guest's root.
    pub root: Option<PathBuf>,
    /// What is laid over that.
    pub additions: Vec<Overlay>,
    /// Where in the guest the command starts.
    pub cwd: Option<OsString>,
    /// Its environment, as NAME=VALUE.
    pub env: Vec<OsString>,
    /// Kernel modules to load before.
    pub modules: Vec<OsString>,
    /// How long the command may take to heed a signal.
    pub grace: Duration,
}

/// How it ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The machine's end.
    pub outcome: Outcome,
    /// When things happened.
    pub timings: Timings,
    /// The kernel's banner.
    pub banner: Option<String>,
}

/// Where the kernel finds its first process, and how many serial ports it looks after.
const CMDLINE: &str = "8250.nr_uarts=2 rdinit=";

/// Runs the command in a guest of its own.
pub fn run(config: ExecConfig) -> Result<Ended, Error> {
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal() && terminal::in_foreground();
    let size = has_terminal.then(|| WinSize::of(io::stdout()).unwrap_or(WinSize { rows: 24, cols: 80 }));
    let linked = libraries_of(Path::new(SELF))?;

    let mut job = Job {
        command: config.command,
        cwd: config.cwd,
        env: config.env,
        modules: config.modules,
        terminal: size,
        errors_apart: !io::stderr().is_terminal(),
        linked: linked.is_some(),
    };
    if let (true, Some(term)) = (has_terminal, std::env::var_os("TERM")) {
        let mut default = OsString::from("TERM=");
        default.push(term);
        job.env.insert(0, default);
    }
    let mut machine = config.vmm;
    let own = machine.initramfs.is_empty() && config.root.is_none();
    let mut additions = config.additions;
    additions.iter_mut().for_each(|addition| addition.with_libraries = own);
    additions.push(Overlay { strip: true, ..Overlay::new(SELF, INIT_PATH) });
    let mut first = INIT_PATH.to_owned();
    if let Some(linked) = linked {
        additions.push(Overlay::new(linked.linker, LINKER_PATH));
        additions.extend(linked.libraries.into_iter().map(|host| {
            let guest = Path::new(LIBRARIES_PATH).join(host.file_name().unwrap_or_default());
            Overlay::new(host, guest)
        }));
        // What follows the dashes are the first process's arguments.
        first = format!("{LINKER_PATH} -- --library-path {LIBRARIES_PATH} {INIT_PATH}");
    }
    machine.cmdline = format!("{} {CMDLINE}{first}", machine.cmdline);
    machine.root = Some(Root {
        directory: config.root,
        additions,
        files: vec![NewFile { guest: JOB_PATH.into(), mode: 0o600, content: job.encode() }],
    });
    machine.wake_line = true;
    machine.raw_terminal = has_terminal;

    let mut vmm = Vmm::try_from(machine)?;
    let host = connect(&mut vmm, config.grace, has_terminal)?;
    let host = Arc::new(Mutex::new(host));
    vmm.set_companion(&host);
    let outcome = vmm.run()?;
    let host = host.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Ended { outcome, timings: host.timings, banner: host.banner.clone() })
}

/// This program's own file.
const SELF: &str = "/proc/self/exe";

/// Gives `vmm` the devices of the channel.
fn connect(vmm: &mut Vmm, grace: Duration, has_terminal: bool) -> Result<Host<crate::vmm::WrappedExitHandler>, Error> {
    let lay_out = |error| Error::host("lay out the ports")(io::Error::other(error));
    let eventfd =
        || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("create an event descriptor"));
    let copy = |event: &EventFd| event.try_clone().map_err(Error::host("duplicate an event descriptor"));

    let bell = eventfd()?;
    let port = Arc::new(ExecPort::new(copy(&bell)?));
    vmm.add_port_device(EXEC_PORT, EXEC_PORTS, port.clone()).map_err(lay_out)?;
    // With it the guest rings without an exit to this program. Without it the device rings, so an error is none.
    let _ = vmm.vm_fd().register_ioevent(&bell, &IoEventAddress::Pio((EXEC_PORT + BELL).into()), NoDatamatch);

    let irq = eventfd()?;
    vmm.vm_fd().register_irqfd(&irq, COM2_IRQ).map_err(Error::kvm("connect the wake line's interrupt"))?;
    let wake = Arc::new(Serial::new(irq, eventfd()?));
    wake.close(); // it only has input
    vmm.add_port_device(COM2_PORT, COM1_PORTS, wake.clone()).map_err(lay_out)?;

    let input = Stdin::new().map_err(Error::host("use standard input"))?;
    let input = if has_terminal { input } else { input.map(Stdin::without_keys) };
    let window = has_terminal.then(|| Signals::new(&[libc::SIGWINCH])).transpose();
    let parts = Parts {
        ram: vmm.ram().clone(),
        port,
        bell,
        wake,
        input,
        output: Outlet::new(Lane::Output, Stdout::standard(&io::stdout(), "use standard output")?),
        errors: Outlet::new(Lane::Errors, Stdout::standard(&io::stderr(), "use standard error")?),
        grace,
        window: window.map_err(Error::host("wait for signals"))?,
    };
    Host::new(parts, vmm.exit_handler().clone()).map_err(Error::host("set a timer"))
}

impl ExecConfig {
    /// A command in a guest made of `vmm`, whose console nobody sees.
    pub fn new(vmm: VMMConfig, command: Vec<OsString>) -> Self {
        Self {
            vmm: VMMConfig { console: ConsoleConfig::None, ..vmm },
            command,
            root: None,
            additions: Vec::new(),
            cwd: None,
            env: Vec::new(),
            modules: Vec::new(),
            grace: DEFAULT_GRACE,
        }
    }
}

/// How long a command may take to heed a signal, unless its user says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);

impl From<Outcome> for Ended {
    /// A machine's end without a command.
    fn from(outcome: Outcome) -> Self {
        Self { outcome, timings: Timings::default(), banner: None }
    }
}

impl Ended {
    /// A run that did not come about.
    pub fn failed(why: String) -> Self {
        let reason = ExitReason::Failed(why);
        let (stats, vcpus, console) = (ExitStats::default(), Vec::new(), ConsoleLog::default());
        Outcome { reason, stats, vcpus, console, notes: Vec::new(), guest: None }.into()
    }
}
