//! The events of Rust's libtest with `--format json`, and of cargo-nextest with `--message-format libtest-json`: one
//! JSON object a line (rust-lang/rust, library/test/src/formatters/json.rs).

use std::collections::BTreeSet;

use serde_json::Value;

use super::parser::Reader;
use super::{MAX_RUNNING, NO_RESULT, NOT_ENDED, TestCase, TestOutcome, TestResults, append, seconds, short};

/// Reads the events.
#[derive(Debug, Default)]
pub(super) struct Libtest {
    running: BTreeSet<String>,
    suites: u64, // that run: each is a test binary
    series: Series,
    lost: u64, // results in earlier series
    /// Whether cargo-nextest has ignored tests without an event.
    ignored: bool,
}

/// The suites and tests since no suite ran.
#[derive(Debug, Default)]
struct Series {
    promised: u64, // tests, by the starts of the suites
    // By the ends of the suites.
    counted_run: u64,
    counted_failed: u64,
    counted_ignored: u64,
    // By the events of tests.
    run: u64,
    failed: u64,
    ignored: u64,
    by_nextest: bool,
}

/// cargo-nextest's name of a binary, and the test's name; without a binary, the whole name.
fn split(name: &str) -> (&str, &str) {
    name.split_once('$').unwrap_or(("", name))
}

impl Libtest {
    /// Compares the results with what the suites state.
    fn end_series(&mut self, results: &mut TestResults) {
        let series = std::mem::take(&mut self.series);
        let Series { promised, counted_run, counted_failed, counted_ignored, run, failed, ignored, by_nextest } =
            series;
        // cargo-nextest splits the suite of a binary with ignored tests, and counts them again in each part.
        let all = counted_run.saturating_add(counted_ignored).max(promised).saturating_sub(run + ignored);
        self.lost = self.lost.saturating_add(if by_nextest { counted_run.saturating_sub(run) } else { all });
        self.ignored |= by_nextest && counted_ignored > ignored;
        if counted_failed > failed {
            results.set_problem(format!("test binaries report {counted_failed} failed tests"));
        }
    }
}

impl Reader for Libtest {
    fn read_line(&mut self, line: &str, results: &mut TestResults) -> bool {
        let Some(event) = super::json_object(line) else { return false };
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let number = |name: &str| event.get(name).and_then(Value::as_u64).unwrap_or(0);
        let series = &mut self.series;
        let name = &*short(text("name").unwrap_or_default());
        let outcome = match (text("type"), text("event")) {
            (Some("suite"), Some("started")) => {
                self.suites = self.suites.saturating_add(1);
                series.promised = series.promised.saturating_add(number("test_count"));
                return true;
            }
            (Some("suite"), Some("ok" | "failed")) => {
                let run = number("passed").saturating_add(number("failed")).saturating_add(number("measured"));
                series.counted_run = series.counted_run.saturating_add(run);
                series.counted_failed = series.counted_failed.saturating_add(number("failed"));
                series.counted_ignored = series.counted_ignored.saturating_add(number("ignored"));
                self.suites = self.suites.saturating_sub(1);
                if self.suites == 0 {
                    self.end_series(results);
                }
                return true;
            }
            (Some("test"), Some("started")) => {
                if self.running.len() >= MAX_RUNNING {
                    results.set_problem(format!("more than {MAX_RUNNING} tests run at once"));
                } else {
                    self.running.insert(name.to_owned());
                }
                return true;
            }
            (Some("test"), Some("ok")) | (Some("bench"), _) => TestOutcome::Passed,
            (Some("test"), Some("failed")) => {
                TestOutcome::Failed(text("message").or(text("reason")).unwrap_or_default().to_owned())
            }
            (Some("test"), Some("ignored")) => TestOutcome::Skipped(text("message").unwrap_or_default().to_owned()),
            _ => return false, // "timeout" states that a test takes long
        };
        if !self.running.remove(name)
            && let Some((name, _)) = name.rsplit_once('#')
        {
            self.running.remove(name); // cargo-nextest appends the number of attempts
        }
        *if matches!(outcome, TestOutcome::Skipped(_)) { &mut series.ignored } else { &mut series.run } += 1;
        series.failed += u64::from(matches!(outcome, TestOutcome::Failed(_)));
        series.by_nextest |= name.contains('$');
        let (suite, name) = split(name);
        let mut case = TestCase::new(suite, name, outcome);
        append(&mut case.output, text("stdout").unwrap_or_default());
        case.time = event.get("exec_time").and_then(Value::as_f64).and_then(seconds);
        results.add(case);
        true
    }

    fn finish(&mut self, results: &mut TestResults) -> bool {
        self.end_series(results);
        let running = std::mem::take(&mut self.running);
        let missing = self.lost.saturating_sub(running.len() as u64);
        for name in running {
            let is_ignored = self.ignored && self.lost == 0 && name.contains('$');
            let failed = || TestOutcome::Failed(NOT_ENDED.to_owned());
            let outcome = if is_ignored { TestOutcome::Skipped(String::new()) } else { failed() };
            let (suite, name) = split(&name);
            results.add(TestCase::new(suite, name, outcome));
        }
        let (total, outcome) = (results.total(), TestOutcome::Failed(NO_RESULT.to_owned()));
        let all = total.saturating_add(missing);
        let names = (total + 1..=all).map(|number| format!("test {number} of {all}"));
        results.add_missing(missing, names, &outcome, &mut String::new());
        if self.suites > 0 {
            results.set_problem("a test binary did not end");
        }
        false
    }
}
