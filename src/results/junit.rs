//! The XML files that JUnit, pytest and many others write. There is no standard; the elements are those that
//! Jenkins reads.

use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader as XmlReader, XmlVersion};

use super::parser::Reader;
use super::{TestCase, TestOutcome, TestResults, append, seconds, short};

/// Bytes of a file that are read.
const MAX_FILE: usize = 16 << 20;
/// Elements that may be open at once.
const MAX_DEPTH: usize = 64;

/// Keeps the text until it is complete.
#[derive(Debug, Default)]
pub(super) struct Junit(Vec<u8>);

impl Reader for Junit {
    fn take_bytes(&mut self, bytes: &[u8]) -> bool {
        let room = (MAX_FILE + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        true
    }

    fn read_line(&mut self, line: &str, _: &mut TestResults) -> bool {
        self.take_bytes(line.as_bytes()) && self.take_bytes(b"\n")
    }

    fn finish(&mut self, results: &mut TestResults) -> bool {
        let bytes = std::mem::take(&mut self.0);
        let text = String::from_utf8_lossy(&bytes);
        // Other text may come before the file.
        let Some(start) = ["<?xml", "<testsuite"].iter().filter_map(|tag| text.find(tag)).min() else { return false };
        if bytes.len() > MAX_FILE {
            results.set_problem(format!("the XML has more than {} MiB", MAX_FILE >> 20));
        } else if let Err(error) = read_xml(&text[start..], results) {
            results.set_problem(format!("the XML is not valid: {error}"));
        }
        true
    }
}

/// A suite that is open.
struct Suite {
    name: String,
    claimed: bool, // failed tests
    failed_before: u64,
}

/// The value of an attribute.
fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = tag.try_get_attribute(name).ok()??;
    let value = attribute.normalized_value(XmlVersion::Implicit1_0);
    Some(value.map_or_else(|_| attribute.value.to_string(), |value| value.into_owned()))
}

fn read_xml(text: &str, results: &mut TestResults) -> Result<(), String> {
    let mut xml = XmlReader::from_str(text);
    xml.config_mut().expand_empty_elements = true;
    let mut depth = 0;
    let mut suites: Vec<Suite> = Vec::new();
    let mut case: Option<TestCase> = None;
    let mut is_output = false;
    loop {
        let text = match xml.read_event().map_err(|error| error.to_string())? {
            Event::Start(tag) => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("more than {MAX_DEPTH} elements are nested"));
                }
                let name = tag.name();
                is_output = matches!(name.as_ref(), "failure" | "error" | "skipped" | "system-out" | "system-err");
                match (name.as_ref(), &mut case) {
                    ("testsuite", _) => suites.push(open_suite(&tag, results)),
                    ("testcase", _) => case = Some(open_case(&tag, &suites)),
                    ("failure" | "error" | "skipped", Some(case)) => {
                        let message = attribute(&tag, "message").unwrap_or_default();
                        case.outcome = match (name.as_ref(), &case.outcome, attribute(&tag, "type").as_deref()) {
                            (_, TestOutcome::Failed(_), _) | ("skipped" | "failure", TestOutcome::Todo(_), _) => {
                                continue;
                            }
                            ("skipped", _, Some("todo" | "pytest.xfail")) => TestOutcome::Todo(message),
                            ("skipped", ..) => TestOutcome::Skipped(message),
                            _ => TestOutcome::Failed(message),
                        };
                    }
                    _ => {}
                }
                continue;
            }
            Event::End(tag) => {
                depth -= 1; // the reader compares the names
                is_output = false;
                match tag.name().as_ref() {
                    "testcase" => drop(case.take().map(|case| results.add(case))),
                    "testsuite" => drop(suites.pop().map(|suite| close_suite(&suite, results))),
                    _ => {}
                }
                continue;
            }
            Event::Text(text) => text.xml10_content(),
            Event::CData(text) => text.xml10_content(),
            Event::GeneralRef(name) => match name.resolve_char_ref() {
                Ok(Some(c)) => c.to_string().into(),
                _ => resolve_predefined_entity(&name).unwrap_or_default().into(), // a file can define no others
            },
            Event::Eof if depth > 0 => return Err("it ends within an element".to_owned()),
            Event::Eof => return Ok(()),
            _ => continue,
        };
        if let Some(case) = case.as_mut().filter(|_| is_output) {
            append(&mut case.output, &text);
        }
    }
}

fn open_suite(tag: &BytesStart<'_>, results: &TestResults) -> Suite {
    let claims = |name: &str| attribute(tag, name).is_some_and(|count| count.parse() != Ok(0));
    Suite {
        name: short(&attribute(tag, "name").unwrap_or_default()),
        claimed: claims("failures") || claims("errors"),
        failed_before: results.failed,
    }
}

/// A suite whose set-up failed may have no test that failed.
fn close_suite(suite: &Suite, results: &mut TestResults) {
    if suite.claimed && results.failed == suite.failed_before {
        let outcome = TestOutcome::Failed("the suite has failures without a test".to_owned());
        results.add(TestCase::new("", &suite.name, outcome));
    }
}

fn open_case(tag: &BytesStart<'_>, suites: &[Suite]) -> TestCase {
    let names = || suites.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>().join(" > "); // short names
    let suite = attribute(tag, "classname").filter(|name| !name.is_empty()).unwrap_or_else(names);
    // GoogleTest and CTest have an attribute for tests that were not run.
    let outcome = match attribute(tag, "status").as_deref() {
        Some("notrun" | "disabled") => TestOutcome::Skipped(String::new()),
        _ => TestOutcome::Passed,
    };
    let time = attribute(tag, "time").and_then(|time| time.replace(',', "").parse().ok()).and_then(seconds);
    TestCase { time, ..TestCase::new(&suite, &attribute(tag, "name").unwrap_or_default(), outcome) }
}
