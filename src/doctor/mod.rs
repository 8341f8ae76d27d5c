//! `kickvm doctor`: checks whether this host can run guests. `kickvm demo`: a guest that needs no files.
//!
//! [`doctor`] returns one [`Check`] per line of output; a failed check has a remedy, as a command where there is one.
//!
//! This floor may import all floors below it: it runs guests through `vmm`.
//!
//! ```
//! use kickvm::doctor::Check;
//!
//! let check = Check { ok: false, text: "/dev/kvm cannot be opened".into(), remedy: Some("load KVM".into()) };
//! assert_eq!(check.to_string(), "FAIL /dev/kvm cannot be opened; load KVM");
//! ```

mod embedded_guests;

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use kvm_ioctls::Kvm;

use crate::boot::Image;
use crate::device::GuestRequest;
use crate::sys::os_error;
use crate::vcpu::VcpuExit;
use crate::vmm::{
    API_VERSION, CAPABILITIES, ConsoleConfig, ExitReason, MAX_CPUS, MIN_MEMORY, VMMConfig, Vmm, open_kvm_hint,
};

/// The configuration of `kickvm demo`: an embedded guest that writes three lines and powers off.
pub fn demo_config() -> VMMConfig {
    VMMConfig { memory: MIN_MEMORY, rng: false, ..VMMConfig::new(Image::Raw(embedded_guests::demo())) }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Whether the check succeeded.
    pub ok: bool,
    /// What was checked, with the result.
    pub text: String,
    /// What to do about a failure.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(text: impl Into<String>) -> Self {
        Self { ok: true, text: text.into(), remedy: None }
    }

    fn fail(text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { ok: false, text: text.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4} {}", if self.ok { "ok" } else { "FAIL" }, self.text)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
    }
}

const REAL_HARDWARE: &str = "run on a host with VT-x or AMD-V, or in a VM with nested virtualization: on its host, \
                             'sudo modprobe -r kvm_amd && sudo modprobe kvm_amd nested=1' (or kvm_intel)";

/// The time limit of a probe. It executes about a dozen instructions.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks the host. Linux can boot if every check succeeds. A failure may make later checks impossible; they are left
/// out.
pub fn doctor() -> Vec<Check> {
    let kvm = match Kvm::new().map_err(io::Error::from) {
        Ok(kvm) => kvm,
        Err(error) => {
            let remedy = match open_kvm_hint(&error).trim_start_matches("; ") {
                "" => REAL_HARDWARE,
                hint => hint,
            };
            return vec![Check::fail(format!("/dev/kvm cannot be opened: {}", os_error::describe(&error)), remedy)];
        }
    };
    let mut checks = vec![Check::ok("/dev/kvm opens for reading and writing")];
    let version = kvm.get_api_version();
    if version != API_VERSION {
        let remedy = "make it KVM's device: 'sudo rm /dev/kvm && sudo mknod -m 660 /dev/kvm c 10 232'";
        checks.push(Check::fail(format!("KVM's API version is {version}, not {API_VERSION}"), remedy));
        return checks;
    }
    checks.push(Check::ok(format!("KVM's API version is {API_VERSION}")));
    checks.extend(CAPABILITIES.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, purpose)| {
        Check::fail(format!("KVM cannot {purpose}"), "install a newer kernel: 'sudo apt install linux-image-amd64'")
    }));
    if checks.iter().any(|check| !check.ok) {
        return checks;
    }
    checks.push(Check::ok("KVM has every capability that kickvm needs"));
    let cpus = kvm.get_max_vcpus().min(MAX_CPUS.into());
    checks.push(Check::ok(format!("a guest can have up to {cpus} vCPUs")));
    checks.push(Check::ok(format!("KVM is {}", backend())));
    checks.extend(embedded_guests::probes().map(|(instruction, guest)| probe(instruction, guest)));
    checks
}

/// The kernel module that implements KVM for this host's processor.
fn backend() -> &'static str {
    [
        ("kvm_intel", "kvm_intel: hardware (VT-x)"),
        ("kvm_amd", "kvm_amd: hardware (AMD-V)"),
        ("kvm_pvm", "kvm_pvm: software, without virtualization hardware"),
    ]
    .into_iter()
    .find(|(module, _)| Path::new("/sys/module").join(module).exists())
    .map_or("of an unknown kind: none of its modules is in /sys/module", |(_, text)| text)
}

/// Runs a guest that executes `instruction` and ends with status 0 if it works.
fn probe(instruction: &str, guest: &'static [u8]) -> Check {
    let config = VMMConfig {
        memory: MIN_MEMORY,
        console: ConsoleConfig::None,
        timeout: Some(PROBE_TIMEOUT),
        ..VMMConfig::new(Image::Raw(guest))
    };
    match Vmm::try_from(config).and_then(Vmm::run).map(|outcome| outcome.reason) {
        Ok(reason) if reason.guest_request() == Some(GuestRequest::Exit(0)) => {
            Check::ok(format!("a guest can use {instruction}"))
        }
        Ok(ExitReason::Vcpu { exit: VcpuExit::Unhandled { exit, .. }, .. }) => {
            Check::fail(format!("a guest cannot use {instruction}: {exit}"), REAL_HARDWARE)
        }
        Ok(reason) => Check::fail(format!("a guest cannot use {instruction}: {reason}"), REAL_HARDWARE),
        Err(error) => Check { ok: false, text: format!("a guest cannot be run: {error}"), remedy: None },
    }
}
