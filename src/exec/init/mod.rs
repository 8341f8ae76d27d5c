//! kickvm as init, the first process of the guest: it sets up the guest, runs one command, and powers off.
//!
//! Its input is a file of the initramfs ([`Job`]). Its output goes through the [channel](super::channel); an error that
//! prevents the use of the channel is written to the guest's console.

mod channel;
mod command;
mod event_loop;
mod files;
mod modules;
mod program;
mod session;
mod shares;
mod sparse;
mod system;
mod user;

use std::fmt;
use std::fs;
use std::io;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use super::channel::Message;
use super::job::{INIT_PATH, JOB_PATH, Job, KERNEL_LOG};
use super::modules::{driver_path, symbol};
use crate::sys::os_error;
use channel::GuestChannel;
use command::Running;
use user::User;

/// The first argument of the process that becomes the command.
const SESSION: &str = "kickvm-session";

/// If this process is init in a guest of `kickvm exec`, runs the job and does not return. If it is the process that
/// becomes the command, returns only if that fails, with the exit status to use. Otherwise returns `None`. Must be
/// called before any other code of `main`.
pub fn run_if_init() -> Option<u8> {
    if std::process::id() == 1 && Path::new(JOB_PATH).exists() {
        if let Err(error) = catch_unwind(run).unwrap_or_else(|_| Err("init panicked".to_owned())) {
            print(&error);
        }
        power_off();
    }
    let mut arguments = std::env::args_os();
    let session = arguments.next()? == INIT_PATH && arguments.next()? == SESSION;
    session.then(|| session::become_command(&arguments.collect::<Vec<_>>()))
}

/// Runs the job. An error is one that cannot be sent through the channel.
fn run() -> Result<(), String> {
    system::mount_essential()?;
    let mut channel = GuestChannel::connect()?;
    let banner = fs::read_to_string("/proc/version").unwrap_or_default();
    channel.send(&Message::Hello(banner.trim_end().to_owned()));
    let job = fs::read(JOB_PATH).map_err(cannot("read the job"))?;
    let job = Job::decode(&job).map_err(cannot("decode the job"))?;
    let _ = fs::remove_file(JOB_PATH); // secrets in it are from now on in the command's environment only
    // Before the command can replace the file.
    let kernel_log = job.kernel_log.then(|| files::open(KERNEL_LOG.as_ref()));
    match prepare(&job, &mut channel) {
        Ok(running) => {
            let status = event_loop::run(&mut channel, running).map_err(cannot("wait for the command"))?;
            nix::unistd::sync();
            let files = kernel_log.into_iter().chain(job.file.iter().map(|path| files::open(path)));
            files.for_each(|file| files::send(&mut channel, file));
            channel.send(&Message::Ended(status));
        }
        Err(error) => channel.send(&Message::Failed(error)),
    }
    Ok(())
}

/// Sets up the guest and starts the command.
fn prepare(job: &Job, channel: &mut GuestChannel) -> Result<Running, String> {
    modules::load_packed()?;
    let warnings = sparse::complete_all();
    shares::mount_all(&job.mounts)?;
    for warning in warnings.into_iter().chain(system::set_up(job.caller.is_some())) {
        channel.send(&Message::Warning(warning));
    }
    modules::load(&job.modules)?;
    if let Some((driver, option)) = job.drivers.iter().find(|(driver, _)| !driver_path(driver).exists()) {
        let symbol = symbol(driver).unwrap_or(driver);
        let warning = format!(
            "{option} has no effect yet: the kernel has no driver {driver} ({symbol}, module {driver}); to load a \
             module, give --kernel the directory with boot/ and lib/modules"
        );
        channel.send(&Message::Warning(warning));
    }
    if let Some(cwd) = &job.cwd {
        let started = std::env::set_current_dir(cwd);
        started.map_err(cannot(format_args!("start in '{}' in the guest", cwd.display())))?;
    }
    let user = job.user.as_deref().map(User::find).transpose()?;
    let running = command::start(job, user.as_ref()).map_err(cannot("start the command"))?;
    channel.send(&Message::Started);
    Ok(running)
}

/// Makes the message for an error of `action`.
fn cannot<E: Into<io::Error>>(action: impl fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {action}: {}", os_error::describe(&error.into()))
}

/// Writes `message` to the guest's console, where the kernel writes its messages.
fn print(message: &str) {
    let _ = fs::write("/dev/console", format!("kickvm: init: {message}\n")); // there is no other place to report to
}

fn power_off() -> ! {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    print(&format!("cannot power off: {error}"));
    loop {
        std::thread::sleep(Duration::from_secs(3600)); // the kernel panics if init exits
    }
}
