//! The report as JUnit test cases, the XML format that CI services show.
//!
//! Elements and attributes are those of the schema `junit-10.xsd` of Jenkins's xUnit plugin.

use std::fmt::Write;

use super::Report;
use crate::results::{TestOutcome, TestResults};
use crate::vmm::ExitReason;

/// Returns the report as an XML file: a test suite with the run as its test case, and another one with the tests of the
/// guest, if their results were asked for.
pub fn junit(report: &Report) -> String {
    let suites: Vec<_> =
        [run_suite(report)].into_iter().chain(report.outcome.tests.as_ref().map(tests_suite)).collect();
    let sum = |count: fn(&Suite) -> usize| suites.iter().map(count).sum::<usize>();
    let (tests, failures, errors) = (sum(|it| it.tests), sum(|it| it.failures), sum(|it| it.errors));
    let time = report.wall.as_secs_f64();
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    let totals = format!(r#"tests="{tests}" failures="{failures}" errors="{errors}" time="{time:.3}""#);
    let _ = writeln!(xml, "<testsuites {totals}>"); // writing to a string cannot fail
    for Suite { name, tests, failures, errors, skipped, time, cases } in suites {
        let counts = format!(r#"tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}""#);
        let _ = writeln!(xml, "  <testsuite name=\"{name}\" {counts} time=\"{time:.3}\">\n{cases}  </testsuite>");
    }
    xml + "</testsuites>\n"
}

/// A suite that is being written.
#[derive(Default)]
struct Suite {
    name: &'static str,
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    time: f64,
    cases: String,
}

impl Suite {
    /// Adds a case. `result` is the element of one that did not pass: its tag, attributes and text.
    fn add(
        &mut self,
        name: &str,
        class: &str,
        time: f64,
        result: Option<(&str, String, String)>,
        output: (&str, &str),
    ) {
        self.tests += 1;
        self.time += time;
        let (name, class, xml) = (escape(name), escape(class), &mut self.cases);
        let _ = writeln!(xml, r#"    <testcase name="{name}" classname="{class}" time="{time:.3}">"#);
        if let Some((tag, attributes, text)) = result {
            *match tag {
                "failure" => &mut self.failures,
                "error" => &mut self.errors,
                _ => &mut self.skipped,
            } += 1;
            let _ = writeln!(xml, "      <{tag} {attributes}>{text}</{tag}>");
        }
        let (stream, text) = output;
        if !text.is_empty() {
            let _ = writeln!(xml, "      <{stream}>{}</{stream}>", escape(text));
        }
        *xml += "    </testcase>\n";
    }
}

fn run_suite(report: &Report) -> Suite {
    let Report { run, wall, outcome, .. } = report;
    let (reason, code) = (&outcome.reason, outcome.reason.code());
    // A guest that ends with a bad status, or a violated rule, is a failure. Any other bad end is an error.
    let is_failure = reason.decided_by_guest() || matches!(reason, ExitReason::RuleViolated(_));
    let tag = if is_failure { "failure" } else { "error" };
    let attributes = || format!(r#"message="{}" type="{}""#, escape(&reason.to_string()), reason.word());
    let faults = outcome.console.faults.iter().filter(|fault| !fault.allowed);
    let faults = faults.map(|fault| format!("\n\n{} ({}x)\n{}", fault.title, fault.count, fault.lines.join("\n")));
    let result =
        (code != 0).then(|| (tag, attributes(), format!("exit code {code}{}", escape(&faults.collect::<String>()))));
    let mut suite = Suite { name: "kickvm", ..Suite::default() };
    let console = outcome.console.lines.join("\n");
    suite.add(&run.name(), &format!("kickvm.{}", run.mode), wall.as_secs_f64(), result, ("system-err", &console));
    suite
}

fn tests_suite(results: &TestResults) -> Suite {
    let mut suite = Suite { name: results.format.name(), ..Suite::default() };
    for case in &results.cases {
        let message = |why: &str| format!(r#"message="{}""#, escape(why));
        let result = match &case.outcome {
            TestOutcome::Passed => None,
            TestOutcome::Failed(why) => Some(("failure", message(why) + r#" type="failed""#, String::new())),
            TestOutcome::Skipped(why) => Some(("skipped", message(why), String::new())),
            TestOutcome::Todo(why) => Some(("skipped", message(&format!("TODO {why}")), String::new())),
        };
        let class = if case.suite.is_empty() { suite.name } else { &case.suite };
        let time = case.time.unwrap_or_default().as_secs_f64();
        suite.add(&case.name, class, time, result, ("system-out", &case.output));
    }
    suite
}

/// Escapes text for XML 1.0, which cannot represent most control characters.
pub(super) fn escape(text: &str) -> String {
    let invalid = |c: char| c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{fffe}' | '\u{ffff}');
    let text = text.replace(invalid, "\u{fffd}");
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
