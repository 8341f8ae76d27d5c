//! A run, told to machines: as JSON (`resources/report.schema.json` says what is in it) and as a JUnit test case.

mod file;
mod json;
mod junit;
mod summary;
mod symbols;

pub use json::{VERSION, json};
pub use junit::junit;
pub use summary::{ReportPaths, RunReporter};

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::device::GuestRequest;
use crate::exec::Timings;
use crate::vmm::{ConsoleLog, ExitReason, VcpuSummary};

/// Lines of the console that a report holds.
pub const CONSOLE_LINES: usize = 200;

/// Everything there is to tell of one run.
#[derive(Clone, Debug)]
pub struct Report {
    /// "run" or "exec".
    pub mode: &'static str,
    /// The command and its arguments; empty if there was none.
    pub command: Vec<String>,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The guest's RAM in bytes.
    pub memory: u64,
    /// When the run began, by the calendar.
    pub began_at: SystemTime,
    /// When the run began.
    pub began: Instant,
    /// How long it took.
    pub wall: Duration,
    /// Why it ended.
    pub reason: ExitReason,
    /// What is left of each vCPU.
    pub vcpus: Vec<VcpuSummary>,
    /// What the console had to say.
    pub console: ConsoleLog,
    /// Problems that did not change the reason.
    pub notes: Vec<String>,
    /// When the guest began to run, and when the run was known to be over.
    pub guest: Option<(Instant, Instant)>,
    /// What the command's guest went through.
    pub timings: Timings,
    /// The kernel's banner.
    pub banner: Option<String>,
}

impl Report {
    /// One word for the end, which does not change from version to version.
    pub fn outcome(&self) -> &'static str {
        match self.reason {
            ExitReason::Command(_) => "command",
            ExitReason::Guest(GuestRequest::PowerOff) => "power-off",
            ExitReason::Guest(GuestRequest::Reset) => "reset",
            ExitReason::Guest(GuestRequest::Exit(_)) => "exit-port",
            ExitReason::Guest(GuestRequest::Panic) => "panic",
            ExitReason::TripleFault { .. } => "triple-fault",
            ExitReason::Fault { .. } => "fault",
            ExitReason::Rule(_) => "rule",
            ExitReason::Expected => "expected",
            ExitReason::Timeout(_) => "timeout",
            ExitReason::Signal(_) => "signal",
            ExitReason::NoStatus(_) => "no-status",
            ExitReason::Channel(_) => "channel",
            ExitReason::Kicked | ExitReason::UserQuit => "quit",
            ExitReason::Failed(_) => "failed",
        }
    }

    /// Whether the exit code is the guest's own word, and not kickvm's verdict.
    pub fn is_guests_word(&self) -> bool {
        match self.reason {
            ExitReason::Command(_) => true,
            ExitReason::Guest(request) => request != GuestRequest::Panic,
            _ => false,
        }
    }

    fn console_lines(&self) -> &[String] {
        let lines = &self.console.lines;
        &lines[lines.len().saturating_sub(CONSOLE_LINES)..]
    }
}

#[cfg(test)]
mod tests;
