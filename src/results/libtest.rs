//! The events of Rust's libtest with `--format json`, and of cargo-nextest with `--message-format libtest-json`: one
//! JSON object a line (rust-lang/rust, library/test/src/formatters/json.rs).

use std::collections::BTreeSet;

use serde_json::Value;

use super::parser::Reader;
use super::{MAX_RUNNING, NOT_ENDED, TestCase, TestOutcome, TestResults, append, seconds, short};

/// Reads the events.
#[derive(Debug, Default)]
pub(super) struct Libtest {
    running: BTreeSet<String>,
    suites: u64, // that run: each is a test binary
    failed: u64, // tests, as the suites have counted them
}

/// cargo-nextest's name of a binary, and the test's name; without a binary, the whole name.
fn split(name: &str) -> (&str, &str) {
    name.split_once('$').unwrap_or(("", name))
}

impl Reader for Libtest {
    fn read_line(&mut self, line: &str, results: &mut TestResults) -> bool {
        let Some(event) = super::json_object(line) else { return false };
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let name = &*short(text("name").unwrap_or_default());
        let outcome = match (text("type"), text("event")) {
            (Some("suite"), Some("started")) => {
                self.suites = self.suites.saturating_add(1);
                return true;
            }
            (Some("suite"), Some("ok" | "failed")) => {
                self.suites = self.suites.saturating_sub(1);
                let failed = event.get("failed").and_then(Value::as_u64).unwrap_or(0);
                self.failed = self.failed.saturating_add(failed);
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
        let (suite, name) = split(name);
        let mut case = TestCase::new(suite, name, outcome);
        append(&mut case.output, text("stdout").unwrap_or_default());
        case.time = event.get("exec_time").and_then(Value::as_f64).and_then(seconds);
        results.add(case);
        true
    }

    fn finish(&mut self, results: &mut TestResults) -> bool {
        for name in std::mem::take(&mut self.running) {
            let (suite, name) = split(&name);
            results.add(TestCase::new(suite, name, TestOutcome::Failed(NOT_ENDED.to_owned())));
        }
        if self.suites > 0 {
            results.set_problem("a test binary did not end");
        }
        if self.failed > results.failed {
            results.set_problem(format!("the test binaries report {} failed tests", self.failed));
        }
        false
    }
}
