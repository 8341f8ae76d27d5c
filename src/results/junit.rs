//! The XML files that JUnit, pytest and many others write. There is no standard; the elements are those that
//! Jenkins reads.

use quick_xml::Reader as XmlReader;
use quick_xml::events::{BytesStart, Event};

use super::parser::Reader;
use super::xml::{HAS_DTD, MAX_DEPTH, attributes, resolve};
use super::{TestCase, TestOutcome, TestResults, append, seconds, short};

/// Bytes of a file that are read.
const MAX_FILE: usize = 16 << 20;

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
        let mut rest = &*text;
        while let Some(start) = document_start(rest) {
            if bytes.len() > MAX_FILE {
                results.set_problem(format!("the XML has more than {} MiB", MAX_FILE >> 20));
                break;
            }
            match read_xml(&rest[start..], results) {
                Ok(len) => rest = &rest[start + len..],
                Err(error) => {
                    results.set_problem(format!("the XML is not valid: {error}"));
                    break;
                }
            }
        }
        rest.len() < text.len()
    }
}

/// Where a document begins. Other text may come before it. What may be the beginning of one at the end of `text` is a
/// document that was cut.
fn document_start(text: &str) -> Option<usize> {
    const PROLOGS: [&str; 2] = ["<?xml", "<!DOCTYPE testsuite"];
    let is_document = |text: &str| {
        let name = text[1..].split(|c: char| c.is_whitespace() || matches!(c, '<' | '/' | '>')).next().unwrap_or("");
        let local = name.rsplit_once(':').map_or(name, |(_, local)| local);
        let is_cut = name.len() + 1 == text.len() && "testsuites".starts_with(local);
        is_cut
            || matches!(local, "testsuites" | "testsuite")
            || PROLOGS.iter().any(|prolog| text.starts_with(prolog) || prolog.starts_with(text))
    };
    text.match_indices('<').map(|(at, _)| at).find(|at| is_document(&text[*at..]))
}

/// A suite that is open.
struct Suite {
    name: String,
    claimed: bool, // failed tests
    failed_before: u64,
}

/// The attributes of an element.
struct Attributes(Vec<(String, String)>);

impl Attributes {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the document at the start of `text`, and returns its length.
fn read_xml(text: &str, results: &mut TestResults) -> Result<usize, String> {
    let mut xml = XmlReader::from_str(text);
    xml.config_mut().expand_empty_elements = true;
    let mut depth = 0;
    let mut suites: Vec<Suite> = Vec::new();
    let mut cases: Vec<TestCase> = Vec::new();
    let mut is_output = false;
    loop {
        let is_first = xml.buffer_position() == 0;
        let text = match xml.read_event().map_err(|error| error.to_string())? {
            Event::Start(tag) => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("more than {MAX_DEPTH} elements are nested"));
                }
                let name = tag.local_name();
                let attributes = || attributes(&tag).map(Attributes);
                is_output = matches!(name.as_ref(), "failure" | "error" | "skipped" | "system-out" | "system-err");
                match name.as_ref() {
                    "testsuites" | "testsuite" => suites.push(open_suite(&tag, &attributes()?, results)),
                    "testcase" => cases.push(open_case(&attributes()?, &suites)),
                    "failure" | "error" | "skipped" => {
                        let attributes = attributes()?;
                        let message = attributes.get("message").unwrap_or_default().to_owned();
                        let Some(case) = cases.last_mut() else {
                            if name.as_ref() != "skipped" {
                                add_suite(suites.last(), message, results);
                            }
                            continue;
                        };
                        case.outcome = match (name.as_ref(), &case.outcome, attributes.get("type")) {
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
                match tag.local_name().as_ref() {
                    "testcase" => drop(cases.pop().map(|case| results.add(case))),
                    "testsuites" | "testsuite" => drop(suites.pop().map(|suite| close_suite(&suite, results))),
                    _ => {}
                }
                if depth == 0 {
                    return usize::try_from(xml.buffer_position()).map_err(|error| error.to_string());
                }
                continue;
            }
            Event::Text(text) => text.xml10_content(),
            Event::CData(text) => text.xml10_content(),
            Event::GeneralRef(reference) => resolve(&reference)?.into(),
            Event::DocType(_) => return Err(HAS_DTD.to_owned()),
            Event::Decl(_) if !is_first => return Err("another document begins in it".to_owned()),
            Event::Eof if depth > 0 => return Err("it ends within an element".to_owned()),
            Event::Eof => return Err("it has no element".to_owned()),
            _ => continue,
        };
        if let Some(case) = cases.last_mut().filter(|_| is_output) {
            append(&mut case.output, &text);
        }
    }
}

fn open_suite(tag: &BytesStart<'_>, attributes: &Attributes, results: &TestResults) -> Suite {
    let claims = |name: &str| attributes.get(name).is_some_and(|count| count.parse() != Ok(0));
    let is_root = tag.local_name().as_ref() == "testsuites";
    Suite {
        name: short(attributes.get("name").filter(|_| !is_root).unwrap_or_default()),
        claimed: claims("failures") || claims("errors"),
        failed_before: results.failed,
    }
}

/// A suite whose set-up failed may have no test that failed.
fn close_suite(suite: &Suite, results: &mut TestResults) {
    if suite.claimed && results.failed == suite.failed_before {
        add_suite(Some(suite), "the suite has failures without a test".to_owned(), results);
    }
}

/// Adds a suite that failed.
fn add_suite(suite: Option<&Suite>, why: String, results: &mut TestResults) {
    let name = suite.map(|suite| &*suite.name).filter(|name| !name.is_empty()).unwrap_or("all suites");
    results.add(TestCase::new("", name, TestOutcome::Failed(why)));
}

fn open_case(attributes: &Attributes, suites: &[Suite]) -> TestCase {
    let names = suites.iter().map(|suite| &*suite.name).filter(|name| !name.is_empty()); // short names
    let suite = attributes.get("classname").filter(|name| !name.is_empty()).map(str::to_owned);
    let suite = suite.unwrap_or_else(|| names.collect::<Vec<_>>().join(" > "));
    // GoogleTest and CTest have an attribute for tests that were not run.
    let outcome = match attributes.get("status") {
        Some("notrun" | "disabled") => TestOutcome::Skipped(String::new()),
        _ => TestOutcome::Passed,
    };
    let time = attributes.get("time").and_then(|time| time.replace(',', "").parse().ok()).and_then(seconds);
    TestCase { time, ..TestCase::new(&suite, attributes.get("name").unwrap_or_default(), outcome) }
}
