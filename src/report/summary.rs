//! Reports a run: messages on standard error, and the report files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use super::file::ReportFile;
use super::symbols::Symbols;
use super::{Report, json, junit};
use crate::boot::Image;
use crate::exec::Timings;
use crate::sys::os_error;
use crate::vmm::{ConsoleConfig, ExitReason, Outcome, VMMConfig, code};

/// Characters of a line that are shown.
const LINE_CHARS: usize = 500;
/// Lines of the console that are shown after a bad end.
const LAST_LINES: usize = 20;

/// The files that a run reports to or reads for its report.
#[derive(Clone, Debug, Default)]
pub struct ReportPaths {
    /// Receives the run as JSON.
    pub json: Option<PathBuf>,
    /// Receives the run as a JUnit test case.
    pub junit: Option<PathBuf>,
    /// The kernel's `System.map`.
    pub symbols: Option<PathBuf>,
}

/// Collects before a run what its report needs.
#[derive(Debug)]
pub struct RunReporter {
    mode: &'static str,
    command: Vec<String>,
    kernel: PathBuf,
    memory: u64,
    console_hidden: bool,
    json: Option<ReportFile>,
    junit: Option<ReportFile>,
    symbols: Symbols,
    began_at: SystemTime,
    began: Instant,
}

impl RunReporter {
    /// A reporter for a run that begins now.
    ///
    /// # Errors
    ///
    /// A file cannot be used; the message names it.
    pub fn new(
        mode: &'static str,
        command: &[OsString],
        config: &VMMConfig,
        paths: ReportPaths,
    ) -> Result<Self, String> {
        let read = |path: PathBuf| {
            let cannot = |error| format!("cannot use --symbols '{}': {}", path.display(), os_error::describe(&error));
            Symbols::read(&path).map_err(cannot)
        };
        let mut taken = taken(config);
        taken.extend(paths.symbols.as_deref());
        let open = |option, path: Option<PathBuf>, taken: &[&Path]| {
            path.map(|path| ReportFile::open(option, path, taken)).transpose()
        };
        let json = open("--report", paths.json.clone(), &taken)?;
        taken.extend(paths.json.as_deref());
        let junit = open("--junit", paths.junit, &taken)?;
        Ok(Self {
            mode,
            command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            kernel: match &config.image {
                Image::File(path) => path.clone(),
                Image::Raw(_) => PathBuf::new(),
            },
            memory: config.memory,
            console_hidden: matches!(config.console, ConsoleConfig::None | ConsoleConfig::File(_)),
            json,
            junit,
            symbols: paths.symbols.map(read).transpose()?.unwrap_or_default(),
            began_at: SystemTime::now(),
            began: Instant::now(),
        })
    }

    /// Reports the outcome, and returns the exit code.
    pub fn finish(mut self, outcome: Outcome, timings: Timings) -> u8 {
        let report = self.report(outcome, timings);
        let reason = &report.outcome.reason;
        // Before anything that might have to wait for a reader.
        let files = [(self.json.take(), json as fn(&Report) -> String), (self.junit.take(), junit)];
        let written = files.into_iter().filter_map(|(file, make)| Some(file?.write(&make(&report))));
        let written = written.fold(true, |all, this| all & this);
        let stats = report.outcome.stats();
        if report.outcome.guest.is_some() {
            log::info!("{stats}");
            stats.busiest_ports(10).iter().for_each(|(port, count)| log::debug!("port {port:#x}: {count} exits"));
        }
        log::log!(if reason.is_quiet() { log::Level::Info } else { log::Level::Error }, "{reason}");
        report.outcome.notes.iter().for_each(|note| log::warn!("{note}"));
        let code = reason.code();
        if let (Some(victim), true) = (&report.outcome.console.killed, code != code::OK) {
            log::error!("the guest ran out of memory and killed {victim}; try more --memory");
        }
        self.explain(&report.outcome);
        if written || code != code::OK { code } else { code::FAILED }
    }

    fn report(&self, outcome: Outcome, timings: Timings) -> Report {
        Report {
            mode: self.mode,
            command: self.command.clone(),
            kernel: self.kernel.clone(),
            memory: self.memory,
            began_at: self.began_at,
            began: self.began,
            wall: self.began.elapsed(),
            outcome,
            timings,
        }
    }

    /// Shows what may explain a bad end: where the vCPUs were, and the console if the user has not seen it.
    fn explain(&self, outcome: &Outcome) {
        if matches!(outcome.reason, ExitReason::Timeout(_)) {
            for vcpu in &outcome.vcpus {
                let rip = vcpu.rip.map_or("an unknown address".to_owned(), |rip| format!("{rip:#x}"));
                let name = vcpu.rip.and_then(|rip| self.symbols.name(rip)).map(|name| format!(" ({name})"));
                log::error!("vCPU {} was at {rip}{}", vcpu.id, name.unwrap_or_default());
            }
        }
        let unexplained = match &outcome.reason {
            ExitReason::Failed(_) | ExitReason::Signal(_) => false,
            reason => !reason.is_quiet(),
        };
        let lines = &outcome.console.lines;
        if unexplained && self.console_hidden && !lines.is_empty() {
            // A panic or an oops has more lines than are shown, and the first are the most useful.
            let pivot =
                |line: &String| line.contains("Kernel panic - not syncing") || violates_rule(line, &outcome.reason);
            let first = lines.iter().position(pivot).map(|at| at.saturating_sub(LAST_LINES / 4));
            let last = lines.len().saturating_sub(LAST_LINES);
            log::error!(
                "{}",
                if first.is_some() { "the console's lines about that:" } else { "the console's last lines:" }
            );
            let shown = lines.iter().skip(first.unwrap_or(last).min(last)).take(LAST_LINES);
            shown.for_each(|line| log::error!("| {}", line.chars().take(LINE_CHARS).collect::<String>()));
        }
    }
}

/// Whether `line` is the one that violated a rule.
fn violates_rule(line: &str, reason: &ExitReason) -> bool {
    let text = line.split_once("] ").map_or(line, |(_, text)| text);
    matches!(reason, ExitReason::RuleViolated(why) if !text.is_empty() && why.ends_with(text))
}

/// The files that a run uses for other purposes.
fn taken(config: &VMMConfig) -> Vec<&Path> {
    let mut taken: Vec<&Path> = config.initramfs.iter().map(PathBuf::as_path).collect();
    taken.extend(config.disks.iter().map(|disk| disk.path.as_path()));
    if let Image::File(kernel) = &config.image {
        taken.push(kernel);
    }
    if let ConsoleConfig::File(console) = &config.console {
        taken.push(console);
    }
    taken
}
