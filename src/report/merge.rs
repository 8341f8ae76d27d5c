//! Several JUnit files as one: `kickvm report merge`.
//!
//! The files may come from hostile guests. So each is read by a parser without DTDs and entities, and written anew:
//! names are checked, text is escaped, and what JUnit does not have is left out.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::file::ReportFile;
use super::junit::escape;
use crate::boot::ByteSize;
use crate::boot::input_file::InputFile;
use crate::results::seconds;
use crate::results::xml::{HAS_DTD, MAX_DEPTH, attributes, resolve};

/// The largest file that is read.
const MAX_FILE: u64 = 32 << 20;
/// The largest result.
const MAX_MERGED: u64 = 128 << 20;
/// The time for writing the result.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// The names of [`Totals`] in a file, and of the elements in a test case that count.
const COUNTS: [&str; 4] = ["tests", "failures", "errors", "skipped"];
const COUNTED: [&str; 4] = ["testcase", "failure", "error", "skipped"];

/// Merges the JUnit files `inputs` into `output`. Without `output`, returns the result instead. An input that cannot be
/// merged is a message of the log and a test case with an error; the `bool` is whether there was no such input, and
/// the result has been written.
///
/// # Errors
///
/// `output` cannot be used, or two inputs are the same file.
pub fn merge(inputs: &[PathBuf], output: Option<&Path>) -> Result<(bool, Option<String>), String> {
    let mut files = BTreeMap::new();
    for input in inputs {
        if let Ok(metadata) = fs::metadata(input)
            && let Some(other) = files.insert((metadata.dev(), metadata.ino()), input)
        {
            return Err(format!("the inputs '{}' and '{}' are the same file", other.display(), input.display()));
        }
    }
    let taken: Vec<_> = inputs.iter().map(PathBuf::as_path).collect();
    let mut unfinished = Merged::default();
    unfinished.push_error("kickvm report merge", "kickvm has not ended yet, or was killed");
    let mut file = ReportFile::open("--output", output, &taken)?;
    file.as_mut().map_or(Ok(()), |file| file.start(&unfinished.into_xml()))?;
    let (mut merged, mut complete) = (Merged::default(), true);
    for input in inputs {
        if let Err(error) = read(input).and_then(|text| merged.push(&text).map_err(|why| unusable(input, &why))) {
            merged.push_error(&input.to_string_lossy(), &error);
            log::error!("{error}");
            complete = false;
        }
    }
    let xml = merged.into_xml();
    match file {
        None => Ok((complete, Some(xml))),
        Some(file) => Ok((file.write(&xml, Instant::now() + WRITE_TIME) && complete, None)),
    }
}

/// Merges the JUnit files with these names and texts. One that cannot be merged, or has an error instead of a text, is
/// a test case with an error.
pub fn merge_texts<'a>(texts: impl Iterator<Item = (&'a str, Result<&'a str, &'a str>)>) -> String {
    let mut merged = Merged::default();
    for (name, text) in texts {
        if let Err(why) = text.map_err(str::to_owned).and_then(|text| merged.push(text)) {
            merged.push_error(name, &why);
        }
    }
    merged.into_xml()
}

fn read(path: &Path) -> Result<String, String> {
    InputFile::open(path, "JUnit file").and_then(|input| input.text(MAX_FILE)).map_err(|error| error.to_string())
}

fn unusable(path: &Path, why: &str) -> String {
    format!("cannot use JUnit file '{}': {why}", path.display())
}

/// The counts and the duration of a suite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    counts: [u64; 4],
    time: Duration,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count = count.saturating_add(more));
        self.time = self.time.saturating_add(other.time);
    }
}

/// Test suites as XML.
#[derive(Debug, Default)]
struct Merged {
    suites: String,
    totals: Totals,
}

impl Merged {
    fn into_xml(self) -> String {
        let Self { suites, totals: Totals { counts: [tests, failures, errors, _], time } } = self;
        let totals = format!(r#"tests="{tests}" failures="{failures}" errors="{errors}""#); // the schema has no others
        let start = format!("<testsuites {totals} time=\"{:.3}\">", time.as_secs_f64());
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{start}\n{suites}</testsuites>\n")
    }

    /// Appends a suite with one test case, which has an error.
    fn push_error(&mut self, name: &str, why: &str) {
        let (name, why) = (escape(name), escape(why));
        let suite = r#"<testsuite name="kickvm" tests="1" failures="0" errors="1" skipped="0" time="0">"#;
        let case = format!(r#"<testcase name="{name}" classname="kickvm.report" time="0">"#);
        let error = format!(r#"<error message="{why}" type="merge"/>"#);
        self.suites += &format!("{suite}{case}{error}</testcase></testsuite>\n");
        self.totals.add(Totals { counts: [1, 0, 1, 0], time: Duration::ZERO });
    }

    /// Appends the suites of a file. After an error there are none of them.
    fn push(&mut self, text: &str) -> Result<(), String> {
        let before = self.suites.len();
        let totals = copy_suites(text, &mut self.suites).inspect_err(|_| self.suites.truncate(before))?;
        self.totals.add(totals);
        Ok(())
    }
}

/// Appends a copy of the suites in the XML `text` to `suites`, and returns their totals.
fn copy_suites(text: &str, suites: &mut String) -> Result<Totals, String> {
    let mut xml = Reader::from_str(text.trim_start_matches('\u{feff}'));
    xml.config_mut().expand_empty_elements = true;
    let mut copier = Copier { suites, open: Vec::new(), cases: 0, ended: None };
    loop {
        let event = xml.read_event().map_err(|error| not_xml(xml.error_position(), &error))?;
        let at = xml.buffer_position();
        match event {
            Event::Start(element) if copier.omits(&element) => {
                xml.read_to_end(element.name()).map_err(|error| not_xml(xml.error_position(), &error))?;
            }
            Event::Start(element) => copier.start(&element, at)?,
            Event::End(_) => copier.end(),
            Event::Text(text) => copier.text(&text.xml10_content(), at)?,
            Event::CData(text) => copier.text(&text.xml10_content(), at)?,
            Event::GeneralRef(reference) => {
                copier.text(&resolve(&reference).map_err(|why| not_xml(at, &why))?, at)?;
            }
            Event::DocType(_) => return Err(HAS_DTD.to_owned()),
            Event::Eof if !copier.open.is_empty() => return Err(not_xml(at, &"the file ends in an element")),
            Event::Eof => {
                let totals = copier.ended.ok_or("it has no element")?;
                return if copier.cases > 0 { Ok(totals) } else { Err("it has no test case".into()) };
            }
            _ => {} // comments, processing instructions, the declaration
        }
        if copier.suites.len() as u64 > MAX_MERGED {
            return Err(format!("the merged file would be larger than {}", ByteSize(MAX_MERGED)));
        }
    }
}

fn not_xml(at: u64, why: &dyn Display) -> String {
    format!("it is not valid XML: {why} at byte {at}")
}

/// Copies the suites of one file.
struct Copier<'a> {
    suites: &'a mut String,
    open: Vec<Element>, // those that have not ended
    cases: u64,
    ended: Option<Totals>, // of the root
}

/// An element that has not ended.
struct Element {
    name: String,
    attributes_end: usize, // in the copy
    /// What the tag states as far as it is a number, and what the content has. The larger count is that of the element,
    /// as a file may lack each of them.
    stated: [u64; 4],
    time: Option<Duration>,
    content: Totals,
}

impl Element {
    fn is_suite(&self) -> bool {
        matches!(self.name.as_str(), "testsuites" | "testsuite")
    }
}

impl Copier<'_> {
    /// Whether the innermost open element is copied: all but a root that has suites.
    fn copies(&self) -> bool {
        self.open.len() > usize::from(self.open.first().is_some_and(|root| root.name == "testsuites"))
    }

    /// Whether `element` is in the root, but no suite.
    fn omits(&self, element: &BytesStart<'_>) -> bool {
        self.open.len() == 1 && !self.copies() && element.local_name().as_ref() != "testsuite"
    }

    fn start(&mut self, tag: &BytesStart<'_>, at: u64) -> Result<(), String> {
        let name = name(tag.local_name().as_ref()).map_err(|why| not_xml(at, &why))?.to_owned();
        let mut element = Element { name, attributes_end: 0, stated: [0; 4], time: None, content: Totals::default() };
        if self.open.is_empty() && (!element.is_suite() || self.ended.is_some()) {
            return Err(format!("its root is '{}' instead of 'testsuites' or 'testsuite'", element.name));
        }
        let counts = |parent: &Element| parent.is_suite() || parent.name == COUNTED[0];
        if self.open.last().is_some_and(counts)
            && let Some(count) = COUNTED.iter().position(|known| *known == element.name)
        {
            element.content.counts[count] = 1;
            self.cases += u64::from(count == 0);
        }
        let attributes = element.read(tag).map_err(|why| not_xml(at, &why))?;
        self.open.push(element);
        if self.open.len() > MAX_DEPTH {
            return Err(format!("its elements are nested more than {MAX_DEPTH} deep at byte {at}"));
        }
        if self.copies()
            && let Some(element) = self.open.last_mut()
        {
            let _ = write!(self.suites, "<{}{attributes}", element.name); // writing to a string cannot fail
            element.attributes_end = self.suites.len();
            self.suites.push('>');
        }
        Ok(())
    }

    fn end(&mut self) {
        let copied = self.copies();
        let Some(element) = self.open.pop() else { return }; // the parser compares the names
        let counts = std::array::from_fn(|at| element.stated[at].max(element.content.counts[at]));
        let time = element.time.unwrap_or(element.content.time);
        if copied {
            *self.suites += &format!("</{}>", element.name);
            *self.suites += if self.copies() { "" } else { "\n" };
        }
        if copied && element.is_suite() {
            let counts: String =
                COUNTS.iter().zip(counts).map(|(name, count)| format!(r#" {name}="{count}""#)).collect();
            let time = format!(r#"{counts} time="{:.3}""#, time.as_secs_f64());
            self.suites.insert_str(element.attributes_end, &time);
        }
        match self.open.last_mut() {
            Some(parent) => parent.content.add(Totals { counts, time }),
            None => self.ended = Some(Totals { counts, time }),
        }
    }

    fn text(&mut self, text: &str, at: u64) -> Result<(), String> {
        if self.copies() {
            *self.suites += &escape(text);
        } else if self.open.is_empty() && !text.trim_ascii().is_empty() {
            return Err(not_xml(at, &"text outside the root element"));
        }
        Ok(())
    }
}

impl Element {
    /// Reads the attributes of `tag`. Returns a copy of those that do not depend on the content.
    fn read(&mut self, tag: &BytesStart<'_>) -> Result<String, String> {
        let mut copy = String::new();
        for (key, value) in attributes(tag)? {
            let key = name(&key)?;
            if key == "time" && (self.is_suite() || self.name == COUNTED[0]) {
                self.time = value.replace(',', "").trim().parse().ok().and_then(seconds);
            }
            match COUNTS.iter().position(|known| *known == key).filter(|_| self.is_suite()) {
                Some(count) => self.stated[count] = value.trim().parse().unwrap_or(0),
                None if self.is_suite() && key == "time" => {}
                // Readers replace other line feeds and tabs in an attribute by blanks.
                None => {
                    let value = escape(&value).replace('\n', "&#10;").replace('\t', "&#9;");
                    let _ = write!(copy, r#" {key}="{value}""#); // writing to a string cannot fail
                }
            }
        }
        Ok(copy)
    }
}

/// Checks a name. Those of JUnit are ASCII.
fn name(name: &str) -> Result<&str, String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if first && name.bytes().all(valid) { Ok(name) } else { Err(format!("invalid name '{name}'")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(files: &[&str]) -> String {
        let mut merged = Merged::default();
        files.iter().for_each(|file| merged.push(file).unwrap_or_else(|why| panic!("{file}: {why}")));
        let xml = merged.into_xml();
        roxmltree::Document::parse(&xml).unwrap_or_else(|error| panic!("{error}: {xml}"));
        xml
    }

    fn totals(xml: &str) -> [u64; 3] {
        let document = roxmltree::Document::parse(xml).unwrap();
        assert_eq!(document.root_element().attribute("skipped"), None, "the schema has no such attribute");
        ["tests", "failures", "errors"].map(|name| document.root_element().attribute(name).unwrap().parse().unwrap())
    }

    #[test]
    fn suites_are_copied_and_their_counts_added() {
        let first = "\u{feff}<?xml version='1.0'?>
            <testsuites tests='2'><properties><x/></properties>
              <testsuite name='a' tests='2' failures='1' time='1.5'><testcase name='&lt;&#x41;&#10;'/>
                <testcase><failure message='\"'>1 &amp; <![CDATA[<2>]]></failure></testcase></testsuite>
            </testsuites>";
        let second = "<testsuite xmlns:xsi='urn:x' xsi:y='z' time='0.25'><!-- c --><testcase><skipped/></testcase>
            <testsuite><testcase><error/></testcase></testsuite></testsuite><?pi?>\n";
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="4" failures="1" errors="1" time="1.750">
<testsuite name="a" tests="2" failures="1" errors="0" skipped="0" time="1.500"><testcase name="&lt;A&#10;"></testcase>
                <testcase><failure message="&quot;">1 &amp; &lt;2&gt;</failure></testcase></testsuite>
<testsuite tests="2" failures="0" errors="1" skipped="1" time="0.250"><testcase><skipped></skipped></testcase>
            <testsuite tests="1" failures="0" errors="1" skipped="0" time="0.000"><testcase><error></error></testcase></testsuite></testsuite>
</testsuites>
"#;
        assert_eq!(merged(&[first, second]), expected);
        assert_eq!(merged(&[expected]), expected, "a merged file can be merged");
    }

    #[test]
    fn the_largest_count_of_cases_suites_and_root_counts() {
        for (file, expected) in [
            ("<testsuite tests='0' failures='0'><testcase><failure/></testcase></testsuite>", [1, 1, 0]),
            ("<testsuite tests='5' failures='2' errors='-1'><testcase/></testsuite>", [5, 2, 0]),
            ("<testsuite><testcase/><error/></testsuite>", [1, 0, 1]),
            ("<testsuites tests='x'><testsuite tests='3'/><testsuite><testcase/></testsuite></testsuites>", [4, 0, 0]),
            ("<testsuites errors='3'><testsuite><testcase/></testsuite></testsuites>", [1, 0, 3]),
            (
                "<testsuites><testsuite failures='1'><testcase/></testsuite><testsuite failures='1'/></testsuites>",
                [1, 2, 0],
            ),
            ("<testsuite tests='18446744073709551615' time='NaN'><testcase/></testsuite>", [u64::MAX, 0, 0]),
        ] {
            assert_eq!(totals(&merged(&[file])), expected, "{file}");
        }
        let most = "<testsuite tests='18446744073709551615'><testcase/></testsuite>";
        assert_eq!(totals(&merged(&[most, most]))[0], u64::MAX);
    }

    #[test]
    fn a_count_that_is_no_number_is_computed() {
        let file = "<testsuite tests='-5' failures='x' errors='' skipped='1.5' time='NaN'>
            <testcase time='1,000.5'><failure/></testcase><testcase time='2'/></testsuite>";
        let counts = r#"<testsuite tests="2" failures="1" errors="0" skipped="0" time="1002.500">"#;
        let xml = merged(&[file]);
        assert!(xml.contains(counts) && xml.contains(r#"<testcase time="1,000.5">"#), "{xml}");
        let time = |time: &str| merged(&[&format!("<testsuite time='{time}'><testcase/></testsuite>")]);
        for invalid in ["-1", "inf", "1e999", "1e300"] {
            assert!(time(invalid).contains(r#"skipped="0" time="0.000">"#), "{invalid}");
        }
    }

    #[test]
    fn what_is_no_junit_file_is_an_error_and_leaves_nothing() {
        let deep = |depth: usize| format!("<testsuite>{}", "<a>".repeat(depth));
        let wide = format!("<testsuite {}/>", (0..65).map(|n| format!("a{n}='' ")).collect::<String>());
        let bomb = "<!DOCTYPE x [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><testsuite>&b;</testsuite>";
        for (file, why) in [
            ("", "it has no element"),
            (" \n", "it has no element"),
            ("ok 1 - passed", "it is not valid XML: text outside the root element at byte 13"),
            ("<html/>", "its root is 'html' instead of 'testsuites' or 'testsuite'"),
            ("<testsuites/>", "it has no test case"),
            ("<testsuite tests='1'/>", "it has no test case"),
            ("<testsuite><testcase/></testsuite>x", "it is not valid XML: text outside the root element at byte 35"),
            ("<testsuite><testcase/></testsuite><testsuite/>", "its root is 'testsuite' instead of"),
            ("<testsuite><testcase/>", "it is not valid XML: the file ends in an element at byte 22"),
            ("<testsuite><testcase></testsuite>", "it is not valid XML: ill-formed document: "),
            ("<testsuite><testcase", "it is not valid XML: syntax error: tag not closed"),
            ("<testsuite>&bomb;</testsuite>", "it is not valid XML: unknown entity '&bomb;' at byte 17"),
            ("<testsuite>&#1114112;</testsuite>", "it is not valid XML: "),
            ("<testsuite name='&bomb;'/>", "it is not valid XML: "),
            ("<testsuite a='1' a='2'/>", "it is not valid XML: "),
            ("<testsuite a/>", "it is not valid XML: "),
            ("<testsuite><a$b/></testsuite>", "it is not valid XML: invalid name 'a$b' at byte 17"),
            ("<testsuite><1/></testsuite>", "it is not valid XML: invalid name '1' at byte 15"),
            (bomb, "it has a document type declaration, which kickvm does not read"),
            (&deep(100_000), "its elements are nested more than 64 deep at byte 203"),
            (&wide, "it is not valid XML: more than 64 attributes"),
        ] {
            let mut merged = Merged::default();
            let error = merged.push(file).unwrap_err();
            assert!(error.starts_with(why), "{file:.80}: {error}");
            assert_eq!((merged.suites.as_str(), merged.totals), ("", Totals::default()));
        }
    }

    #[test]
    fn any_prefix_of_a_file_is_an_error_or_complete() {
        let file = "<?xml version='1.0'?><testsuites><!-- c --><testsuite a='&lt;'>\
                    <testcase>t&#65;<![CDATA[<]]></testcase></testsuite></testsuites>\n";
        for len in 0..file.len() - 1 {
            assert!(Merged::default().push(&file[..len]).is_err(), "{}", &file[..len]);
        }
        merged(&[&file[..file.len() - 1], file]);
    }

    #[test]
    fn text_of_any_character_is_valid_xml() {
        let characters: String = (0..0x300).chain(0xfff0..0x10010).filter_map(char::from_u32).collect();
        let text = characters.replace(['<', '&'], "");
        let file = format!("<testsuite><testcase name=\"{}\">{text}</testcase></testsuite>", text.replace('"', ""));
        merged(&[&file, &format!("<testsuite><testcase><![CDATA[{characters}]]>&#27;</testcase></testsuite>")]);
    }
}
