//! Test results in the text of a source, such as the console: KTAP and TAP, JUnit, `go test -json` and libtest's JSON.
//!
//! [`ResultParser`] takes the text as it arrives, in time and memory that are bounded for each byte and for the whole.
//! Text that belongs to no test is ignored. [`TestResults`] has what it found, and decides whether that is a failure.
//!
//! This floor imports nothing of this crate.
//!
//! ```
//! use kickvm::results::{Format, ResultParser};
//!
//! let mut parser = ResultParser::new(Format::Ktap, "the console");
//! parser.push(b"TAP version 13\n1..2\nok 1 open\nnot ok 2 close # exit=1\n");
//! let results = parser.finish(true);
//! assert_eq!(results.failure().as_deref(), Some("1 of 2 tests failed: close"));
//! ```

mod go;
mod junit;
mod ktap;
mod ktap_line;
mod libtest;
mod parser;
pub(crate) mod xml;

pub use parser::ResultParser;

use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Cases that are kept. Further ones are only counted.
const MAX_CASES: usize = 50_000;
/// Bytes of text that are kept of all cases, and of the tests that run.
const MAX_BYTES: usize = 8 << 20;
/// Bytes of output that are kept of one case.
const MAX_OUTPUT: usize = 64 << 10;
/// Bytes of a name, a message or a reason that are kept.
const MAX_NAME: usize = 512;
/// Tests that may run at once.
const MAX_RUNNING: usize = 10_000;
/// Failed cases that a message names.
const MAX_NAMED: usize = 5;

/// Tests without a result that become a case each. Further ones are only counted.
const MAX_MISSING: usize = 100;

const NOT_ENDED: &str = "it did not end";
const NO_RESULT: &str = "it has no result";

/// A format of test results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The kernel's variant of TAP, as KUnit and kselftest print it.
    Ktap,
    /// TAP 12, 13 or 14, in which a plan is mandatory.
    Tap,
    /// An XML file of JUnit.
    Junit,
    /// `go test -json`, or `test2json`.
    Go,
    /// Rust's libtest with `--format json`, or cargo-nextest with `--message-format libtest-json`.
    Libtest,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Ktap, Self::Tap, Self::Junit, Self::Go, Self::Libtest];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ktap => "ktap",
            Self::Tap => "tap",
            Self::Junit => "junit",
            Self::Go => "go",
            Self::Libtest => "libtest",
        }
    }
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestOutcome {
    /// It passed.
    Passed,
    /// It failed, or its result is missing; the message may be empty.
    Failed(String),
    /// It was not run, for a reason that may be empty.
    Skipped(String),
    /// It was run, but is not expected to pass, for a reason that may be empty.
    Todo(String),
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestCase {
    /// The names of the suites that it belongs to, outermost first, joined by " > "; may be empty.
    pub suite: String,
    /// Its name within the suite.
    pub name: String,
    /// How it ended.
    pub outcome: TestOutcome,
    /// How long it took.
    pub time: Option<Duration>,
    /// What was printed while it ran; in KTAP, this includes messages of the kernel.
    pub output: String,
}

impl TestCase {
    fn new(suite: &str, name: &str, outcome: TestOutcome) -> Self {
        Self { suite: suite.to_owned(), name: name.to_owned(), outcome, time: None, output: String::new() }
    }
}

/// The name, behind those of the suites.
impl fmt::Display for TestCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.suite.is_empty() {
            write!(f, "{} > ", self.suite)?;
        }
        f.write_str(&self.name)
    }
}

/// The test results of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResults {
    /// Their format.
    pub format: Format,
    /// Where they were searched for, as the subject of a sentence.
    pub source: String,
    /// The number of tests that passed.
    pub passed: u64,
    /// The number of tests that failed, including those without a result.
    pub failed: u64,
    /// The number of tests that were skipped.
    pub skipped: u64,
    /// The number of tests that were not expected to pass.
    pub todo: u64,
    /// The tests; fewer than their number if there are too many to keep.
    pub cases: Vec<TestCase>,
    /// Why the results are incomplete, if they are.
    pub problem: Option<String>,
    bytes: usize, // of the cases' texts
}

impl TestResults {
    fn new(format: Format, source: String) -> Self {
        let cases = Vec::new();
        Self { format, source, passed: 0, failed: 0, skipped: 0, todo: 0, cases, problem: None, bytes: 0 }
    }

    /// The number of tests.
    pub fn total(&self) -> u64 {
        [self.passed, self.failed, self.skipped, self.todo].into_iter().fold(0, u64::saturating_add)
    }

    /// Why the results are a failure, in one sentence.
    pub fn failure(&self) -> Option<String> {
        let Self { format, source, failed, problem, .. } = self;
        let mut reasons = Vec::new();
        if *failed > 0 {
            let failed_cases = self.cases.iter().filter(|case| matches!(case.outcome, TestOutcome::Failed(_)));
            let mut names: Vec<_> = failed_cases.take(MAX_NAMED).map(ToString::to_string).collect();
            if *failed > names.len() as u64 {
                names.push("…".to_owned());
            }
            reasons.push(format!("{failed} of {} tests failed: {}", self.total(), names.join(", ")));
        }
        reasons.extend(problem.as_ref().map(|problem| format!("the test results are incomplete: {problem}")));
        if reasons.is_empty() && self.total() == 0 {
            reasons.push(format!("{source} has no test results (--results {})", format.name()));
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Counts `case`, and keeps it if there is room. Returns whether it was kept.
    fn add(&mut self, mut case: TestCase) -> bool {
        self.count(&case.outcome, 1);
        let TestCase { suite, name, outcome, output, .. } = &mut case;
        let mut texts = vec![suite, name];
        if let TestOutcome::Failed(text) | TestOutcome::Skipped(text) | TestOutcome::Todo(text) = outcome {
            texts.push(text);
        }
        let mut len = 0;
        for text in texts {
            cut(text, MAX_NAME);
            len += text.len();
        }
        // Output leaves room for that of failed tests, and this for names.
        let quarters = if matches!(outcome, TestOutcome::Failed(_)) { 3 } else { 2 };
        cut(output, (MAX_BYTES / 4 * quarters).saturating_sub(self.bytes + len));
        len += output.len();
        let kept = self.cases.len() < MAX_CASES && self.bytes + len <= MAX_BYTES;
        if kept {
            self.bytes += len;
            self.cases.push(case);
        }
        kept
    }

    /// Adds `count` tests that have no result; the first of them has the output.
    fn add_missing(
        &mut self,
        count: u64,
        names: impl Iterator<Item = String>,
        outcome: &TestOutcome,
        output: &mut String,
    ) {
        let before = self.total();
        for name in names.take(MAX_MISSING) {
            let output = std::mem::take(output);
            self.add(TestCase { output, ..TestCase::new("", &name, outcome.clone()) });
        }
        self.count(outcome, count.saturating_sub(self.total() - before));
    }

    /// Appends a line to the output of the last case, if there is room.
    fn extend_last(&mut self, line: &str) {
        if let Some(case) = self.cases.last_mut().filter(|_| self.bytes + line.len() < MAX_BYTES) {
            self.bytes += append_line(&mut case.output, line);
        }
    }

    fn count(&mut self, outcome: &TestOutcome, tests: u64) {
        let count = match outcome {
            TestOutcome::Passed => &mut self.passed,
            TestOutcome::Failed(_) => &mut self.failed,
            TestOutcome::Skipped(_) => &mut self.skipped,
            TestOutcome::Todo(_) => &mut self.todo,
        };
        *count = count.saturating_add(tests);
    }

    /// Puts the cases from index `first` on into `suite`.
    fn nest(&mut self, first: usize, suite: &str) {
        let mut suite = suite.to_owned();
        cut(&mut suite, MAX_NAME);
        for case in self.cases.iter_mut().skip(first) {
            let outer = if case.suite.is_empty() { suite.clone() } else { format!("{suite} > ") };
            if self.bytes + outer.len() > MAX_BYTES {
                break; // the case keeps the names that fit
            }
            self.bytes += outer.len();
            case.suite.insert_str(0, &outer);
        }
    }

    /// States why the results are incomplete. The first reason counts.
    fn set_problem(&mut self, why: impl Into<String>) {
        self.problem.get_or_insert_with(|| why.into());
    }

    /// Adds the results of another part of the same source.
    fn absorb(&mut self, other: Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.todo = self.todo.saturating_add(other.todo);
        let room = MAX_CASES - self.cases.len();
        self.cases.extend(other.cases.into_iter().take(room));
        self.problem = self.problem.take().or(other.problem);
    }
}

/// The largest index of a character in `text`, or its length, that is at most `max`. As `str::floor_char_boundary`,
/// which needs Rust 1.91.
pub(crate) fn floor_char_boundary(text: &str, max: usize) -> usize {
    (0..=max.min(text.len())).rfind(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Cuts `text` to at most `max` bytes.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(floor_char_boundary(text, max));
        text.shrink_to_fit(); // what was cut off may be large
    }
}

/// A name without what is too long.
fn short(name: &str) -> String {
    name[..floor_char_boundary(name, MAX_NAME)].to_owned()
}

/// Appends `text` to the output of a test, up to [`MAX_OUTPUT`]. Returns by how many bytes it grew.
fn append(output: &mut String, text: &str) -> usize {
    let before = output.len();
    if before <= MAX_OUTPUT {
        output.push_str(text);
    }
    if before <= MAX_OUTPUT && output.len() > MAX_OUTPUT {
        cut(output, MAX_OUTPUT);
        output.push_str("\n[the rest was not kept]\n");
    }
    output.len() - before
}

fn append_line(output: &mut String, line: &str) -> usize {
    append(output, line) + append(output, "\n")
}

/// A line that is a JSON object.
fn json_object(line: &str) -> Option<serde_json::Map<String, Value>> {
    let line = line.trim_start();
    line.starts_with('{').then(|| serde_json::from_str(line).ok()).flatten()
}

/// A duration, unless the number of seconds is out of range.
pub(crate) fn seconds(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number).ok()
}

#[cfg(test)]
mod tests;
