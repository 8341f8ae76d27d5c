//! Reports a run: messages on standard error, JSON (`resources/report.schema.json` describes it),
//! and JUnit test cases.
//!
//! [`RunReporter`] is created before the run, because a report file that cannot be written is an error before anything
//! runs. Its [`finish`](RunReporter::finish) takes the [`Outcome`] and returns the exit code.
//!
//! This floor may import all floors below it.
//!
//! ```
//! use kickvm::report::{ReportPaths, RunReporter};
//! use kickvm::boot::Image;
//! use kickvm::vmm::{Outcome, VMMConfig, code};
//!
//! let config = VMMConfig::new(Image::Raw(&[0xf4]));
//! let reporter = RunReporter::new(&[], &config, &ReportPaths::default())?;
//! assert_eq!(reporter.finish(Outcome::failed("no kernel"), Default::default()), code::FAILED);
//! # Ok::<(), String>(())
//! ```

pub mod annotate;
mod file;
mod json;
mod junit;
mod merge;
mod summary;
mod symbols;

pub(crate) use file::ReportFile;
pub use json::{VERSION, json};
pub use junit::junit;
pub use merge::{merge, merge_texts};
pub use summary::{ReportPaths, RunReporter};

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::exec::Timings;
use crate::vmm::Outcome;

/// A run that has begun.
#[derive(Clone, Debug)]
pub struct Run {
    /// "run" or "exec".
    pub mode: &'static str,
    /// The command and its arguments; empty without a command.
    pub command: Vec<String>,
    /// The name of the run among several; empty for a single one.
    pub label: String,
    /// The path of the kernel; empty for an embedded guest.
    pub kernel: PathBuf,
    /// The guest's RAM in bytes.
    pub memory: u64,
    /// The date and time of the start.
    pub began_at: SystemTime,
    /// The start on the monotonic clock.
    pub began: Instant,
}

impl Run {
    /// The command or the kernel, with the name among several.
    pub fn name(&self) -> String {
        let name =
            if self.command.is_empty() { self.kernel.to_string_lossy().into_owned() } else { self.command.join(" ") };
        if self.label.is_empty() { name } else { format!("{name} [{}]", self.label) }
    }
}

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was known at the start.
    pub run: Run,
    /// The duration.
    pub wall: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// The times of the events in a guest of `kickvm exec`.
    pub timings: Timings,
}

#[cfg(test)]
pub(crate) mod tests;
