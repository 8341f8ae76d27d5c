//! kickvm as the guest's first process: it gets the guest ready, runs one command, and powers off.
//!
//! Everything the guest has to be told is in a file of its initramfs ([`Job`]); everything it has to tell goes through the
//! [channel](super::channel). Where even that cannot be set up, the reason is said on the console.

mod command;
mod link;
mod modules;
mod ports;
mod serve;
mod session;
mod system;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use super::channel::Event;
use super::job::{INIT_PATH, JOB_PATH, Job};
use crate::sys::os_error;
use command::Running;
use link::Link;

/// What [`act`] calls itself with, to become the command.
const SESSION: &str = "kickvm-session";

/// If this process is the first one of a guest of `kickvm exec`, or about to become its command: acts as that, and returns
/// the exit status if there is any need for one. To be called before anything else.
pub fn act() -> Option<u8> {
    if std::process::id() == 1 && Path::new(JOB_PATH).exists() {
        if let Err(why) = catch_unwind(run).unwrap_or_else(|_| Err("it panicked".to_owned())) {
            say(&why);
        }
        power_off();
    }
    let mut arguments = std::env::args_os();
    let session = arguments.next()? == INIT_PATH && arguments.next()? == SESSION;
    session.then(|| session::become_command(arguments.collect()))
}

/// Runs the job. An error is one that nobody could be told through the channel.
fn run() -> Result<(), String> {
    system::mount_essential()?;
    let mut link = Link::connect()?;
    link.send(&Event::Hello(system::kernel()));
    let job = fs::read(JOB_PATH).map_err(|error| format!("cannot read its job: {error}"))?;
    let job = Job::decode(&job);
    let _ = fs::remove_file(JOB_PATH); // it has served; what secrets it held are in one environment from now on
    match prepare(&job, &mut link) {
        Ok(running) => {
            let status =
                serve::serve(&mut link, running).map_err(|error| format!("cannot serve its command: {error}"))?;
            nix::unistd::sync();
            link.send(&Event::Ended(status));
        }
        Err(why) => link.send(&Event::Failed(why)),
    }
    Ok(())
}

/// Gets the guest ready and starts the command.
fn prepare(job: &Job, link: &mut Link) -> Result<Running, String> {
    for warning in system::set_up() {
        link.send(&Event::Warning(warning));
    }
    modules::load(&job.modules)?;
    if let Some(cwd) = &job.cwd {
        let cannot =
            |error| format!("cannot start in '{}' in the guest: {}", cwd.display(), os_error::describe(&error));
        std::env::set_current_dir(cwd).map_err(cannot)?;
    }
    let running =
        command::start(job).map_err(|error| format!("cannot start the command: {}", os_error::describe(&error)))?;
    link.send(&Event::Started);
    Ok(running)
}

/// Says `what` where a kernel's own words go.
fn say(what: &str) {
    let _ = fs::write("/dev/console", format!("kickvm: init: {what}\n")); // there is nobody else to tell
}

fn power_off() -> ! {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    say(&format!("cannot power off: {error}"));
    loop {
        std::thread::sleep(Duration::from_secs(3600)); // a first process that ends is a kernel panic
    }
}
