//! What a CI service shows on its page: an error with its title, and a summary of the run.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::console::Fault;
use crate::console::output::open_to_append;
use crate::sys::file_writer::FileWriter;
use crate::sys::os_error;
use crate::sys::unread::unread_bytes;

/// The target of log records that the logger writes without a prefix.
pub const TARGET: &str = "annotation";
/// The most bytes of a log, and of all logs, in a summary. GitHub accepts 1 MiB for a step.
const MAX_LOG: usize = 64 << 10;
const MAX_LOGS: usize = 512 << 10;
/// How long the CI service may take to read the guest's last output.
const READ_TIME: Duration = Duration::from_millis(300);

/// The time for writing the summary.
const SUMMARY_TIME: Duration = Duration::from_secs(10);

/// A CI service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CiService {
    /// GitHub Actions.
    GitHub,
    /// GitLab CI.
    GitLab,
    /// None that is known, or the user wants no annotations.
    #[default]
    Off,
}

impl CiService {
    /// The service that runs this process.
    pub fn detect() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| value == "true");
        match (is_set("GITHUB_ACTIONS"), is_set("GITLAB_CI")) {
            (true, _) => Self::GitHub,
            (_, true) => Self::GitLab,
            _ => Self::Off,
        }
    }
}

/// What is shown of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// The run: its command or kernel, and its name among several.
    pub name: String,
    pub code: u8,
    pub outcome: String,
    pub reason: String,
    pub seconds: f64,
    /// Titles of faults, and how often each was reported.
    pub faults: Vec<(String, u64)>,
    /// The report of the first fault, or the console's last lines.
    pub log: Vec<String>,
}

impl Entry {
    /// The title of the first fault, or the reason.
    pub fn title(&self) -> &str {
        self.faults.first().map_or(&self.reason, |(title, _)| title)
    }
}

/// The titles of faults that are not permitted.
pub(super) fn titles(faults: &[Fault]) -> Vec<(String, u64)> {
    let failing = faults.iter().filter(|fault| !fault.allowed);
    failing.map(|fault| (fault.title.clone(), fault.count.into())).collect()
}

/// Annotations of one process.
#[derive(Debug)]
pub(crate) struct Annotator {
    service: CiService,
    token: String,
}

impl Annotator {
    /// From here on, GitHub takes no commands from the output, which is the guest's.
    pub fn start(service: CiService) -> Self {
        // The keys of `RandomState` are random, so the guest cannot know the token.
        let random = || RandomState::new().hash_one(0);
        let token = format!("kickvm-{:016x}{:016x}", random(), random());
        if service == CiService::GitHub {
            log::error!(target: TARGET, "::stop-commands::{token}");
        }
        Self { service, token }
    }

    /// Shows the errors and the summary of the runs. If the guest's output is not `terminated`, GitHub could take its
    /// last line for a command, so there are no errors then.
    pub fn finish(self, entries: &[Entry], terminated: bool) {
        let failed = || entries.iter().filter(|entry| entry.code != 0);
        match self.service {
            CiService::Off => {}
            CiService::GitHub => {
                // The guest's output must be before the token, which is on another stream.
                let deadline = Instant::now() + READ_TIME;
                while unread_bytes(&std::io::stdout()) > 0 && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let all_read = terminated && unread_bytes(&std::io::stdout()) == 0;
                if all_read {
                    log::error!(target: TARGET, "::{}::", self.token);
                }
                for entry in failed().filter(|_| all_read) {
                    let (title, message) = (format!("{}: {}", entry.name, entry.title()), &entry.reason);
                    let (title, message) = (escape(&title).replace(':', "%3A").replace(',', "%2C"), escape(message));
                    log::error!(target: TARGET, "::error title={title}::{message} (exit code {})", entry.code);
                }
                let path = std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from);
                if let Some(path) = path.filter(|path| !path.as_os_str().is_empty())
                    && let Err(error) = append(&path, &markdown(entries))
                {
                    let (path, error) = (path.display(), os_error::describe(&error));
                    log::warn!("cannot write the job summary '{path}' (GITHUB_STEP_SUMMARY): {error}");
                }
            }
            CiService::GitLab => {
                for (number, entry) in failed().enumerate() {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                    let title = plain(&format!("{}: {}", entry.name, entry.title()));
                    let section = format!("kickvm_{}_{number}", std::process::id());
                    log::error!(
                        target: TARGET,
                        "\x1b[0Ksection_start:{now}:{section}[collapsed=true]\r\x1b[0K\x1b[31;1m{title}\x1b[0m"
                    );
                    entry.log.iter().for_each(|line| log::error!(target: TARGET, "| {}", plain(line)));
                    log::error!(target: TARGET, "\x1b[0Ksection_end:{now}:{section}\r\x1b[0K");
                }
            }
        }
    }
}

/// Escapes the value of a GitHub workflow command.
fn escape(text: &str) -> String {
    plain(text).replace('%', "%25")
}

/// Without control characters.
fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\t', " ")
}

/// Appends `text` to the file at `path`, which may be on a file system that does not answer.
fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = FileWriter::start(open_to_append(path)?)?;
    let deadline = Instant::now() + SUMMARY_TIME;
    file.write_all(text.as_bytes(), deadline)?;
    file.finish(deadline)
}

/// The summary as GitHub-flavoured Markdown.
fn markdown(entries: &[Entry]) -> String {
    // Writing to a string cannot fail. In a cell, HTML and Markdown have no effect.
    let cell = |text: &str| {
        let mut cell = String::new();
        for c in plain(text).chars() {
            match c {
                '&' => cell += "&amp;",
                '<' => cell += "&lt;",
                '|' | '`' | '*' | '_' | '[' | ']' | '!' | '#' | '~' | '\\' | '@' | ':' | '.' | '$' => {
                    let _ = write!(cell, "&#{};", u32::from(c));
                }
                c => cell.push(c),
            }
        }
        cell
    };
    let mut text =
        "### kickvm\n\n| run | verdict | exit code | time | first fault |\n|---|---|---|---|---|\n".to_owned();
    for entry in entries {
        let verdict = if entry.code == 0 { "passed" } else { "failed" };
        let fault = entry.faults.first().map_or("", |(title, _)| title);
        let (name, outcome, fault) = (cell(&entry.name), cell(&entry.outcome), cell(fault));
        let _ = writeln!(text, "| {name} | {verdict}: {outcome} | {} | {:.2} s | {fault} |", entry.code, entry.seconds);
    }
    let room = MAX_LOGS / entries.len().max(1);
    for entry in entries.iter().filter(|entry| entry.code != 0) {
        let mut log = String::new();
        for line in &entry.log {
            if log.len() + line.len() < room.min(MAX_LOG) {
                log = log + &plain(line) + "\n";
            }
        }
        // A fence is longer than any in the log.
        let longest = log.split(|c| c != '`').map(str::len).max().unwrap_or(0);
        let fence = "`".repeat((longest + 1).max(3));
        let _ = write!(text, "\n<details><summary>{}: {}</summary>\n\n", cell(&entry.name), cell(entry.title()));
        for (title, count) in &entry.faults {
            let _ = writeln!(text, "- {} ({count}x)", cell(title));
        }
        let _ = write!(text, "\n{fence}text\n{log}{fence}\n\n</details>\n");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_leave_its_place_in_the_summary() {
        let entry = Entry {
            name: "a|b".into(),
            code: 123,
            outcome: "rule".into(),
            reason: "x\r\n::set-env::".into(),
            seconds: 1.5,
            faults: vec![("</summary><script> [x](y) @all".into(), 2)],
            log: vec!["````".into(), "</details>\u{1b}[1m".into(), "x".repeat(MAX_LOG)],
        };
        let text = markdown(&[entry.clone(), Entry { name: "ok".into(), ..Entry::default() }]);
        assert!(
            text.contains(
                "| a&#124;b | failed: rule | 123 | 1.50 s | &lt;/summary>&lt;script> &#91;x&#93;(y) &#64;all |\n"
            ),
            "{text}"
        );
        assert!(text.contains("\n`````text\n````\n</details> [1m\n`````\n"), "{text}");
        assert!(text.len() < MAX_LOG);
        assert_eq!(escape(&entry.reason), "x  ::set-env::");
        assert_eq!(escape("100%\n"), "100%25 ");
    }
}
