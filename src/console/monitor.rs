//! Reads the console's output: keeps its last lines, applies the user's rules, finds test results, and recognises
//! panics and out-of-memory kills.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::allow_list::AllowList;
use super::escape_sequences::EscapeFilter;
use super::fault_report::{Fault, FaultReports};
use super::kernel_fault::FaultClasses;
use super::kernel_log::KernelLog;
use super::printk::{BANNER, KernelEnd, Origin, Part, Printk};
use super::rules::{Matcher, Rules, Verdict};
use crate::results::ResultParser;

/// Lines that are kept.
const MAX_LINES: usize = 200;
/// Bytes of a line that are examined at once. A longer line is examined in parts.
const MAX_LINE: usize = 4096;
/// Bytes of a part that are also the beginning of the next, so that a message of the kernel is whole in one of them.
const OVERLAP: usize = 512;
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
    /// The faults that the kernel has reported.
    pub faults: Vec<Fault>,
    /// The number of further faults, for which there was no room.
    pub omitted_faults: u32,
    /// The entries of [`Rules::allow`] that no fault has matched, with their places.
    pub unused_allow: Vec<String>,
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
    repeated: usize, // bytes at the beginning of `line` that were the end of its last part
    after_cr: bool,
    replace_last: bool, // the last line ended with a CR, and the next one is written over it
    escape: EscapeFilter,
    prompt_checked: bool,
    printk: Printk,
    end: KernelEnd,
    faults: FaultReports,
    matcher: Matcher,
    verdict: Option<Verdict>,
    results: Option<ResultParser>,
}

impl ConsoleMonitor {
    /// A monitor that applies `rules`.
    ///
    /// # Errors
    ///
    /// The message names the rule that is not a valid regular expression.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let faults = FaultReports::new(rules.fail_on, AllowList::new(&rules.allow)?);
        let results = rules.results.map(|format| ResultParser::new(format, "the console"));
        Ok(Self { matcher: Matcher::new(rules)?, faults, results, ..Self::default() })
    }

    /// Appends output to the backlog.
    pub fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.log.first_byte.get_or_insert_with(Instant::now);
            self.end.stopped = false; // the kernel is alive
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
        while let Some(&next) = self.backlog.get(examined) {
            if std::mem::take(&mut self.after_cr) && !matches!(next, b'\r' | b'\n') {
                self.finish_line(true);
            }
            let rest = &self.backlog[examined..];
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let part = &rest[..end.unwrap_or(rest.len()).min(MAX_LINE - self.line.len())];
            self.line.extend(part.iter().filter(|byte| self.escape.is_text(**byte)));
            examined += part.len();
            self.prompt_checked = false;
            if self.line.len() == MAX_LINE {
                self.finish_part();
            } else if let Some(end) = rest.get(part.len()) {
                examined += 1;
                self.after_cr = *end == b'\r';
                if *end == b'\n' {
                    self.escape = EscapeFilter::default(); // a sequence that does not end hides no other line
                    self.finish_line(false);
                }
            }
            if began.elapsed() >= limit {
                break;
            }
        }
        self.backlog.drain(..examined);
        self.is_idle()
    }

    /// No more output will come: examines a last line without its end.
    pub fn finish(&mut self) {
        if !self.line.is_empty() {
            self.finish_line(false);
        }
        self.close_reports();
    }

    /// Examines the kernel's log after [`finish`](Self::finish). Returns a remark about what it lacks.
    pub fn add_kernel_log(&mut self, log: &KernelLog) -> Option<String> {
        let lack = match &log.records {
            None => "the kernel's log cannot be read".to_owned(),
            Some(records) => match self.faults.add_kernel_log(records) {
                Some(0) => String::new(),
                None => "the kernel's log is too long to examine".to_owned(),
                Some(lost) => format!("the kernel's log lacks {lost} messages; '--append log_buf_len=16M' makes room"),
            },
        };
        let violation = self.faults.violation.clone();
        let unseen = || format!("{lack}, and the console does not show all faults that --fail-on is about");
        let unseen = (log.hidden_on_console && !lack.is_empty()).then(unseen);
        self.verdict = self.verdict.take().or(violation.or(unseen).map(Verdict::RuleViolated));
        Some(lack).filter(|lack| !lack.is_empty() && !log.hidden_on_console)
    }

    /// No report of a fault continues.
    fn close_reports(&mut self) {
        self.faults.close_all();
        self.verdict = self.verdict.take().or(self.faults.violation.clone().map(Verdict::RuleViolated));
    }

    /// Examines the line, and begins another. `by_cr` means that the next one is written over it.
    fn finish_line(&mut self, by_cr: bool) {
        let repeated = self.repeated;
        if repeated == 0 || self.line.len() > repeated {
            self.check_line(true);
            let line = std::mem::take(&mut self.line);
            self.keep(&line[repeated..]);
        }
        self.line.clear(); // it may have ended with its last part
        self.repeated = 0;
        self.replace_last = by_cr;
    }

    /// Examines a part of a long line.
    fn finish_part(&mut self) {
        self.check_line(true);
        let line = std::mem::take(&mut self.line);
        self.keep(&line[self.repeated..]);
        self.line.extend_from_slice(&line[MAX_LINE - OVERLAP..]);
        self.repeated = OVERLAP;
    }

    /// Keeps a line for the report.
    fn keep(&mut self, line: &[u8]) {
        if std::mem::take(&mut self.replace_last) {
            self.lines.pop_back();
        } else if self.lines.len() == MAX_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_vec());
    }

    /// The silence that [`on_silence`](Self::on_silence) waits for, if any.
    pub fn silence(&self) -> Option<Duration> {
        let prompt = self.may_be_at_prompt().then_some(PROMPT_SILENCE);
        if self.end.stopped { Some(PANIC_SILENCE) } else { prompt.or(self.faults.silence()) }
    }

    /// Whether the next silence is for the line that has not ended. A report may need a longer one.
    pub fn may_be_at_prompt(&self) -> bool {
        let is_new = !self.line.is_empty() && !self.prompt_checked;
        is_new && self.matcher.missing().is_some() && !self.end.stopped
    }

    /// The console has been silent for the time that [`silence`](Self::silence) returned. Returns whether the kernel
    /// has stopped after a panic.
    pub fn on_silence(&mut self) -> bool {
        let prompt = self.may_be_at_prompt();
        if !self.line.is_empty() && !std::mem::replace(&mut self.prompt_checked, true) {
            self.check_line(false);
        }
        if self.is_idle() && !prompt {
            self.close_reports();
        }
        self.is_idle() && self.end.stopped
    }

    /// Whether the kernel has announced a panic.
    pub fn panicked(&self) -> bool {
        self.end.panicked
    }

    /// Whether the kernel of Linux has printed anything.
    pub fn has_kernel_messages(&self) -> bool {
        self.printk.was_seen()
    }

    /// Whether a reset of Linux is a failure: no program had requested it, as far as the console shows.
    pub fn reset_is_fault(&self) -> bool {
        self.faults.fails_on(FaultClasses::RESET) && self.end.reset_is_unrequested()
    }

    /// The first verdict of the rules.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// The first expression of [`Rules::expect`] that no line has matched yet.
    pub fn missing(&self) -> Option<&str> {
        self.matcher.missing()
    }

    /// Takes the parser of test results, once all output was examined.
    pub fn take_results(&mut self) -> Option<ResultParser> {
        self.results.take()
    }

    /// What the report shows of the console.
    pub fn log(&self) -> ConsoleLog {
        let last = Some(&self.line).filter(|line| !line.is_empty());
        let lines = self.lines.iter().chain(last).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        let (faults, omitted_faults) = (self.faults.faults().to_vec(), self.faults.omitted);
        let unused_allow = self.faults.unused().map(|entry| format!("'{}' ({})", entry.expression, entry.place));
        ConsoleLog { lines, faults, omitted_faults, unused_allow: unused_allow.collect(), ..self.log.clone() }
    }

    /// Examines the line as it is now.
    fn check_line(&mut self, complete: bool) {
        let Self { printk, end, log, faults, verdict, matcher, results, .. } = self;
        // The rest of a long line is not another line.
        let mut results = results.as_mut().filter(|_| complete && self.repeated == 0);
        printk.split(&String::from_utf8_lossy(&self.line), |part| {
            let &Part { text, origin, .. } = part;
            end.check(part, complete);
            if complete {
                faults.add(part);
            }
            if complete && origin != Origin::Program {
                log.killed = oom_victim(text).map(str::to_owned).or(log.killed.take());
                if log.banner.is_none() && text.starts_with(BANNER) {
                    log.banner = Some(text.to_owned());
                }
            }
            if let Some(results) = &mut results {
                results.read_part(text, origin == Origin::Kernel);
            }
            if verdict.is_none() {
                let matched = matcher.check(text, complete);
                if matched.is_some() {
                    faults.close_all(); // a fault before this line counts first
                }
                *verdict = faults.violation.clone().map(Verdict::RuleViolated).or(matched);
            }
        });
        if let Some(results) = &mut results {
            results.end_parts();
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
    use crate::results::Format;

    fn monitor(rules: &Rules, text: &str) -> ConsoleMonitor {
        let mut monitor = ConsoleMonitor::new(rules).unwrap();
        monitor.push(text.as_bytes());
        assert!(monitor.examine(Duration::MAX));
        monitor
    }

    #[test]
    fn the_last_lines_are_kept_and_a_long_one_in_parts() {
        let text: String = (0..300).map(|n| format!("[    1.5] line {n}\r\n")).collect();
        let monitor = monitor(&Rules::default(), &format!("{text}{}\nno end", "x".repeat(10_000)));
        let lines = monitor.log().lines;
        assert_eq!((lines.len(), lines[0].as_str()), (MAX_LINES + 1, "[    1.5] line 103"));
        assert_eq!(lines[MAX_LINES - 3..MAX_LINES].iter().map(String::len).sum::<usize>(), 10_000);
        assert_eq!(lines[MAX_LINES], "no end");
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
    fn a_wait_for_a_prompt_does_not_cut_a_report() {
        let rules = Rules { expect: vec!["login:".into()], fail_on: FaultClasses::WARN, ..Rules::default() };
        let start = "[    1.0] ------------[ cut here ]------------\n[    1.0] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\n[    1.0] Mod";
        let mut monitor = monitor(&rules, start);
        assert_eq!(monitor.silence(), Some(PROMPT_SILENCE));
        assert!(!monitor.on_silence() && monitor.verdict().is_none());
        assert!(monitor.silence().is_some_and(|silence| silence > PROMPT_SILENCE));
        monitor.push(b"ules:\n[    1.0] ---[ end trace 0000000000000000 ]---\n");
        assert!(monitor.examine(Duration::MAX));
        let report = &monitor.log().faults[0].lines;
        assert!(report.last().unwrap().contains("end trace"), "{report:?}");
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
        let rules = Rules { fail_on: FaultClasses::OOPS, reject: vec!["^FAIL".into()], ..Rules::default() };
        for text in ["[    1.0][    T1] Oops: 0002 [#1]\n", "Oops: 0002 [#1]", "[    1.0][   C12] FAIL"] {
            let mut monitor = monitor(&rules, text);
            monitor.finish();
            assert!(matches!(monitor.verdict(), Some(Verdict::RuleViolated(_))), "{text}");
        }
    }

    #[test]
    fn a_carriage_return_ends_a_line_and_the_next_one_replaces_it() {
        let rules = Rules { expect: vec!["^10%$".into(), "^DONE$".into()], ..Rules::default() };
        let monitor = monitor(&rules, "start\r\n\r10%\r20%\r\x1b[32mDONE\x1b[0m\r\r\n# ");
        assert_eq!(monitor.verdict(), Some(&Verdict::ExpectationsMet));
        assert_eq!(monitor.log().lines, ["start", "DONE", "# "]);
    }

    #[test]
    fn a_line_that_ends_with_its_part_is_one_line() {
        let rules = Rules { expect: vec!["^never$".into()], ..Rules::default() };
        let mut monitor = monitor(&rules, &format!("{}\nnext\n{}", "x".repeat(MAX_LINE), "y".repeat(MAX_LINE)));
        monitor.finish();
        assert_eq!(monitor.log().lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, 4, MAX_LINE]);
    }

    #[test]
    fn a_panic_is_found_wherever_it_is_in_endless_output() {
        for banner in ["", "[    0.000000] Linux version 6\n"] {
            for before in (0..2 * MAX_LINE).step_by(61) {
                let text = format!("{banner}{}[    1.500000] Kernel panic - not syncing: x\n", ".".repeat(before));
                assert!(monitor(&Rules::default(), &text).panicked(), "{before}");
            }
        }
    }

    #[test]
    fn a_log_cut_at_any_byte_is_no_panic_of_the_monitor_and_no_false_one() {
        let text = "[    0.000000] Linux version 6\r\né[    1.000000] Kernel panic - not syncing: é\r\n";
        let end = text.find("syncing").unwrap() + "syncing".len();
        for cut in 0..=text.len() {
            let mut monitor = ConsoleMonitor::new(&Rules::default()).unwrap();
            monitor.push(&text.as_bytes()[..cut]);
            assert!(monitor.examine(Duration::MAX));
            monitor.finish();
            assert_eq!(monitor.panicked(), cut >= end, "{cut}");
        }
    }

    /// `begin` is how the first fault begins.
    #[test]
    fn a_real_log_cut_at_any_byte_is_no_false_green() {
        for (begin, log) in [
            ("watchdog: Watchdog detected hard LOCKUP", include_str!("fixtures/hard-lockup.log")),
            ("rcu: INFO: rcu_", include_str!("fixtures/rcu-stall.log")),
            ("BUG: ", include_str!("fixtures/kasan-null.log")),
            ("WARNING: ", include_str!("fixtures/held-lock.log")),
        ] {
            let log = format!("[    0.000000][    T0] Linux version 6.12\n{log}");
            let begin = log.find(begin).unwrap() + begin.len();
            for cut in 0..=log.len() {
                let rules = Rules { fail_on: FaultClasses::ALL, ..Rules::default() };
                let mut monitor = monitor(&rules, &log[..cut]);
                monitor.finish();
                let fails = matches!(monitor.verdict(), Some(Verdict::RuleViolated(_)));
                assert_eq!(fails, cut >= begin, "{cut}: {:?}", monitor.verdict());
            }
        }
    }

    #[test]
    fn test_results_are_found_behind_any_prefix_and_once() {
        let rules = || Rules { results: Some(Format::Ktap), ..Rules::default() };
        let kunit = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: a\n    1..2\n    ok 1 b\n    not ok 2 c\nnot ok 1 a\n";
        let copy: String = kunit.lines().map(|line| format!("[    2.000000] {line}\r\n")).collect();
        let plain = kunit.replace('\n', "\r\n");
        for text in [
            format!("{plain}no end"),
            format!("[    1.000000] Linux version 6\r\n# {copy}[    9.000000] x\r\n# dmesg\r\n{copy}"),
            format!("[    1.000000][    T0] Linux version 6\r\n{}", copy.replace("] ", "][    T1] ")),
            format!(
                "[    1.000000] Linux version 6\r\nTAP version 13\r\n1..2\r\nok 1 b\r\n{}not ok 2 c\r\n",
                "x".repeat(9000) + "\r\n"
            ),
        ] {
            let mut monitor = monitor(&rules(), &text);
            monitor.finish();
            let results = monitor.take_results().unwrap().finish(true);
            let failed = results.failure().unwrap().replace("a > ", "");
            assert_eq!(failed, "1 of 2 tests failed: c", "{text}");
        }
        let text = "x".repeat(MAX_LINE - OVERLAP) + "ok 1 " + &"y".repeat(MAX_LINE) + "\n";
        let mut monitor = monitor(&rules(), &text);
        monitor.finish();
        assert_eq!(monitor.take_results().unwrap().finish(true).total(), 0);
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
