//! How a run ends: the reason, its exit code, and what is left of the machine.

use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::vcpu_threads::VcpuSummary;
use crate::console::{ConsoleLog, ConsoleMonitor, Verdict};
use crate::device::GuestRequest;
use crate::results::{ResultParser, TestResults};
use crate::vcpu::{ExitStats, VcpuExit};

/// The process's exit codes that do not come from the guest or from a signal.
pub mod code {
    /// The guest powered off or requested a reset.
    pub const OK: u8 = 0;
    /// The guest kernel panicked.
    pub const PANIC: u8 = 120;
    /// Triple fault.
    pub const TRIPLE_FAULT: u8 = 121;
    /// The guest could not continue.
    pub const FAULT: u8 = 122;
    /// A rule that the user gave was violated.
    pub const RULE: u8 = 123;
    /// `--timeout` expired.
    pub const TIMEOUT: u8 = 124;
    /// kickvm itself failed.
    pub const FAILED: u8 = 125;
    /// Plus the number of the signal that stopped kickvm.
    pub const SIGNAL: u8 = 128;
}

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub reason: ExitReason,
    /// A summary of each vCPU, in order.
    pub vcpus: Vec<VcpuSummary>,
    /// The console's last lines.
    pub console: ConsoleLog,
    /// When the vCPUs were started, and when the event loop ended; between the two the guest ran.
    pub guest: Option<(Instant, Instant)>,
    /// Further remarks for the user, such as a disk that did not answer.
    pub notes: Vec<String>,
    /// Whether the last line of an output has no end.
    pub unterminated: bool,
    /// The test results that were asked for.
    pub tests: Option<TestResults>,
}

impl Outcome {
    /// A run that ended before the guest was started.
    pub fn failed(why: impl fmt::Display) -> Self {
        let reason = ExitReason::Failed(why.to_string());
        let console = ConsoleLog::default();
        Self { reason, vcpus: Vec::new(), console, guest: None, notes: Vec::new(), unterminated: false, tests: None }
    }

    /// Adds the test results that `parser` has found, if there is one. A run that would have ended with 0 violates a
    /// rule if they are a failure.
    pub fn judge_tests(&mut self, parser: Option<ResultParser>) {
        let Some(parser) = parser else { return };
        let complete = self.reason.decided_by_guest() || self.reason == ExitReason::ExpectationsMet;
        let results = parser.finish(complete);
        if self.reason.code() == code::OK
            && let Some(why) = results.failure()
        {
            self.reason = ExitReason::RuleViolated(why);
        }
        let (kept, total) = (results.cases.len(), results.total());
        if total > kept as u64 {
            self.notes.push(format!("the reports list {kept} of {total} tests"));
        }
        self.tests = Some(results);
    }

    /// Adds a note if the kernel has panicked because it cannot unpack an initramfs (init/initramfs.c).
    pub fn explain_panic(&mut self) {
        let line = |line: &String| {
            let (_, rest) = line.split_once("Initramfs unpacking failed: compression method ")?;
            rest.strip_suffix(" not configured").map(str::to_owned)
        };
        if self.reason.code() == code::PANIC
            && let Some(method) = self.console.lines.iter().find_map(line)
        {
            let symbol = format!("CONFIG_RD_{}", method.to_uppercase());
            self.notes.push(format!(
                "this kernel cannot unpack an initramfs that {method} has compressed: it lacks {symbol}"
            ));
        }
    }

    /// The exits of all vCPUs.
    pub fn stats(&self) -> ExitStats {
        let mut stats = ExitStats::default();
        self.vcpus.iter().for_each(|vcpu| stats.add(&vcpu.stats));
        stats
    }
}

/// Why a run ended. It is stored with the kick; the first one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// A kick without a reason.
    Kicked,
    /// A vCPU ended.
    Vcpu {
        /// Its number.
        id: u8,
        /// How it ended.
        exit: VcpuExit,
    },
    /// The console shows that the guest kernel panicked.
    KernelPanic,
    /// `--timeout` expired.
    Timeout(Duration),
    /// This signal requested the end.
    Signal(i32),
    /// The user left with Ctrl-A x.
    UserQuit,
    /// Each `--expect` expression matched a console line.
    ExpectationsMet,
    /// A console line violated a rule, an expected line is missing, or a test failed.
    RuleViolated(String),
    /// A program in the guest reported the end of its work.
    Agent(AgentExit),
    /// kickvm itself failed.
    Failed(String),
    /// kickvm has not ended yet, or was killed.
    Unfinished,
}

/// The end of a run that an embedder's program in the guest decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentExit {
    /// The process's exit code.
    pub code: u8,
    /// One word for reports.
    pub kind: &'static str,
    /// Whether the exit code is the program's own, as opposed to a failure to reach it.
    pub by_program: bool,
    /// One sentence for the user.
    pub message: String,
}

impl ExitReason {
    /// The request of the guest that ended the run.
    pub fn guest_request(&self) -> Option<GuestRequest> {
        match self {
            Self::Vcpu { exit: VcpuExit::Guest(request), .. } => Some(*request),
            _ => None,
        }
    }

    /// Whether the guest decided the exit code, as opposed to kickvm.
    pub fn decided_by_guest(&self) -> bool {
        match self {
            Self::Agent(agent) => agent.by_program,
            reason => reason.guest_request().is_some_and(|request| request != GuestRequest::Panic),
        }
    }

    /// The reason that counts once the whole console has been examined. `is_linux` if the guest certainly is.
    pub(super) fn after_console(self, monitor: &ConsoleMonitor, is_linux: bool) -> Self {
        let reason = if monitor.panicked() { self.after_panic() } else { self };
        let by_guest = matches!(reason, Self::Vcpu { .. } | Self::KernelPanic | Self::Agent(_));
        let regular = matches!(reason, Self::Agent(_)) || reason.decided_by_guest();
        let timeout = matches!(reason, Self::Timeout(_));
        match (monitor.verdict(), monitor.missing()) {
            // The line came before the end, although the event loop examined it later.
            (Some(Verdict::ExpectationsMet), _) if by_guest || timeout => Self::ExpectationsMet,
            (Some(Verdict::RuleViolated(why)), _) if regular || timeout => Self::RuleViolated(why.clone()),
            _ if reason.guest_request() == Some(GuestRequest::Reset)
                && (is_linux || monitor.has_kernel_messages())
                && monitor.reset_is_fault() =>
            {
                let why = if monitor.has_kernel_messages() {
                    "although no program had requested it"
                } else {
                    "and its console does not show whether a program had requested it"
                };
                Self::RuleViolated(format!("the guest reset, {why} (--fail-on reset); '--fail-on -reset' accepts that"))
            }
            (None, Some(missing)) if regular => {
                Self::RuleViolated(format!("{reason}, but no console line had matched --expect '{missing}'"))
            }
            _ => reason,
        }
    }

    /// A panic explains the reset, crash or timeout that follows it.
    fn after_panic(self) -> Self {
        match self {
            Self::Vcpu { exit: VcpuExit::Guest(GuestRequest::Reset) | VcpuExit::TripleFault { .. }, .. }
            | Self::Timeout(_)
            | Self::Agent(AgentExit { by_program: false, .. }) => Self::KernelPanic,
            reason => reason,
        }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        self.code_and_word().0
    }

    /// One word for reports. The words do not change between versions.
    pub fn word(&self) -> &'static str {
        self.code_and_word().1
    }

    fn code_and_word(&self) -> (u8, &'static str) {
        match self {
            Self::Kicked | Self::UserQuit => (code::OK, "quit"),
            Self::ExpectationsMet => (code::OK, "expected"),
            Self::Vcpu { exit, .. } => match exit {
                VcpuExit::Guest(GuestRequest::PowerOff) => (code::OK, "power-off"),
                VcpuExit::Guest(GuestRequest::Reset) => (code::OK, "reset"),
                VcpuExit::Guest(GuestRequest::Exit(status)) => (*status, "exit-port"),
                VcpuExit::Guest(GuestRequest::Panic) => (code::PANIC, "panic"),
                VcpuExit::TripleFault { .. } => (code::TRIPLE_FAULT, "triple-fault"),
                VcpuExit::Unhandled { .. } => (code::FAULT, "fault"),
                VcpuExit::Failed(_) => (code::FAILED, "failed"),
                VcpuExit::Cancelled => (code::OK, "quit"),
            },
            Self::KernelPanic => (code::PANIC, "panic"),
            Self::Agent(agent) => (agent.code, agent.kind),
            Self::RuleViolated(_) => (code::RULE, "rule"),
            Self::Timeout(_) => (code::TIMEOUT, "timeout"),
            Self::Signal(number) => (code::SIGNAL.saturating_add(u8::try_from(*number).unwrap_or(u8::MAX)), "signal"),
            Self::Failed(_) => (code::FAILED, "failed"),
            Self::Unfinished => (code::FAILED, "unfinished"),
        }
    }

    /// Whether the user, a signal or a timeout ended the run, so that the end must not wait for the guest's readers.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(self, Self::Signal(_) | Self::Timeout(_) | Self::UserQuit)
    }

    /// Whether the end needs no explanation to the user.
    pub fn is_quiet(&self) -> bool {
        self.decided_by_guest() || matches!(self, Self::Kicked | Self::UserQuit | Self::ExpectationsMet)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kicked => f.write_str("the VM was kicked"),
            Self::Vcpu { exit: VcpuExit::Guest(request), .. } => write!(f, "{request}"),
            Self::Vcpu { id, exit: VcpuExit::Cancelled } => write!(f, "vCPU {id} was stopped"),
            Self::Vcpu { id, exit: VcpuExit::TripleFault { rip } } => {
                write!(f, "the guest crashed: triple fault on vCPU {id}")?;
                rip.map_or(Ok(()), |rip| write!(f, " (RIP {rip:#x} as KVM left it)"))
            }
            Self::Vcpu { id, exit: VcpuExit::Unhandled { rip, exit } } => {
                let at = rip.map_or(String::new(), |rip| format!(" at RIP {rip:#x}"));
                let hint =
                    if exit.emulation { "; if this KVM has no hardware behind it, see 'kickvm doctor'" } else { "" };
                write!(f, "the guest could not continue: vCPU {id}{at}: {exit}{hint}")
            }
            Self::Vcpu { id, exit: VcpuExit::Failed(why) } => write!(f, "cannot run vCPU {id}: {why}"),
            Self::KernelPanic => f.write_str("the guest kernel panicked"),
            Self::Timeout(after) => write!(f, "the timeout of {after:?} expired"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "stopped by {signal}"),
                Err(_) => write!(f, "stopped by signal {number}"),
            },
            Self::UserQuit => f.write_str("left with Ctrl-A x"),
            Self::Agent(agent) => f.write_str(&agent.message),
            Self::ExpectationsMet => f.write_str("every --expect expression matched a console line"),
            Self::RuleViolated(why) | Self::Failed(why) => f.write_str(why),
            Self::Unfinished => f.write_str("kickvm has not ended yet, or was killed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{FaultClasses, Rules};
    use crate::results::Format;
    use crate::vcpu::UnhandledExit;

    fn vcpu(exit: VcpuExit) -> ExitReason {
        ExitReason::Vcpu { id: 0, exit }
    }

    fn guest(request: GuestRequest) -> ExitReason {
        vcpu(VcpuExit::Guest(request))
    }

    fn command(code: u8) -> ExitReason {
        ExitReason::Agent(AgentExit { code, kind: "command", by_program: true, message: String::new() })
    }

    fn monitor(rules: Rules, text: &str) -> ConsoleMonitor {
        let mut monitor = ConsoleMonitor::new(&rules).unwrap();
        monitor.push(text.as_bytes());
        assert!(monitor.examine(Duration::MAX));
        monitor.finish();
        monitor
    }

    #[test]
    fn each_reason_has_the_code_of_the_table() {
        let exit = UnhandledExit { exit: String::new(), code: vec![], emulation: false };
        for (reason, code) in [
            (guest(GuestRequest::PowerOff), 0),
            (guest(GuestRequest::Reset), 0),
            (guest(GuestRequest::Exit(119)), 119),
            (guest(GuestRequest::Panic), 120),
            (ExitReason::KernelPanic, 120),
            (vcpu(VcpuExit::TripleFault { rip: None }), 121),
            (vcpu(VcpuExit::Unhandled { rip: None, exit }), 122),
            (ExitReason::RuleViolated(String::new()), 123),
            (ExitReason::Timeout(Duration::from_secs(1)), 124),
            (vcpu(VcpuExit::Failed(String::new())), 125),
            (ExitReason::Failed(String::new()), 125),
            (ExitReason::Signal(libc::SIGTERM), 143),
            (ExitReason::UserQuit, 0),
            (command(200), 200),
            (ExitReason::ExpectationsMet, 0),
        ] {
            assert_eq!(reason.code(), code, "{reason:?}");
        }
    }

    #[test]
    fn a_reset_after_a_panic_is_the_panic() {
        let panicked = monitor(Rules::default(), "Kernel panic - not syncing: x\n");
        let code = |reason: ExitReason| reason.after_console(&panicked, false).code();
        assert_eq!(code(guest(GuestRequest::Reset)), 120);
        assert_eq!(code(vcpu(VcpuExit::TripleFault { rip: None })), 120);
        assert_eq!(code(ExitReason::Timeout(Duration::ZERO)), 120);
        assert_eq!(code(guest(GuestRequest::PowerOff)), 0);
    }

    #[test]
    fn a_reset_of_linux_is_a_failure_unless_the_console_shows_that_it_was_requested() {
        let after = |console: &str, is_linux| {
            let rules = Rules { fail_on: FaultClasses::DEFAULT, ..Rules::default() };
            guest(GuestRequest::Reset).after_console(&monitor(rules, console), is_linux).code()
        };
        let banner = "[    0.000000] Linux version 6\n";
        let orderly = "[    1.000000] reboot: Restarting system\n";
        let cases = [("", 123, 0), (banner, 123, 123), (orderly, 0, 0), ("[    1.000000] sysrq: Resetting\n", 123, 0)];
        for (console, linux, other) in cases {
            assert_eq!((after(console, true), after(console, false)), (linux, other), "{console}");
        }
        let accepting = monitor(Rules { fail_on: FaultClasses::NONE, ..Rules::default() }, "");
        assert_eq!(guest(GuestRequest::Reset).after_console(&accepting, true).code(), 0);
    }

    #[test]
    fn a_fault_decides_unless_the_kernel_panicked() {
        let rules = Rules { fail_on: FaultClasses::OOPS, ..Rules::default() };
        let oops = monitor(rules, "[ 1.0] Oops: 0002 [#1]\n");
        assert_eq!(command(0).after_console(&oops, false).code(), 123);
        assert_eq!(guest(GuestRequest::PowerOff).after_console(&oops, false).code(), 123);
        assert_eq!(guest(GuestRequest::Panic).after_console(&oops, false).code(), 120);
        assert_eq!(ExitReason::Signal(15).after_console(&oops, false), ExitReason::Signal(15));
    }

    #[test]
    fn failed_tests_decide_unless_the_run_has_failed_already() {
        for (reason, text, code) in [
            (guest(GuestRequest::PowerOff), "1..1\nok 1\n", 0),
            (guest(GuestRequest::PowerOff), "1..1\nnot ok 1\n", 123),
            (command(0), "1..2\nok 1\n", 123),
            (command(0), "", 123),
            (command(7), "1..1\nnot ok 1\n", 7),
            (ExitReason::ExpectationsMet, "ok 1\n", 0),
            (ExitReason::UserQuit, "ok 1\n", 123),
            (ExitReason::KernelPanic, "1..2\nok 1\n", 120),
            (ExitReason::Timeout(Duration::ZERO), "1..2\nok 1\n", 124),
            (ExitReason::Signal(15), "", 143),
        ] {
            let mut parser = ResultParser::new(Format::Ktap, "the console");
            parser.push(text.as_bytes());
            let mut outcome = Outcome { reason, ..Outcome::failed("") };
            outcome.judge_tests(Some(parser));
            assert_eq!(outcome.reason.code(), code, "{text}");
            assert_eq!(outcome.reason.word() == "rule", code == 123);
            assert!(outcome.tests.is_some());
        }
    }

    #[test]
    fn a_guest_that_ends_before_the_expected_line_violates_the_rule() {
        let expect = || Rules { expect: vec!["never".into()], ..Rules::default() };
        let unmet = monitor(expect(), "something else\n");
        let reason = guest(GuestRequest::PowerOff).after_console(&unmet, false);
        let why = "the guest powered off, but no console line had matched --expect 'never'";
        assert_eq!(reason, ExitReason::RuleViolated(why.to_owned()));
        assert_eq!(ExitReason::UserQuit.after_console(&unmet, false), ExitReason::UserQuit);
        let met = monitor(expect(), "now or never");
        assert_eq!(guest(GuestRequest::Exit(5)).after_console(&met, false), ExitReason::ExpectationsMet);
    }
}
