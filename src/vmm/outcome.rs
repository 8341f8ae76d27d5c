//! How a run ends, and the exit code that says so.

use std::fmt;
use std::time::Duration;

use crate::device::GuestRequest;
use crate::vcpu::{Fault, VcpuStop};

/// The process's exit codes that do not come from the guest or from a signal.
pub mod code {
    /// The guest powered off, or asked for a reset.
    pub const OK: u8 = 0;
    /// The guest kernel panicked.
    pub const PANIC: u8 = 120;
    /// The guest crashed: triple fault.
    pub const TRIPLE_FAULT: u8 = 121;
    /// The guest could not be run on.
    pub const FAULT: u8 = 122;
    /// A rule that the user gave was broken.
    pub const RULE: u8 = 123;
    /// `--timeout` ran out.
    pub const TIMEOUT: u8 = 124;
    /// kickvm itself failed.
    pub const FAILED: u8 = 125;
    /// Plus the number of the signal that asked kickvm to stop.
    pub const SIGNAL: u8 = 128;
}

/// Why a run ended. It travels with the kick; the first one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// Somebody kicked and gave no reason.
    Kicked,
    /// The guest asked for it.
    Guest(GuestRequest),
    /// The guest crashed.
    TripleFault {
        /// The vCPU that did.
        vcpu: u8,
        /// Its instruction pointer.
        rip: u64,
    },
    /// The guest cannot be run on.
    Fault {
        /// The vCPU that cannot.
        vcpu: u8,
        /// Its instruction pointer, where KVM still tells it.
        rip: Option<u64>,
        /// What happened.
        fault: Fault,
    },
    /// The time was up.
    Timeout(Duration),
    /// This signal asked for it.
    Signal(i32),
    /// The user left with Ctrl-A x.
    UserQuit,
    /// The command in the guest ended with this status.
    Command(u8),
    /// The guest ended before its command did.
    NoStatus(GuestRequest),
    /// The channel to the command broke.
    Channel(String),
    /// All that was expected of the console was seen.
    Expected,
    /// A rule for the console was broken.
    Rule(String),
    /// kickvm itself failed.
    Failed(String),
}

impl ExitReason {
    /// The reason behind a vCPU's stop; `None` if it only did as it was told.
    pub fn of_vcpu(vcpu: u8, stop: VcpuStop) -> Option<Self> {
        match stop {
            VcpuStop::Told => None,
            VcpuStop::Guest(request) => Some(Self::Guest(request)),
            VcpuStop::TripleFault { rip } => Some(Self::TripleFault { vcpu, rip }),
            VcpuStop::Fault { rip, fault } => Some(Self::Fault { vcpu, rip, fault }),
        }
    }

    /// The same reason once it is known that the console announced a kernel panic: the reset or crash that follows one
    /// is the panic's, and so is waiting until the time is up.
    pub fn after_panic(self) -> Self {
        match self {
            Self::Guest(GuestRequest::Reset)
            | Self::NoStatus(GuestRequest::Reset)
            | Self::TripleFault { .. }
            | Self::Timeout(_) => Self::Guest(GuestRequest::Panic),
            reason => reason,
        }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Kicked | Self::UserQuit | Self::Expected => code::OK,
            Self::Command(status) => *status,
            Self::NoStatus(_) | Self::Channel(_) => code::FAULT,
            Self::Rule(_) => code::RULE,
            Self::Guest(GuestRequest::PowerOff | GuestRequest::Reset) => code::OK,
            Self::Guest(GuestRequest::Exit(status)) => *status,
            Self::Guest(GuestRequest::Panic) => code::PANIC,
            Self::TripleFault { .. } => code::TRIPLE_FAULT,
            Self::Fault { .. } => code::FAULT,
            Self::Timeout(_) => code::TIMEOUT,
            Self::Signal(number) => u8::try_from(*number).map_or(u8::MAX, |number| code::SIGNAL.saturating_add(number)),
            Self::Failed(_) => code::FAILED,
        }
    }

    /// Whether the user asked for this, so that nothing needs to be said about it.
    pub fn is_ordinary(&self) -> bool {
        matches!(self, Self::Kicked | Self::UserQuit | Self::Command(_) | Self::Expected)
            || matches!(self, Self::Guest(request) if *request != GuestRequest::Panic)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kicked => f.write_str("the machine was kicked"),
            Self::Guest(GuestRequest::PowerOff) => f.write_str("the guest powered off"),
            Self::Guest(GuestRequest::Reset) => f.write_str("the guest asked for a reset"),
            Self::Guest(GuestRequest::Exit(status)) => write!(f, "the guest ended with status {status}"),
            Self::Guest(GuestRequest::Panic) => f.write_str("the guest kernel panicked"),
            Self::TripleFault { vcpu, rip } => {
                write!(f, "the guest crashed: triple fault on vCPU {vcpu} (RIP {rip:#x} as KVM left it)")
            }
            Self::Fault { vcpu, rip, fault } => {
                write!(f, "the guest cannot be run on: vCPU {vcpu}")?;
                if let Some(rip) = rip {
                    write!(f, " at RIP {rip:#x}")?;
                }
                write!(f, ": {fault}")?;
                if fault.emulation {
                    f.write_str("; is this KVM a software one? See 'kickvm doctor'")?;
                }
                Ok(())
            }
            Self::Timeout(after) => write!(f, "the timeout of {after:?} ran out"),
            Self::Signal(number) => write!(f, "stopped by {}", signal_name(*number)),
            Self::UserQuit => f.write_str("left with Ctrl-A x"),
            Self::Command(status) => write!(f, "the command ended with status {status}"),
            Self::NoStatus(request) => write!(f, "the command's end is not known: {}", Self::Guest(*request)),
            Self::Expected => f.write_str("the console said all that was expected"),
            Self::Channel(why) | Self::Rule(why) => f.write_str(why),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_the_code_of_the_table() {
        let fault = Fault { exit: String::new(), code: vec![], emulation: false };
        for (reason, code) in [
            (ExitReason::Guest(GuestRequest::PowerOff), 0),
            (ExitReason::Guest(GuestRequest::Reset), 0),
            (ExitReason::Guest(GuestRequest::Exit(119)), 119),
            (ExitReason::Guest(GuestRequest::Panic), 120),
            (ExitReason::TripleFault { vcpu: 0, rip: 0 }, 121),
            (ExitReason::Fault { vcpu: 0, rip: None, fault }, 122),
            (ExitReason::Timeout(Duration::from_secs(1)), 124),
            (ExitReason::Failed(String::new()), 125),
            (ExitReason::Signal(libc::SIGTERM), 143),
            (ExitReason::UserQuit, 0),
            (ExitReason::Command(200), 200),
            (ExitReason::NoStatus(GuestRequest::PowerOff), 122),
            (ExitReason::Channel(String::new()), 122),
            (ExitReason::Rule(String::new()), 123),
            (ExitReason::Expected, 0),
        ] {
            assert_eq!(reason.code(), code, "{reason:?}");
        }
    }

    #[test]
    fn a_reset_after_a_panic_is_the_panic() {
        assert_eq!(ExitReason::Guest(GuestRequest::Reset).after_panic().code(), 120);
        assert_eq!(ExitReason::TripleFault { vcpu: 0, rip: 0 }.after_panic().code(), 120);
        assert_eq!(ExitReason::Guest(GuestRequest::PowerOff).after_panic().code(), 0);
    }
}
