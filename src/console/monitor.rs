//! Reads the console's output: keeps its last lines, applies the user's rules, and recognises panics and out-of-memory
//! kills.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::escape_sequences::EscapeFilter;
use super::kernel_panic::{PanicDetector, strip_printk_prefix};
use super::rules::{Matcher, Rules, Verdict};

/// Lines that are kept.
const MAX_LINES: usize = 200;
/// Bytes of a line that are kept and examined.
const MAX_LINE: usize = 4096;
/// The silence after which a line without its line feed is examined, because it may be a prompt.
const PROMPT_SILENCE: Duration = Duration::from_millis(200);
/// The silence after the last line of a panic by which the kernel has stopped.
const PANIC_SILENCE: Duration = Duration::from_millis(500);

/// The console of a run that has ended.
#[derive(Clone, Debug, Default)]
pub struct ConsoleLog {
    /// Its last lines, without line ends, escape sequences and control characters.
    pub lines: Vec<String>,
    /// When its first byte arrived.
    pub first_byte: Option<Instant>,
    /// The process that Linux killed last for want of memory.
    pub killed: Option<String>,
    /// The kernel's banner.
    pub banner: Option<String>,
}

/// Examines the output on the event loop's thread.
///
/// The time this takes depends on the guest, so [`examine`](Self::examine) has a limit, and what is left stays in the
/// backlog. The console takes no more from the guest until the backlog is empty: a guest cannot keep the loop busy with
/// it.
#[derive(Debug, Default)]
pub struct ConsoleMonitor {
    backlog: Vec<u8>,
    log: ConsoleLog,
    lines: VecDeque<Vec<u8>>,
    line: Vec<u8>,
    escape: EscapeFilter,
    prompt_checked: bool,
    panic: PanicDetector,
    matcher: Matcher,
    verdict: Option<Verdict>,
}

impl ConsoleMonitor {
    /// A monitor that applies `rules`.
    ///
    /// # Errors
    ///
    /// The message names the rule that is not a valid regular expression.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        Ok(Self { matcher: Matcher::new(rules)?, ..Self::default() })
    }

    /// Appends output to the backlog.
    pub fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.log.first_byte.get_or_insert_with(Instant::now);
            self.panic.ended = false; // the kernel is alive
            self.backlog.extend_from_slice(bytes);
        }
    }

    /// Whether the backlog is empty.
    pub fn is_idle(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Examines the backlog for about `limit`. Returns whether it is empty.
    pub fn examine(&mut self, limit: Duration) -> bool {
        let began = Instant::now();
        let mut examined = 0;
        while let Some(rest) = self.backlog.get(examined..).filter(|rest| !rest.is_empty()) {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let part = &rest[..end.unwrap_or(rest.len())];
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend(part.iter().filter(|byte| self.escape.is_text(**byte)).take(room));
            examined += part.len() + usize::from(end.is_some());
            self.prompt_checked = false;
            if end.is_some() {
                self.escape = EscapeFilter::default(); // a sequence that does not end hides no other line
                self.finish_line();
                if began.elapsed() >= limit {
                    break;
                }
            }
        }
        self.backlog.drain(..examined);
        self.is_idle()
    }

    /// No more output will come: examines a last line without its line feed.
    pub fn finish(&mut self) {
        if !self.line.is_empty() {
            self.finish_line();
        }
    }

    fn finish_line(&mut self) {
        self.check_line(true);
        if self.lines.len() == MAX_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(std::mem::take(&mut self.line));
    }

    /// The silence that [`on_silence`](Self::on_silence) waits for, if any.
    pub fn silence(&self) -> Option<Duration> {
        let prompt = !self.line.is_empty() && !self.prompt_checked && self.matcher.missing().is_some();
        if self.panic.ended { Some(PANIC_SILENCE) } else { prompt.then_some(PROMPT_SILENCE) }
    }

    /// The console has been silent for the time that [`silence`](Self::silence) returned. Returns whether the kernel
    /// has stopped after a panic.
    pub fn on_silence(&mut self) -> bool {
        if !self.line.is_empty() && !std::mem::replace(&mut self.prompt_checked, true) {
            self.check_line(false);
        }
        self.is_idle() && self.panic.ended
    }

    /// Whether the kernel has announced a panic.
    pub fn panicked(&self) -> bool {
        self.panic.began
    }

    /// The first verdict of the rules.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// The first expression of [`Rules::expect`] that no line has matched yet.
    pub fn missing(&self) -> Option<&str> {
        self.matcher.missing()
    }

    /// What the report shows of the console.
    pub fn log(&self) -> ConsoleLog {
        let last = Some(&self.line).filter(|line| !line.is_empty());
        let lines = self.lines.iter().chain(last).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        ConsoleLog { lines, ..self.log.clone() }
    }

    /// Examines the line as it is now.
    fn check_line(&mut self, complete: bool) {
        let line = String::from_utf8_lossy(&self.line);
        let line = strip_printk_prefix(&line);
        self.panic.check_line(line, complete);
        if complete {
            self.log.killed = oom_victim(line).map(str::to_owned).or(self.log.killed.take());
            if self.log.banner.is_none() && line.starts_with("Linux version ") {
                self.log.banner = Some(line.to_owned());
            }
        }
        if self.verdict.is_none() {
            self.verdict = self.matcher.check_line(line, complete);
        }
    }
}

/// The process in a line such as "Out of memory: Killed process 77 (name) total-vm:…" (mm/oom_kill.c), or with a comma
/// behind the name, which may hold parentheses itself.
fn oom_victim(line: &str) -> Option<&str> {
    let (_, victim) = line.split_once("ut of memory: Killed ").filter(|(_, victim)| victim.starts_with("process "))?;
    let end = [") total-vm", "), "].into_iter().find_map(|end| victim.find(end)).map_or(victim.len(), |at| at + 1);
    Some(&victim[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::KernelFault;

    fn monitor(rules: &Rules, text: &str) -> ConsoleMonitor {
        let mut monitor = ConsoleMonitor::new(rules).unwrap();
        monitor.push(text.as_bytes());
        assert!(monitor.examine(Duration::MAX));
        monitor
    }

    #[test]
    fn the_last_lines_are_kept_and_a_long_one_is_cut() {
        let text: String = (0..300).map(|n| format!("[    1.5] line {n}\r\n")).collect();
        let monitor = monitor(&Rules::default(), &format!("{text}{}\nno end", "x".repeat(10_000)));
        let lines = monitor.log().lines;
        assert_eq!((lines.len(), lines[0].as_str()), (MAX_LINES + 1, "[    1.5] line 101"));
        assert_eq!((lines[MAX_LINES - 1].len(), lines[MAX_LINES].as_str()), (MAX_LINE, "no end"));
    }

    #[test]
    fn a_process_killed_for_memory_is_named() {
        for line in [
            "[ 9.1] Out of memory: Killed process 77 (my job) total-vm:1kB",
            "Memory cgroup out of memory: Killed process 77 (my job), UID 0",
        ] {
            let monitor = monitor(&Rules::default(), &format!("{line}\r\n"));
            assert_eq!(monitor.log().killed.as_deref(), Some("process 77 (my job)"), "{line}");
        }
    }

    #[test]
    fn an_expected_prompt_is_found_after_a_silence_without_a_line_end() {
        for prompt in ["login: $", "login:"] {
            let rules = Rules { expect: vec![prompt.into()], ..Rules::default() };
            let mut monitor = monitor(&rules, "[ 1.0] Linux version 6\r\nguest login: \u{1b}[6n");
            assert_eq!((monitor.verdict(), monitor.silence()), (None, Some(PROMPT_SILENCE)));
            assert!(!monitor.on_silence());
            assert_eq!((monitor.verdict(), monitor.silence()), (Some(&Verdict::ExpectationsMet), None));
            assert_eq!(monitor.log().banner.as_deref(), Some("Linux version 6"));
        }
    }

    #[test]
    fn a_silent_kernel_has_stopped_only_after_the_last_line_of_a_panic() {
        let mut monitor = monitor(&Rules::default(), "Kernel panic - not syncing: x\r\n---[ end Kernel panic ]---\r\n");
        assert_eq!(monitor.silence(), Some(PANIC_SILENCE));
        assert!(monitor.on_silence() && monitor.panicked());
        monitor.push(b"# ");
        assert!(monitor.examine(Duration::MAX) && !monitor.on_silence());
        assert_eq!(monitor.silence(), None);
    }

    #[test]
    fn faults_are_found_after_any_printk_prefix_and_without_a_line_end() {
        let rules = Rules { fail_on: vec![KernelFault::Oops], reject: vec!["^FAIL".into()], ..Rules::default() };
        for text in ["[    1.0][    T1] Oops: 0002 [#1]\n", "Oops: 0002 [#1]", "[    1.0][   C12] FAIL"] {
            let mut monitor = monitor(&rules, text);
            monitor.finish();
            assert!(matches!(monitor.verdict(), Some(Verdict::RuleViolated(_))), "{text}");
        }
    }

    #[test]
    fn a_backlog_is_examined_in_parts() {
        let rules = Rules { expect: vec!["last".into()], ..Rules::default() };
        let mut monitor = ConsoleMonitor::new(&rules).unwrap();
        monitor.push(b"first\nlast\n");
        assert!(!monitor.examine(Duration::ZERO) && !monitor.is_idle());
        assert_eq!(monitor.verdict(), None);
        assert!(monitor.examine(Duration::ZERO) && monitor.is_idle());
        assert_eq!(monitor.verdict(), Some(&Verdict::ExpectationsMet));
    }
}
