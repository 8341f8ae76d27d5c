//! Reports a run: messages on standard error, and the report files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::annotate::{Annotator, CiService, Entry, titles};
use super::file::ReportFile;
use super::symbols::Symbols;
use super::{Report, Run, json, junit};
use crate::boot::Image;
use crate::console::Fault;
use crate::console::output::is_same_file;
use crate::exec::Timings;
use crate::vmm::{ConsoleConfig, ExitReason, Outcome, VMMConfig, VcpuSummary, code};

/// The number of characters of a line that are shown.
const LINE_CHARS: usize = 500;
/// The time from the kick to the end of writing the report files, so that the program ends within 2 s of the kick.
const WRITE_TIME: Duration = Duration::from_millis(1400);
/// The least time for one of them when the other output took long.
const MIN_WRITE_TIME: Duration = Duration::from_millis(100);
/// The number of console lines that are shown after a bad end.
const LAST_LINES: usize = 20;

/// The files that a run reports to or reads for its report.
#[derive(Clone, Debug, Default)]
pub struct ReportPaths {
    /// Receives the run as JSON.
    pub json: Option<PathBuf>,
    /// Receives the run and the tests of the guest as JUnit test cases.
    pub junit: Option<PathBuf>,
    /// Files that the run reads besides those of the machine.
    pub inputs: Vec<PathBuf>,
    /// Receives all output of the run, with times.
    pub log: Option<PathBuf>,
    /// The kernel's `System.map`.
    pub symbols: Option<PathBuf>,
    /// The name of the run among several; empty for a single one.
    pub label: String,
    /// The service that shows the run on its page.
    pub ci: CiService,
}

/// Reports a run. It is created before the run.
#[derive(Debug)]
pub struct RunReporter {
    run: Run,
    console_hidden: bool,
    json: Option<ReportFile>,
    junit: Option<ReportFile>,
    symbols: Symbols,
    annotator: Annotator,
}

impl RunReporter {
    /// A reporter for a run that begins now; `command` is that of `kickvm exec`, and empty for `kickvm run`.
    ///
    /// # Errors
    ///
    /// A file cannot be used; the message names it.
    pub fn new(command: &[OsString], config: &VMMConfig, paths: &ReportPaths) -> Result<Self, String> {
        let ReportPaths { json, junit, symbols, label, ci, .. } = paths;
        let symbols_file = symbols.as_deref();
        let inputs = paths.inputs.iter().map(PathBuf::as_path);
        let mut taken: Vec<&Path> = config.input_files().chain(symbols_file).chain(inputs).collect();
        if let ConsoleConfig::File(console) = &config.console {
            if symbols_file.is_some_and(|symbols| symbols.metadata().is_ok_and(|own| is_same_file(&own, console))) {
                return Err(format!("cannot open console file '{}': it is also used as --symbols", console.display()));
            }
            taken.push(console);
        }
        let run = Run {
            mode: if command.is_empty() { "run" } else { "exec" },
            command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            label: label.clone(),
            kernel: match &config.image {
                Image::File(path) => path.clone(),
                Image::Raw(_) => PathBuf::new(),
            },
            memory: config.memory,
            began_at: SystemTime::now(),
            began: Instant::now(),
        };
        let json_file = ReportFile::open("--report", json.as_deref(), &taken)?;
        taken.extend(json.as_deref());
        let junit_file = ReportFile::open("--junit", junit.as_deref(), &taken)?;
        let symbols = symbols_file.map(Symbols::read).transpose().map_err(|error| error.to_string())?;
        Ok(Self {
            run,
            console_hidden: matches!(config.console, ConsoleConfig::None | ConsoleConfig::File(_)),
            json: json_file,
            junit: junit_file,
            symbols: symbols.unwrap_or_default(),
            annotator: Annotator::start(*ci),
        })
    }

    /// Writes reports of a run that has not ended, which remain if kickvm is killed.
    ///
    /// # Errors
    ///
    /// A file cannot be written; the message names it.
    pub fn start(&mut self) -> Result<(), String> {
        let outcome = Outcome { reason: ExitReason::Unfinished, ..Outcome::failed("") };
        let report = Report { run: self.run.clone(), wall: Duration::ZERO, outcome, timings: Timings::default() };
        self.json.as_mut().map_or(Ok(()), |file| file.start(&json(&report)))?;
        self.junit.as_mut().map_or(Ok(()), |file| file.start(&junit(&report)))
    }

    /// Reports `outcome`, and returns the exit code.
    pub fn finish(self, outcome: Outcome, timings: Timings) -> u8 {
        let Self { run, console_hidden, json: json_file, junit: junit_file, symbols, annotator } = self;
        let report = Report { wall: run.began.elapsed(), run, outcome, timings };
        let outcome = &report.outcome;
        // The files come first: messages may have to wait for a reader of standard error.
        let kicked = outcome.guest.map_or_else(Instant::now, |(_, kicked)| kicked);
        let deadline = || (kicked + WRITE_TIME).max(Instant::now() + MIN_WRITE_TIME);
        let written = json_file.is_none_or(|file| file.write(&json(&report), deadline()));
        let written = junit_file.is_none_or(|file| file.write(&junit(&report), deadline())) && written;
        if outcome.guest.is_some() {
            let stats = outcome.stats();
            log::info!("{stats}");
            stats.busiest_ports(10).iter().for_each(|(port, count)| log::debug!("port {port:#x}: {count} exits"));
        }
        if let Some(tests) = &outcome.tests {
            let (passed, failed, skipped) = (tests.passed, tests.failed, tests.skipped + tests.todo);
            log::info!("{} tests: {passed} passed, {failed} failed, {skipped} skipped", tests.total());
        }
        let (reason, code) = (&outcome.reason, outcome.reason.code());
        let replaced = reason.decided_by_guest() && timings.ended.is_some_and(|(_, status)| status != code);
        log::log!(if reason.is_quiet() && !replaced { log::Level::Info } else { log::Level::Error }, "{reason}");
        outcome.notes.iter().for_each(|note| log::warn!("{note}"));
        outcome.console.faults.iter().for_each(log_fault);
        outcome
            .console
            .unused_allow
            .iter()
            .for_each(|entry| log::info!("no fault matched the --allow expression {entry}"));
        if let (Some(victim), true) = (&outcome.console.killed, code != code::OK) {
            log::error!("the guest ran out of memory and killed {victim}; try more --memory");
        }
        if matches!(reason, ExitReason::Timeout(_)) {
            log_positions(&outcome.vcpus, &symbols);
        }
        if console_hidden && !reason.is_quiet() && !matches!(reason, ExitReason::Failed(_) | ExitReason::Signal(_)) {
            log_console(&outcome.console.lines, reason);
        }
        let code = if written || code != code::OK { code } else { code::FAILED };
        annotator.finish(&[entry(&report, code)], !report.outcome.unterminated);
        code
    }
}

/// What a CI service shows.
fn entry(report: &Report, code: u8) -> Entry {
    let Report { run, wall, outcome, .. } = report;
    let failing = outcome.console.faults.iter().find(|fault| !fault.allowed);
    Entry {
        name: run.name(),
        code,
        outcome: outcome.reason.word().to_owned(),
        reason: outcome.reason.to_string(),
        seconds: wall.as_secs_f64(),
        faults: titles(&outcome.console.faults),
        log: failing.map_or(&outcome.console.lines, |fault| &fault.lines).clone(),
    }
}

fn log_fault(fault: &Fault) {
    let Fault { title, classes, count, allowed, .. } = fault;
    let names = classes.names().collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { "panic" } else { &names };
    log::info!("fault: {title} ({names}; {count}x{})", if *allowed { "; permitted by --allow" } else { "" });
}

/// Logs where each vCPU was.
fn log_positions(vcpus: &[VcpuSummary], symbols: &Symbols) {
    for VcpuSummary { id, rip, .. } in vcpus {
        let address = rip.map_or("an unknown address".to_owned(), |rip| format!("{rip:#x}"));
        let name = rip.and_then(|rip| symbols.name(rip)).map_or(String::new(), |name| format!(" ({name})"));
        log::error!("vCPU {id} was at {address}{name}");
    }
}

/// Logs the lines of the console that may explain `reason`.
fn log_console(lines: &[String], reason: &ExitReason) {
    if lines.is_empty() {
        return;
    }
    // A panic or an oops has more lines than are shown, and the first are the most useful.
    let pivot = |line: &String| line.contains("Kernel panic - not syncing") || violates_rule(line, reason);
    let last = lines.len().saturating_sub(LAST_LINES);
    let (first, title) = match lines.iter().position(pivot) {
        Some(at) => (at.saturating_sub(LAST_LINES / 4).min(last), "the console's lines about that:"),
        None => (last, "the console's last lines:"),
    };
    log::error!("{title}");
    for line in lines[first..].iter().take(LAST_LINES) {
        log::error!("| {}", line.chars().take(LINE_CHARS).collect::<String>());
    }
}

/// Whether `line` is the one that violated a rule.
fn violates_rule(line: &str, reason: &ExitReason) -> bool {
    let text = line.split_once("] ").map_or(line, |(_, text)| text);
    matches!(reason, ExitReason::RuleViolated(why) if !text.is_empty() && why.contains(&format!(": {text}")))
}
