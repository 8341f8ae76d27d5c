//! The lines of KTAP and TAP.

use std::time::Duration;

use super::{TestCase, TestOutcome, seconds};

/// A line without its indentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// `KTAP version 1` or `TAP version 13`.
    Version,
    /// `1..4`, or `1..0 # SKIP reason` with its reason.
    Plan(u64, Option<&'a str>),
    /// `# Subtest: name`.
    Subtest(&'a str),
    /// `ok 1 name` or `not ok 1 name # directive`.
    Result(TestLine<'a>),
    /// `Bail out!`, and perhaps a reason.
    BailOut(&'a str),
    /// Anything else.
    Text(&'a str),
}

/// The parts of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TestLine<'a> {
    ok: bool,
    /// The number of the test.
    pub number: Option<u64>,
    text: &'a str,
}

/// Parses a line, and returns its indentation in columns. kselftest indents by `# `. A failure needs no number,
/// and with `tap` no result does.
pub(super) fn parse(line: &str, tap: bool) -> (usize, Line<'_>) {
    let text = line.trim_start_matches([' ', '\t', '#']);
    let indent = &line[..line.len() - text.len()];
    let width = |indent: &str| indent.bytes().map(|byte| if byte == b'\t' { 4 } else { 1 }).sum();
    let (hash, text) = (indent.rfind('#'), text.trim_end());
    if let (Some(hash), Some(name)) = (hash, text.strip_prefix("Subtest: ")) {
        return (width(&indent[..hash]), Line::Subtest(name));
    }
    let version = text.strip_prefix('K').unwrap_or(text).strip_prefix("TAP version ");
    let line = if version.is_some_and(|version| number(version).is_some_and(|(_, rest)| rest.is_empty())) {
        Line::Version
    } else if let Some(why) = text.strip_prefix("Bail out!") {
        Line::BailOut(why.trim_start())
    } else {
        let plan = plan(text).map(|(count, why)| Line::Plan(count, why));
        let number_is_optional = hash.is_none() && (tap || text.starts_with("not"));
        let result = || result(text, number_is_optional).map(Line::Result);
        plan.or_else(result).unwrap_or(Line::Text(text))
    };
    (width(indent), line)
}

/// The number at the start of a text, and the rest, which begins with a blank if it is not empty.
fn number(text: &str) -> Option<(u64, &str)> {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    digits.parse().ok().filter(|_| rest.is_empty() || rest.starts_with([' ', '\t'])).map(|number| (number, rest))
}

fn plan(text: &str) -> Option<(u64, Option<&str>)> {
    let (count, rest) = number(text.strip_prefix("1..")?)?;
    match directive(rest) {
        (_, Some("SKIP"), why) => Some((count, Some(why))),
        _ => Some((count, None)),
    }
}

fn result(text: &str, number_is_optional: bool) -> Option<TestLine<'_>> {
    let failed = text.strip_prefix("not ");
    let text = failed.unwrap_or(text).strip_prefix("ok").filter(|rest| rest.is_empty() || rest.starts_with(' '))?;
    match number(text.trim_start()) {
        Some((number, text)) => Some(TestLine { ok: failed.is_none(), number: Some(number), text }),
        None => number_is_optional.then_some(TestLine { ok: failed.is_none(), number: None, text }),
    }
}

/// Splits a text into the description, the directive and what follows. A `#` is not that of a directive if another
/// word follows it.
fn directive(text: &str) -> (&str, Option<&'static str>, &str) {
    const DIRECTIVES: [&str; 5] = ["SKIP", "TODO", "XFAIL", "TIMEOUT", "ERROR"];
    for (at, _) in text.match_indices('#').filter(|(at, _)| text[..*at].ends_with([' ', '\t'])) {
        let note = text[at + 1..].trim_start();
        let is = |word: &&&str| note.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
        // Of these words, only SKIP may continue: "SKIPPED".
        let ends = |word: &str| word == "SKIP" || !note[word.len()..].starts_with(|c: char| c.is_alphanumeric());
        if let Some(word) = DIRECTIVES.iter().find(|word| is(word) && ends(word)) {
            let rest = note[word.len()..].trim_start_matches(|c: char| c.is_ascii_alphabetic()); // "SKIPPED"
            return (text[..at].trim(), Some(word), rest.trim_start_matches([':', ' ']));
        }
    }
    let (description, note) = text.split_once(" # ").unwrap_or((text, ""));
    (description.trim(), None, note.trim())
}

impl TestLine<'_> {
    /// The test. It has no name if the line has neither a name nor a number.
    pub fn case(&self) -> TestCase {
        let (description, directive, note) = directive(self.text);
        let description = description.strip_prefix('-').unwrap_or(description).trim_start();
        let outcome = match directive {
            Some("SKIP") => TestOutcome::Skipped(note.to_owned()),
            Some("TODO" | "XFAIL") => TestOutcome::Todo(note.to_owned()),
            Some(word) => TestOutcome::Failed(format!("{word} {note}").trim_end().to_owned()),
            None if self.ok => TestOutcome::Passed,
            None => TestOutcome::Failed(note.to_owned()),
        };
        // kselftest writes the name behind the directive.
        let name = [description, note].into_iter().find(|name| !name.is_empty());
        let number = || self.number.map_or(String::new(), |number| format!("test {number}"));
        let name = name.map_or_else(number, |name| name.replace("\\#", "#"));
        TestCase { time: note.strip_prefix("time=").and_then(duration), ..TestCase::new("", &name, outcome) }
    }
}

/// The duration in a text such as `12.5ms`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let factor = if unit.starts_with("ms") { 1e-3 } else { 1.0 };
    number.parse().ok().and_then(|number: f64| seconds(number * factor))
}

/// The duration in a line of a YAML block.
pub(super) fn yaml_duration(text: &str) -> Option<Duration> {
    text.strip_prefix("duration_ms: ")?.parse().ok().and_then(|number: f64| seconds(number / 1e3))
}

/// The name of the test that begins with this line: in kselftest's runner, or in its harness for C.
pub(super) fn begun_test(text: &str) -> Option<&str> {
    let in_harness = text.strip_prefix("RUN ").and_then(|rest| rest.strip_suffix("...")).map(str::trim);
    Some(text).filter(|text| text.starts_with("selftests: ")).or(in_harness)
}

/// Splits a line of a kselftest that ended its output without a line end: the output, and the result that
/// the runner wrote behind it.
pub(super) fn split_result(line: &str) -> Option<(&str, &str)> {
    let before = line.get(..line.rfind(" selftests: ")?).filter(|_| line.starts_with('#'))?;
    let before = before.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix("ok ")?;
    Some(line.split_at(before.strip_suffix("not ").unwrap_or(before).len()))
}
