//! `kickvm exec`: runs one command in a new guest, and ends with the command's exit status.
//!
//! On the host's side [`run`] packs a root file system with kickvm itself as the guest's first process, boots a kernel
//! on it, and adds a subscriber to the VM that moves the command's streams. On the guest's side [`run_if_init`] is that
//! first process. Between them is a channel in guest memory that needs no driver and no kernel module.
//!
//! This floor is a client of the VMM's builder. It may import all floors below it.
//!
//! ```
//! use kickvm::boot::Image;
//! use kickvm::exec::ExecConfig;
//! use kickvm::exec::rootfs::Overlay;
//! use kickvm::vmm::{ConsoleConfig, VMMConfig};
//! use std::time::Duration;
//!
//! let vmm = VMMConfig { console: ConsoleConfig::None, ..VMMConfig::new(Image::File("vmlinuz".into())) };
//! let overlays = vec![Overlay::new("/bin/busybox", "/bin/busybox")];
//! let (command, env, modules) = (vec!["busybox".into(), "uname".into()], Vec::new(), Vec::new());
//! let kill_after = Duration::from_secs(5);
//! let (root, owner, user, caller, workdir) = (None, None, None, None, None);
//! let (results, results_file, reserve_codes) = (None, None, false);
//! let shares = Vec::new();
//! let config =
//!     ExecConfig { vmm, command, root, shares, overlays, owner, user, caller, workdir, env, modules, kill_after,
//!                  reserve_codes, results, results_file };
//! assert_eq!(config.overlays[0].guest.file_name(), Some("busybox".as_ref())); // now call `exec::run(config)`
//! ```

mod caller;
mod channel;
mod cmdline;
mod files;
mod host;
mod init;
mod job;
pub mod modules;
mod pages;
mod port;
mod root;
pub mod rootfs;
mod shares;
mod stream;

pub use caller::Caller;
pub use host::Timings;
pub use init::run_if_init;
pub use root::Root;
pub use shares::{ShareMode, SharedDirectory};

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::boot::{self, Image};
use crate::console::terminal;
use crate::results::{Format, ResultParser};
use crate::sys::rlimit::nofile_limit;
use crate::sys::winsize::WinSize;
use crate::vmm::{Error, Outcome, VMMConfig, VmmBuilder};
use host::{ExecHost, HostOptions};
use job::{INIT_PATH, JOB_PATH, Job, LIBRARIES_PATH, LINKER_PATH, MODULES_PATH};
use modules::{KernelModules, Support, needed_by_devices};
use rootfs::{NewFile, Overlay, RootfsSpec, libraries_of};

/// A command and the guest it runs in.
#[derive(Clone, Debug)]
pub struct ExecConfig {
    /// The VM. The channel's devices are added to it.
    pub vmm: VMMConfig,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// What becomes the guest's root; `None` for the initramfs and the overlays.
    pub root: Option<Root>,
    /// Directories of the host that the guest uses without a copy.
    pub shares: Vec<SharedDirectory>,
    /// Files and directories that are copied over the root.
    pub overlays: Vec<Overlay>,
    /// The user and the group that the files belong to in the guest; `None` for those on the host.
    pub owner: Option<(u32, u32)>,
    /// The directory in the guest in which the command starts.
    pub workdir: Option<OsString>,
    /// The user that it runs as, from the guest's `/etc/passwd`; `None` for the user of `caller`, or else root.
    pub user: Option<String>,
    /// Whose environment, user and file mode creation mask it has. `env` has precedence.
    pub caller: Option<Caller>,
    /// Its environment, as NAME=VALUE.
    pub env: Vec<OsString>,
    /// Kernel modules that are loaded first, besides those that the devices need.
    pub modules: Vec<OsString>,
    /// How long the command may take to end after a signal.
    pub kill_after: Duration,
    /// Whether a command's status of 120 to 125 or 128 to 255 ends as 119, and a forwarded signal decides the code.
    pub reserve_codes: bool,
    /// The format of test results on standard output.
    pub results: Option<Format>,
    /// A file of the guest with test results, and their format.
    pub results_file: Option<(Format, OsString)>,
}

/// Runs the command in a guest of its own. Its status becomes the exit code of the [`Outcome`].
///
/// # Errors
///
/// The machine cannot be built, or a file cannot be packed.
pub fn run(config: ExecConfig) -> Result<(Outcome, Timings), Error> {
    let ExecConfig { mut vmm, command, root, mut overlays, workdir, mut env, mut modules, .. } = config;
    let ExecConfig { shares, owner, user, caller, kill_after, reserve_codes, results, results_file, .. } = config;
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal() && terminal::in_foreground();
    let terminal = has_terminal.then(|| WinSize::of(io::stdout()).unwrap_or(WinSize { rows: 24, cols: 80 }));
    let own = vmm.initramfs.is_empty() && root.is_none();
    let (devices, mut mounts): (_, Vec<_>) = (0..).zip(&shares).map(|(number, share)| share.device(number)).unzip();
    vmm.shares = devices;
    let mut kernel = find_modules(&vmm, root.as_ref(), &modules)?;
    let is_shared = root.as_ref().map(|root| root.is_shared(&mut kernel, vmm.memory)).transpose()? == Some(true);
    let (shared, copied) = if is_shared { (root, None) } else { (None, root) };
    let [shared, copied] = [shared, copied].map(|root| root.map(|root| root.path));
    if let Some(host) = shared.clone() {
        let root = SharedDirectory { host, guest: "/".into(), mode: ShareMode::Overlay };
        let (device, mount) = root.device(shares.len());
        vmm.shares.push(device);
        mounts.insert(0, mount); // the others are mounted in it
    }
    let mut files = pack_modules(&kernel, &vmm, &mut modules)?;
    let linked = libraries_of(Path::new(SELF)).map_err(|error| boot::Error::InitramfsSource(error.into()))?;
    if let (true, Some(term)) = (has_terminal, std::env::var_os("TERM")) {
        env.insert(0, [OsString::from("TERM"), term].join(OsStr::new("=")));
    }
    let separate_stderr = !io::stderr().is_terminal();
    let fail_on = vmm.rules.fail_on;
    let has_kernel_log = fail_on.need_messages();
    let file = results_file.as_ref().map(|(_, path)| path.clone());
    let job = Job {
        command,
        cwd: workdir,
        env,
        modules,
        terminal,
        separate_stderr,
        kernel_log: has_kernel_log,
        file,
        open_files: nofile_limit(),
        user,
        caller,
        drivers: needed_by_devices(&vmm).into_iter().map(|(name, option)| (name.into(), option.into())).collect(),
        mounts,
    };
    let hidden_on_console = fail_on.are_hidden_by(&vmm.cmdline);
    overlays.iter_mut().for_each(|overlay| overlay.with_libraries = own);
    overlays.push(Overlay { strip: true, ..Overlay::new(SELF, INIT_PATH) });
    vmm.cmdline = cmdline::complete(&vmm.cmdline, linked.is_some())?;
    if let Some(linked) = linked {
        overlays.push(Overlay::new(linked.linker, LINKER_PATH));
        overlays.extend(linked.libraries.into_iter().map(|host| {
            let guest = Path::new(LIBRARIES_PATH).join(host.file_name().unwrap_or_default());
            Overlay::new(host, guest)
        }));
    }
    files.push(NewFile { guest: JOB_PATH.into(), mode: 0o600, content: job.encode() });
    let root = RootfsSpec { directory: copied, below: shared, overlays, files, owner };
    let log = vmm.log.clone();
    let builder = VmmBuilder::new(vmm)?.initramfs_source(Box::new(root)).raw_terminal(has_terminal);
    let options = HostOptions { kill_after, reserve_codes, has_terminal, has_kernel_log, hidden_on_console };
    let results = results.map(|format| ResultParser::new(format, "the command's standard output"));
    let from_file = || {
        let (format, path) = results_file.as_ref()?;
        Some(ResultParser::new(*format, &format!("the guest's file '{}'", path.display())))
    };
    let (builder, host) = ExecHost::new(builder, options, &log, results, from_file)?;
    let host = Arc::new(Mutex::new(host));
    let (on_signal, on_exit) = (host.clone(), host.clone());
    let builder = builder.subscriber(host.clone()).on_signal(move |number| lock(&on_signal).on_signal(number));
    let builder = builder.on_exit(move |reason, drain| lock(&on_exit).on_exit(reason, drain));
    let mut outcome = builder.build().run()?;
    let mut host = lock(&host);
    outcome.judge_tests(host.take_results());
    outcome.console.banner = host.banner.clone().or(outcome.console.banner);
    Ok((outcome, host.timings))
}

/// Searches for the modules of the kernel, if the devices of `vmm`, the root, or a name in `names` may need some.
fn find_modules(vmm: &VMMConfig, root: Option<&Root>, names: &[OsString]) -> Result<KernelModules, boot::Error> {
    let is_needed = root.is_some_and(Root::can_be_shared) || !needed_by_devices(vmm).is_empty() || !names.is_empty();
    match &vmm.image {
        Image::File(image) if is_needed => KernelModules::find(image, root.map(|root| root.path.as_path())),
        _ => Ok(KernelModules::default()),
    }
}

/// Reads the modules of `kernel` that the devices of `vmm` and `names` need. Those in `names` that the host does not
/// have stay there; init searches for them in the guest's root.
fn pack_modules(kernel: &KernelModules, vmm: &VMMConfig, names: &mut Vec<OsString>) -> Result<Vec<NewFile>, Error> {
    let needed = needed_by_devices(vmm);
    let fail = |why: String| boot::Error::InitramfsSource(why.into());
    if let Some((module, option)) = needed.iter().find(|(module, _)| kernel.support(module) == Support::Missing) {
        return Err(fail(kernel.missing(&[module], option)).into());
    }
    let entropy = (!needed.is_empty() && vmm.rng).then_some("virtio_rng");
    let requested = names.clone();
    let requested = requested.iter().filter_map(|name| name.to_str());
    names.retain(|name| !matches!(kernel.support(&name.to_string_lossy()), Support::BuiltIn | Support::Module));
    let modules = kernel.collect(needed.iter().map(|(module, _)| *module).chain(entropy).chain(requested));
    Ok((modules.map_err(fail)?.into_iter().enumerate())
        .map(|(number, module)| NewFile {
            guest: Path::new(MODULES_PATH).join(format!("{number:03}-{}.ko", module.name)),
            mode: 0o600,
            content: module.content,
        })
        .collect())
}

fn lock(host: &Mutex<ExecHost>) -> MutexGuard<'_, ExecHost> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process's executable.
const SELF: &str = "/proc/self/exe";
