//! Splits the text of a source into lines, and passes them to the reader of the format.

use std::fmt::Debug;

use super::go::Go;
use super::junit::Junit;
use super::ktap::Ktap;
use super::libtest::Libtest;
use super::{Format, TestResults, floor_char_boundary};

/// Bytes of a line that are examined.
const MAX_LINE: usize = 1 << 20;

/// Reads one format.
pub(super) trait Reader: Debug + Send {
    /// Takes bytes that are not split into lines. Returns `false` if the format consists of lines.
    fn take_bytes(&mut self, _bytes: &[u8]) -> bool {
        false
    }

    /// Reads a line without its end. Returns whether it belongs to a test.
    fn read_line(&mut self, line: &str, results: &mut TestResults) -> bool;

    /// Adds a line to the output of the test that runs, if any.
    fn take_output(&mut self, _line: &str) {}

    /// The end of the text. Returns whether no test can be missing behind it.
    fn finish(&mut self, results: &mut TestResults) -> bool;
}

/// Finds the test results in the text of a source.
#[derive(Debug)]
pub struct ResultParser {
    program: Part,
    /// The kernel's messages interrupt the results of a program, and may have results of their own (KUnit).
    kernel: Option<Part>,
    line: Vec<u8>,
    /// The parts of a console line of a program, and whether the line has a message of the kernel.
    part: String,
    has_message: bool,
}

#[derive(Debug)]
struct Part {
    reader: Box<dyn Reader>,
    results: TestResults,
}

impl ResultParser {
    /// A parser for the text of `source`, which is the subject of a sentence such as "the console has no test results".
    pub fn new(format: Format, source: &str) -> Self {
        let part = |reader| Part { reader, results: TestResults::new(format, source.to_owned()) };
        let ktap = || part(Box::new(Ktap::new(format == Format::Tap)));
        let (program, kernel) = match format {
            Format::Ktap | Format::Tap => (ktap(), Some(ktap())),
            Format::Junit => (part(Box::<Junit>::default()), None),
            Format::Go => (part(Box::<Go>::default()), None),
            Format::Libtest => (part(Box::<Libtest>::default()), None),
        };
        Self { program, kernel, line: Vec::new(), part: String::new(), has_message: false }
    }

    /// Reads the next bytes of a stream or file.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.program.reader.take_bytes(bytes) {
            return;
        }
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.read_line(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']), false);
        self.line = line;
        self.line.clear();
    }

    /// Reads a part of a console line. A line of a program that a message of the kernel has interrupted continues with
    /// the next line.
    pub fn read_part(&mut self, part: &str, by_kernel: bool) {
        if by_kernel {
            self.has_message = true;
            self.read_line(part, true);
        } else {
            self.part.push_str(part);
        }
        self.part.truncate(floor_char_boundary(&self.part, MAX_LINE));
    }

    /// The console line has ended.
    pub fn end_parts(&mut self) {
        let has_message = std::mem::take(&mut self.has_message);
        if !has_message || !self.part.is_empty() && !continues(&self.part) {
            let part = std::mem::take(&mut self.part);
            self.read_line(&part, false);
        }
    }

    /// Reads a line without its end. `by_kernel` means that the line is a message of the kernel, without its prefix.
    pub fn read_line(&mut self, line: &str, by_kernel: bool) {
        let Self { program, kernel, .. } = self;
        if !by_kernel {
            program.reader.read_line(line, &mut program.results);
        } else if let Some(kernel) = kernel
            && !kernel.reader.read_line(line, &mut kernel.results)
        {
            program.reader.take_output(line);
        }
    }

    /// No more text will come. `complete` means that the tests ended by themselves, as opposed to a crash or a timeout.
    pub fn finish(mut self, complete: bool) -> TestResults {
        if complete && !self.line.is_empty() {
            self.end_line();
        }
        if complete && !self.part.is_empty() {
            self.end_parts();
        }
        let finish = |Part { mut reader, mut results }| {
            if !reader.finish(&mut results) && !complete && results.total() > 0 {
                results.set_problem("the run ended before the tests did");
            }
            results
        };
        let mut results = finish(self.program);
        self.kernel.map(finish).into_iter().for_each(|kernel| results.absorb(kernel));
        results
    }
}

/// Whether an interrupted line may be a result: the rest is then necessary.
fn continues(part: &str) -> bool {
    let part = part.trim_start();
    ["not ok", "ok"].iter().any(|word| word.starts_with(part) || part.starts_with(word)) || part.starts_with(['{', '<'])
}
