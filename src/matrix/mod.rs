//! Several runs of one command, one for each combination of kernels, vCPUs and kernel command lines.
//!
//! Each run is a separate process: kickvm with the same arguments and the hidden option `--combination`, which selects
//! one combination and the directory for its reports. This process prints the output of all with a prefix, and then
//! a table and the reports of all.
//!
//! This floor may import all floors below it.
//!
//! ```
//! use kickvm::matrix::worst;
//!
//! assert_eq!(worst([0, 123, 7, 120]), 120);
//! ```

mod child;
mod jobs;
mod summary;

pub use jobs::default_jobs;
pub use summary::worst;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::mkdtemp;

use crate::event::{EventSet, Poll, Token};
use crate::report::ReportFile;
use crate::report::annotate::{Annotator, CiService};
use crate::sys::os_error;
use crate::vmm::{code, stop_signals};
use child::Child;
use summary::{Ended, decisive, entries, json, junit, table};

/// How often the processes are checked.
const CHECK_PERIOD: Duration = Duration::from_millis(20);
/// The time for printing the rest of the output: at the end, and after a signal.
const OUTPUT_TIME: Duration = Duration::from_secs(10);
const STALL_TIME: Duration = Duration::from_secs(1);
/// The code of a run that `--fail-fast` has ended.
const STOPPED: u8 = code::SIGNAL + 15; // SIGTERM
/// The time for writing a report.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The name of each combination.
    pub labels: Vec<String>,
    /// How many run at the same time.
    pub jobs: usize,
    /// Whether the first failure ends all other runs.
    pub fail_fast: bool,
    /// The service that shows the runs on its page.
    pub ci: CiService,
    /// Receives all runs as JSON.
    pub json: Option<PathBuf>,
    /// Receives all runs as JUnit test suites.
    pub junit: Option<PathBuf>,
    /// Files that the runs use, which no report may replace.
    pub inputs: Vec<PathBuf>,
}

/// How the runs ended.
struct Ending {
    ended: Vec<Ended>,
    signal: Option<i32>,     // that stopped them
    lost: Option<io::Error>, // why output was lost
}

/// The combination that this process runs, as the hidden option has it.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Its number.
    pub index: usize,
    /// The process ID of the parent.
    pub parent: u32,
    /// The directory for its reports.
    pub directory: PathBuf,
}

impl Selection {
    /// Parses INDEX:PARENT:DIRECTORY.
    ///
    /// # Errors
    ///
    /// The text has another form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parse = || {
            let (index, rest) = text.split_once(':')?;
            let (parent, directory) = rest.split_once(':')?;
            Some(Self { index: index.parse().ok()?, parent: parent.parse().ok()?, directory: directory.into() })
        };
        parse().ok_or_else(|| "give INDEX:PARENT:DIRECTORY".to_owned())
    }

    /// Lets this process end by SIGTERM when its parent ends.
    ///
    /// # Errors
    ///
    /// The parent has ended.
    pub fn end_with_parent(&self) -> Result<(), String> {
        let _ = set_pdeathsig(Signal::SIGTERM); // fails only for a number that is no signal
        let has_parent = std::os::unix::process::parent_id() == self.parent;
        if has_parent { Ok(()) } else { Err("the process that has started this one has ended".to_owned()) }
    }

    /// The file for the report as JSON.
    pub fn json(&self) -> PathBuf {
        self.directory.join(format!("{}.json", self.index))
    }

    /// The file for the report as JUnit.
    pub fn junit(&self) -> PathBuf {
        self.directory.join(format!("{}.xml", self.index))
    }
}

impl Matrix {
    /// Runs all combinations, and returns the exit code of the worst.
    ///
    /// # Errors
    ///
    /// A process cannot be started, or a report cannot be written.
    pub fn run(self) -> Result<u8, String> {
        let template = std::env::temp_dir().join("kickvm-XXXXXX");
        let directory = mkdtemp(&template);
        let directory =
            directory.map_err(|error| format!("cannot create '{}': {}", template.display(), error.desc()))?;
        let result = self.run_in(&directory);
        let _ = std::fs::remove_dir_all(&directory); // it is in a directory for temporary files
        result
    }

    fn run_in(&self, directory: &Path) -> Result<u8, String> {
        let mut taken: Vec<_> = self.inputs.iter().map(PathBuf::as_path).collect();
        let mut json_file = ReportFile::open("--report", self.json.as_deref(), &taken)?;
        taken.extend(self.json.as_deref());
        let mut junit_file = ReportFile::open("--junit", self.junit.as_deref(), &taken)?;
        json_file.as_mut().map_or(Ok(()), |file| file.start(&json(&self.labels, &[], None)))?;
        junit_file.as_mut().map_or(Ok(()), |file| file.start(&junit(&self.labels, &[], None)))?;

        let annotator = Annotator::start(self.ci);
        let Ending { ended, signal, lost } = self.run_all(directory)?;
        table(&self.labels, &ended).iter().for_each(|line| log::warn!("{line}"));
        if let Some(error) = &lost {
            log::error!("cannot write the output of the runs: {}", os_error::describe(error));
        }
        let stopped = signal.map(|number| code::SIGNAL.saturating_add(u8::try_from(number).unwrap_or(127)));
        let code = stopped.unwrap_or_else(|| worst(decisive(&ended).chain(lost.map(|_| code::FAILED))));
        let deadline = Instant::now() + WRITE_TIME;
        let written = json_file.is_none_or(|file| file.write(&json(&self.labels, &ended, Some(code)), deadline));
        let written =
            junit_file.is_none_or(|file| file.write(&junit(&self.labels, &ended, Some(code)), deadline)) && written;
        annotator.finish(&entries(&self.labels, &ended), true);
        Ok(if written || stopped.is_some() { code } else { code::FAILED })
    }

    /// Runs all combinations that can be run.
    fn run_all(&self, directory: &Path) -> Result<Ending, String> {
        let failed = |error| format!("cannot wait for signals: {error}");
        let signals = stop_signals(&[]).map_err(failed)?;
        let mut poll = Poll::new().map_err(failed)?;
        poll.registry().register(&signals, Token(0), EventSet::IN).map_err(failed)?;
        let width = self.labels.iter().map(String::len).max().unwrap_or(0);
        let (mut running, mut printing, mut ended) = (Vec::<Child>::new(), Vec::new(), Vec::new());
        let (mut next, mut signal, mut stop) = (0, None, false);
        let mut events = Vec::with_capacity(1);
        while !running.is_empty() || next < self.labels.len() && !stop {
            while next < self.labels.len() && running.len() < self.jobs && !stop {
                let selection = Selection { index: next, parent: std::process::id(), directory: directory.to_owned() };
                running.push(Child::start(selection, &format!("{:width$} | ", self.labels[next]))?);
                next += 1;
            }
            poll.poll(&mut events, Some(CHECK_PERIOD)).map_err(failed)?;
            while let Some(received) = signals.read().map_err(failed)? {
                signal.get_or_insert(received);
                stop = true;
                running.iter().for_each(|child| child.signal(received));
            }
            let mut at = 0;
            while at < running.len() {
                let Some(code) = running[at].try_wait() else {
                    at += 1;
                    continue;
                };
                let child = running.swap_remove(at);
                let mut run = Ended::read(child.selection(), code);
                printing.push(child);
                run.stopped = stop && signal.is_none() && run.code == STOPPED;
                if self.fail_fast && run.code != 0 && !stop {
                    stop = true;
                    running.iter().for_each(|child| child.signal(libc::SIGTERM));
                }
                ended.push(run);
            }
        }
        let deadline = Instant::now() + if signal.is_some() { STALL_TIME } else { OUTPUT_TIME };
        // All have time to print.
        let lost = printing.iter().fold(None, |lost, child| child.finish(deadline).or(lost));
        ended.sort_by_key(|run| run.index);
        Ok(Ending { ended, signal, lost })
    }
}
