//! `kickvm doctor`: can this host run guests? Each finding is one line, with the command that mends it.

mod demo;
mod embedded_guests;

pub use demo::demo_config;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use kvm_ioctls::Kvm;

use crate::boot::Image;
use crate::device::GuestRequest;
use crate::sys::os_error;
use crate::vcpu::VcpuExit;
use crate::vmm::{CAPABILITIES, ConsoleConfig, ExitReason, MAX_CPUS, MIN_MEMORY, VMMConfig, Vmm, open_kvm_hint};

/// One line of the diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Whether it is as it should be.
    pub good: bool,
    /// What was looked at and what it is like.
    pub what: String,
    /// What mends it.
    pub mend: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4} {}", if self.good { "ok" } else { "FAIL" }, self.what)?;
        match &self.mend {
            Some(mend) => write!(f, "; {mend}"),
            None => Ok(()),
        }
    }
}

fn good(what: impl Into<String>) -> Check {
    Check { good: true, what: what.into(), mend: None }
}

fn bad(what: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { good: false, what: what.into(), mend: Some(mend.into()) }
}

const REAL_HARDWARE: &str = "run on a host with VT-x or AMD-V, or in a VM with nested virtualization: on its host, \
                             'sudo modprobe -r kvm_amd && sudo modprobe kvm_amd nested=1' (or kvm_intel)";

/// How long a probe guest of a dozen instructions may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Examines the host. Linux can boot if every finding is good.
pub fn doctor() -> Vec<Check> {
    let mut findings = Vec::new();
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let error = error.into();
            let mend = open_kvm_hint(&error).trim_start_matches("; ");
            let mend = if mend.is_empty() { REAL_HARDWARE } else { mend };
            return vec![bad(format!("/dev/kvm cannot be opened: {}", os_error::describe(&error)), mend)];
        }
    };
    findings.push(good("/dev/kvm opens for reading and writing"));
    match kvm.get_api_version() {
        12 => findings.push(good("KVM's API version is 12")),
        version => {
            let mend = "make it KVM's device: 'sudo rm /dev/kvm && sudo mknod -m 660 /dev/kvm c 10 232'";
            findings.push(bad(format!("KVM's API version is {version}, not 12"), mend));
            return findings;
        }
    }
    findings.extend(CAPABILITIES.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, lack)| {
        bad(format!("KVM cannot {lack}"), "install a newer kernel: 'sudo apt install linux-image-amd64'")
    }));
    if findings.iter().any(|finding| !finding.good) {
        return findings;
    }
    findings.push(good("KVM has every capability that kickvm needs"));
    let cpus = kvm.get_max_vcpus().min(MAX_CPUS.into());
    findings.push(good(format!("a guest can have up to {cpus} vCPUs")));
    findings.push(good(format!("KVM is {}", vendor())));
    findings.extend(embedded_guests::probes().map(|(instruction, guest)| probe(instruction, guest)));
    findings
}

/// The module that is KVM's lower half.
fn vendor() -> &'static str {
    [
        ("kvm_intel", "kvm_intel: hardware (VT-x)"),
        ("kvm_amd", "kvm_amd: hardware (AMD-V)"),
        ("kvm_pvm", "kvm_pvm: software, without virtualization hardware"),
    ]
    .into_iter()
    .find(|(module, _)| Path::new("/sys/module").join(module).exists())
    .map_or("of a kind that /sys/module does not tell", |(_, text)| text)
}

/// Runs a guest that tries `instruction`.
fn probe(instruction: &str, guest: &'static [u8]) -> Check {
    let config = VMMConfig {
        memory: MIN_MEMORY,
        console: ConsoleConfig::None,
        timeout: Some(PROBE_TIMEOUT),
        ..VMMConfig::new(Image::Raw(guest))
    };
    match Vmm::try_from(config).and_then(Vmm::run).map(|outcome| outcome.reason) {
        Ok(reason) if reason.guest_request() == Some(GuestRequest::Exit(0)) => {
            good(format!("a guest can use {instruction}"))
        }
        Ok(ExitReason::Vcpu { exit: VcpuExit::Unhandled { exit, .. }, .. }) => {
            bad(format!("a guest cannot use {instruction}: {exit}"), REAL_HARDWARE)
        }
        Ok(reason) => bad(format!("a guest cannot use {instruction}: {reason}"), REAL_HARDWARE),
        Err(error) => Check { good: false, what: format!("a guest cannot be run: {error}"), mend: None },
    }
}
