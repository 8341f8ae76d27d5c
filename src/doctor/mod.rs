//! `kickvm doctor`: checks whether this host can run guests. `kickvm demo`: a guest that needs no files.
//!
//! [`doctor`] returns one [`Check`] per line of output; a failed check has a remedy, as a command where there is one.
//!
//! This floor may import all floors below it: it runs guests through `vmm`.
//!
//! ```
//! use kickvm::doctor::demo_config;
//! use kickvm::vmm::MIN_MEMORY;
//!
//! assert_eq!(demo_config().memory, MIN_MEMORY);
//! ```

mod embedded_guests;

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
    VMMConfig { memory: MIN_MEMORY, rng: false, ..VMMConfig::new(Image::Raw(&embedded_guests::kickvm_guest_demo)) }
}

/// The result of one check: what was found, or the problem and its remedy.
pub type Check = Result<String, String>;

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
            let remedy = open_kvm_hint(&error).strip_prefix("; ").unwrap_or(REAL_HARDWARE);
            return vec![Err(format!("/dev/kvm cannot be opened: {}; {remedy}", os_error::describe(&error)))];
        }
    };
    let mut checks = vec![Ok("/dev/kvm opens for reading and writing".to_owned())];
    let version = kvm.get_api_version();
    if version != API_VERSION {
        let remedy = "make it KVM's device: 'sudo rm /dev/kvm && sudo mknod -m 660 /dev/kvm c 10 232'";
        checks.push(Err(format!("KVM's API version is {version}, not {API_VERSION}; {remedy}")));
        return checks;
    }
    checks.push(Ok(format!("KVM's API version is {API_VERSION}")));
    let missing = CAPABILITIES.iter().filter(|(cap, _)| !kvm.check_extension(*cap));
    let remedy = "install a newer kernel: 'sudo apt install linux-image-amd64'";
    checks.extend(missing.map(|(_, purpose)| Err(format!("KVM cannot {purpose}; {remedy}"))));
    if checks.iter().any(Result::is_err) {
        return checks;
    }
    checks.push(Ok("KVM has every capability that kickvm needs".to_owned()));
    checks.push(Ok(format!("a guest can have up to {} vCPUs", kvm.get_max_vcpus().min(MAX_CPUS.into()))));
    checks.push(Ok(format!("KVM is {}", backend())));
    checks.extend(embedded_guests::PROBES.map(|(instruction, guest)| probe(instruction, guest)));
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
    let outcome = Vmm::try_from(config).and_then(Vmm::run);
    let reason = outcome.map_err(|error| format!("a guest cannot be run: {error}"))?.reason;
    let why = match &reason {
        reason if reason.guest_request() == Some(GuestRequest::Exit(0)) => {
            return Ok(format!("a guest can use {instruction}"));
        }
        ExitReason::Vcpu { exit: VcpuExit::Unhandled { exit, .. }, .. } => exit.to_string(),
        reason => reason.to_string(),
    };
    Err(format!("a guest cannot use {instruction}: {why}; {REAL_HARDWARE}"))
}
