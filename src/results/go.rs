//! The events of `go test -json` and of test2json: one JSON object a line (`go doc test2json`, `go help buildjson`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::parser::Reader;
use super::{MAX_BYTES, MAX_RUNNING, NOT_ENDED, TestCase, TestOutcome, TestResults, append, seconds, short};

/// Reads the events.
#[derive(Debug, Default)]
pub(super) struct Go {
    /// What runs: by package and name, where "" is the package itself.
    running: BTreeMap<(String, String), Running>,
    /// The output of builds that failed.
    builds: BTreeMap<String, String>,
    bytes: usize, // of all output
}

/// A test or a package.
#[derive(Debug, Default)]
struct Running {
    output: String,
    failed: bool, // a test of this package
}

impl Go {
    /// The entry of a test or package that runs.
    fn entry(&mut self, package: &str, test: &str, results: &mut TestResults) -> Option<&mut Running> {
        if self.running.len() >= MAX_RUNNING {
            results.set_problem(format!("more than {MAX_RUNNING} tests run at once"));
            return None;
        }
        Some(self.running.entry((package.to_owned(), test.to_owned())).or_default())
    }

    fn take(&mut self, package: &str, test: &str) -> Option<Running> {
        let running = self.running.remove(&(package.to_owned(), test.to_owned()))?;
        self.bytes -= running.output.len();
        Some(running)
    }

    fn take_output(&mut self, package: &str, test: &str, text: &str) {
        let mut keys = [test, ""].map(|test| (package.to_owned(), test.to_owned())).into_iter();
        // A benchmark does not announce that it runs.
        let key = keys.find(|key| self.running.contains_key(key));
        let Some(running) = key.and_then(|key| self.running.get_mut(&key)) else { return };
        if self.bytes + text.len() <= MAX_BYTES {
            self.bytes += append(&mut running.output, text);
        }
    }

    /// Ends the tests of a package that have not ended.
    fn end_tests(&mut self, package: &str, results: &mut TestResults) -> bool {
        let first = (package.to_owned(), String::new());
        let of_package = self.running.range(first..).map(|(key, _)| key).take_while(|(name, _)| name == package);
        let tests: Vec<_> = of_package.filter(|(_, test)| !test.is_empty()).map(|(_, test)| test.clone()).collect();
        for test in &tests {
            let output = self.take(package, test).unwrap_or_default().output;
            let outcome = TestOutcome::Failed(NOT_ENDED.to_owned());
            results.add(TestCase { output, ..TestCase::new(package, test, outcome) });
        }
        !tests.is_empty()
    }

    /// A package has ended.
    fn end_package(&mut self, package: &str, failed: bool, build: &str, results: &mut TestResults) {
        let has_failed = self.end_tests(package, results);
        let Running { mut output, failed: test_failed } = self.take(package, "").unwrap_or_default();
        if failed && !has_failed && !test_failed {
            append(&mut output, self.builds.get(build).map_or("", |output| output));
            let outcome = TestOutcome::Failed("the package failed".to_owned());
            results.add(TestCase { output, ..TestCase::new(package, "(package)", outcome) });
        }
    }
}

impl Reader for Go {
    fn read_line(&mut self, line: &str, results: &mut TestResults) -> bool {
        let Some(event) = super::json_object(line) else { return false };
        let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
        let (action, output) = (text("Action"), text("Output"));
        let (package, test) = (&*short(text("Package")), &*short(text("Test")));
        let outcome = match action {
            "pass" => TestOutcome::Passed,
            "fail" => TestOutcome::Failed(String::new()),
            "skip" => TestOutcome::Skipped(String::new()),
            "build-output" => {
                if self.builds.len() < MAX_RUNNING && self.bytes + output.len() <= MAX_BYTES {
                    self.bytes += append(self.builds.entry(short(text("ImportPath"))).or_default(), output);
                }
                return true;
            }
            "" | "build-fail" => return false,
            _ => {
                self.entry(package, "", results);
                match action {
                    "run" => drop(self.entry(package, test, results)),
                    _ => self.take_output(package, test, output),
                }
                return true;
            }
        };
        let failed = matches!(outcome, TestOutcome::Failed(_));
        if test.is_empty() {
            self.end_package(package, failed, text("FailedBuild"), results);
        } else {
            if let Some(package) = self.entry(package, "", results) {
                package.failed |= failed;
            }
            let output = self.take(package, test).unwrap_or_default().output;
            let time = event.get("Elapsed").and_then(Value::as_f64).and_then(seconds);
            results.add(TestCase { time, output, ..TestCase::new(package, test, outcome) });
        }
        true
    }

    fn finish(&mut self, results: &mut TestResults) -> bool {
        let packages: Vec<_> =
            self.running.keys().filter(|(_, test)| test.is_empty()).map(|(name, _)| name.clone()).collect();
        for package in packages {
            self.end_tests(&package, results);
            results.set_problem(format!("package '{package}' did not end"));
        }
        false
    }
}
