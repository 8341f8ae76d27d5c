//! The report as a JUnit test case, the XML format that CI services show.

use std::fmt::Write;

use super::Report;
use crate::vmm::ExitReason;

/// Returns the report as an XML file of one test suite with one test case.
pub fn junit(report: &Report) -> String {
    let run = &report.run;
    let name = if run.command.is_empty() { run.kernel.to_string_lossy().into_owned() } else { run.command.join(" ") };
    let seconds = report.wall.as_secs_f64();
    let code = report.outcome.reason.code();
    // A guest that ends with a bad status, or a violated rule, is a failure. Any other bad end is an error.
    let failed =
        code != 0 && (report.decided_by_guest() || matches!(report.outcome.reason, ExitReason::RuleViolated(_)));
    let error = code != 0 && !failed;
    let (failures, errors) = (u8::from(failed), u8::from(error));
    let totals = format!(r#"tests="1" failures="{failures}" errors="{errors}" time="{seconds:.3}""#);
    let (name, class) = (escape(&name), format!("kickvm.{}", run.mode));
    let mut xml = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {totals}>\n");
    let _ = writeln!(xml, r#"  <testsuite name="kickvm" {totals}>"#); // writing to a string cannot fail
    let _ = writeln!(xml, r#"    <testcase name="{name}" classname="{class}" time="{seconds:.3}">"#);
    if code != 0 {
        let tag = if failed { "failure" } else { "error" };
        let (reason, kind) = (escape(&report.outcome.reason.to_string()), report.outcome_word());
        let _ = writeln!(xml, r#"      <{tag} message="{reason}" type="{kind}">exit code {code}</{tag}>"#);
    }
    let console = escape(&report.outcome.console.lines.join("\n"));
    let _ = writeln!(xml, "      <system-err>{console}</system-err>");
    xml + "    </testcase>\n  </testsuite>\n</testsuites>\n"
}

/// Escapes text for XML 1.0, which cannot represent most control characters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
