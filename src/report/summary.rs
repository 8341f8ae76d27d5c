//! What is told of a run when it is over: to people on standard error, to machines in files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use super::file::ReportFile;
use super::symbols::Symbols;
use super::{Report, json, junit};
use crate::boot::Image;
use crate::device::GuestRequest;
use crate::exec::Ended;
use crate::sys::os_error;
use crate::vmm::{ConsoleConfig, Error, ExitReason, VMMConfig, code, complain};

/// Lines of the console that explain a bad end.
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
    verbose: bool,
    console_hidden: bool,
    json: Option<ReportFile>,
    junit: Option<ReportFile>,
    symbols: Symbols,
    began_at: SystemTime,
    began: Instant,
}

impl RunReporter {
    /// For a run that begins now. An error says which file cannot be used.
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
            verbose: config.verbosity > 0,
            console_hidden: !matches!(config.console, ConsoleConfig::Stdio | ConsoleConfig::Stderr),
            json,
            junit,
            symbols: paths.symbols.map(read).transpose()?.unwrap_or_default(),
            began_at: SystemTime::now(),
            began: Instant::now(),
        })
    }

    /// Reports how the run ended, and returns the exit code.
    pub fn finish(mut self, result: Result<Ended, Error>) -> u8 {
        let report = self.report(result);
        // Before anything that might have to wait for a reader.
        let files = [(self.json.take(), json as fn(&Report) -> String), (self.junit.take(), junit)];
        let written = files.into_iter().filter_map(|(file, make)| Some(file?.write(&make(&report))));
        let written = written.fold(true, |all, this| all & this);
        if self.verbose || !report.reason.is_ordinary() {
            complain(&report.reason);
        }
        report.notes.iter().for_each(complain);
        let code = report.reason.code();
        if let (Some(victim), true) = (&report.console.killed, code != code::OK) {
            complain(format_args!("the guest ran out of memory and killed {victim}; try more --memory"));
        }
        self.explain(&report);
        if written || code != code::OK { code } else { code::FAILED }
    }

    fn report(&self, result: Result<Ended, Error>) -> Report {
        let ended = result.unwrap_or_else(|error| Ended::failed(error.to_string()));
        Report {
            mode: self.mode,
            command: self.command.clone(),
            kernel: self.kernel.clone(),
            memory: self.memory,
            began_at: self.began_at,
            began: self.began,
            wall: self.began.elapsed(),
            reason: ended.outcome.reason,
            vcpus: ended.outcome.vcpus,
            console: ended.outcome.console,
            notes: ended.outcome.notes,
            guest: ended.outcome.guest,
            timings: ended.timings,
            banner: ended.banner,
        }
    }

    /// Whether `line` is the one that a broken rule is about.
    fn is_trouble(&self, line: &str, reason: &ExitReason) -> bool {
        let said = line.split_once("] ").map_or(line, |(_, said)| said);
        matches!(reason, ExitReason::Rule(why) if !said.is_empty() && why.ends_with(said))
    }

    /// Shows what may explain a bad end: where the vCPUs were, and the console if nobody has seen it.
    fn explain(&self, report: &Report) {
        if matches!(report.reason, ExitReason::Timeout(_)) {
            for vcpu in &report.vcpus {
                let rip = vcpu.rip.map_or("an unknown place".to_owned(), |rip| format!("{rip:#x}"));
                let name = vcpu.rip.and_then(|rip| self.symbols.name(rip)).map(|name| format!(" ({name})"));
                complain(format_args!("vCPU {} was at {rip}{}", vcpu.id, name.unwrap_or_default()));
            }
        }
        let bad = match report.reason {
            ExitReason::Guest(request) => request == GuestRequest::Panic,
            ExitReason::Command(_) | ExitReason::Failed(_) | ExitReason::Signal(_) => false,
            ExitReason::Expected | ExitReason::Kicked | ExitReason::UserQuit => false,
            _ => true,
        };
        let lines = &report.console.lines;
        if bad && self.console_hidden && !lines.is_empty() {
            // A panic or an oops is told in more lines than these, and its first say most.
            let pivot =
                |line: &String| line.contains("Kernel panic - not syncing") || self.is_trouble(line, &report.reason);
            let first = lines.iter().position(pivot).map(|at| at.saturating_sub(LAST_LINES / 4));
            let last = lines.len().saturating_sub(LAST_LINES);
            complain(if first.is_some() { "the console's lines about that:" } else { "the console's last lines:" });
            let shown = lines.iter().skip(first.unwrap_or(last).min(last)).take(LAST_LINES);
            shown.for_each(|line| complain(format_args!("| {line}")));
        }
    }
}

/// The files that a run uses otherwise.
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
