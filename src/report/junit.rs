//! The report as a JUnit test case, the XML format that CI services show.

use std::fmt::Write;

use super::Report;
use crate::vmm::ExitReason;

/// Returns the report as an XML file of one test suite with one test case.
pub fn junit(report: &Report) -> String {
    let Report { run, wall, outcome, .. } = report;
    let (reason, code, seconds) = (&outcome.reason, outcome.reason.code(), wall.as_secs_f64());
    let name = if run.command.is_empty() { run.kernel.to_string_lossy().into_owned() } else { run.command.join(" ") };
    // A guest that ends with a bad status, or a violated rule, is a failure. Any other bad end is an error.
    let failed = code != 0 && (reason.decided_by_guest() || matches!(reason, ExitReason::RuleViolated(_)));
    let (failures, errors) = (u8::from(failed), u8::from(code != 0 && !failed));
    let totals = format!(r#"tests="1" failures="{failures}" errors="{errors}" time="{seconds:.3}""#);
    let (name, class) = (escape(&name), format!("kickvm.{}", run.mode));
    let mut xml = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {totals}>\n");
    let _ = writeln!(xml, r#"  <testsuite name="kickvm" {totals}>"#); // writing to a string cannot fail
    let _ = writeln!(xml, r#"    <testcase name="{name}" classname="{class}" time="{seconds:.3}">"#);
    if code != 0 {
        let tag = if failed { "failure" } else { "error" };
        let (message, kind) = (escape(&reason.to_string()), reason.word());
        let faults = outcome.console.faults.iter().filter(|fault| !fault.allowed);
        let faults = faults.map(|fault| format!("\n\n{} ({}x)\n{}", fault.title, fault.count, fault.lines.join("\n")));
        let faults = escape(&faults.collect::<String>());
        let _ = writeln!(xml, r#"      <{tag} message="{message}" type="{kind}">exit code {code}{faults}</{tag}>"#);
    }
    let console = escape(&outcome.console.lines.join("\n"));
    let _ = writeln!(xml, "      <system-err>{console}</system-err>");
    xml + "    </testcase>\n  </testsuite>\n</testsuites>\n"
}

/// Escapes text for XML 1.0, which cannot represent most control characters.
pub(super) fn escape(text: &str) -> String {
    let invalid = |c: char| c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{fffe}' | '\u{ffff}');
    let text = text.replace(invalid, "\u{fffd}");
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
