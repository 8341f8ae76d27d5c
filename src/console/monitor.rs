//! Listens to the console: remembers its last lines, judges each by the user's rules, and notes whom Linux killed for memory.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::panic::strip_printk_prefix;
use super::rules::{Matcher, Rules, Verdict};
use crate::device::OutputTap;
use crate::vmm::{ExitHandler, ExitReason, kick};

/// Lines that are remembered.
const LINES: usize = 200;
/// Bytes of a line that are looked at.
const LINE: usize = 4096;
/// How long a kernel may go on about its trouble before it is ended.
const LAST_LINES: Duration = Duration::from_millis(500);

/// What the console had to say.
#[derive(Clone, Debug, Default)]
pub struct ConsoleLog {
    /// Its last lines, without ends and escape sequences.
    pub lines: Vec<String>,
    /// When its first byte came.
    pub first_byte: Option<Instant>,
    /// The process that Linux killed last for want of memory.
    pub killed: Option<String>,
    /// The kernel's banner.
    pub banner: Option<String>,
}

/// The listener, shared between the vCPUs' threads and whoever wants to know in the end.
#[derive(Clone, Debug)]
pub struct ConsoleMonitor<EH>(Arc<Mutex<State<EH>>>);

#[derive(Debug)]
struct State<EH> {
    lines: VecDeque<Vec<u8>>,
    line: Vec<u8>,
    first_byte: Option<Instant>,
    killed: Option<String>,
    banner: Option<String>,
    judge: Matcher,
    broken: Option<String>,
    exit_handler: EH,
}

impl<EH: ExitHandler + Send + 'static> ConsoleMonitor<EH> {
    /// A listener that kicks `exit_handler` when `rules` decide the run. An error names a rule that is none.
    pub fn new(rules: &Rules, exit_handler: EH) -> Result<Self, String> {
        Ok(Self(Arc::new(Mutex::new(State {
            lines: VecDeque::with_capacity(LINES),
            line: Vec::with_capacity(256),
            first_byte: None,
            killed: None,
            banner: None,
            judge: Matcher::new(rules)?,
            broken: None,
            exit_handler,
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, State<EH>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason that counts, given that the run ended because of `reason`.
    pub fn judge(&self, reason: ExitReason) -> ExitReason {
        let mut state = self.lock();
        if !state.line.is_empty() {
            state.look(true); // it will not go on
        }
        let ended = matches!(reason, ExitReason::Guest(_) | ExitReason::Command(_) | ExitReason::NoStatus(_))
            && !matches!(reason, ExitReason::Guest(crate::device::GuestRequest::Panic));
        match (&state.broken, state.judge.missing()) {
            (Some(why), _) if ended || matches!(reason, ExitReason::Timeout(_)) => ExitReason::Rule(why.clone()),
            (None, Some(missing)) if ended => {
                ExitReason::Rule(format!("{reason}, but the console had not said what --expect '{missing}' wants"))
            }
            _ => reason,
        }
    }

    /// What there is to tell.
    pub fn log(&self) -> ConsoleLog {
        let state = self.lock();
        let last = Some(&state.line).filter(|line| !line.is_empty());
        ConsoleLog {
            lines: state.lines.iter().chain(last).map(|line| String::from_utf8_lossy(line).into_owned()).collect(),
            first_byte: state.first_byte,
            killed: state.killed.clone(),
            banner: state.banner.clone(),
        }
    }
}

impl<EH: ExitHandler + Send + fmt::Debug + 'static> OutputTap for ConsoleMonitor<EH> {
    fn on_byte(&mut self, byte: u8) {
        let mut state = self.lock();
        state.first_byte.get_or_insert_with(Instant::now);
        match byte {
            b'\n' => {
                state.look(true);
                if state.lines.len() == LINES {
                    state.lines.pop_front();
                }
                let line = std::mem::take(&mut state.line);
                state.lines.push_back(line);
            }
            b'\r' | 0 => {}
            _ if state.line.len() >= LINE => {}
            _ => {
                state.line.push(byte);
                // A prompt is no whole line; it ends with a blank.
                if byte == b' ' {
                    state.look(false);
                }
            }
        }
    }
}

impl<EH: ExitHandler + Send + 'static> State<EH> {
    /// Judges the line as it is now.
    fn look(&mut self, whole: bool) {
        let line = String::from_utf8_lossy(strip_printk_prefix(&self.line)).into_owned();
        let line = line.as_str();
        if whole {
            if let Some(at) = line.find("ut of memory: Killed process ") {
                // "process 77 (name) total-vm:…", or with a comma behind the name; it may hold parentheses of its own.
                let victim = &line[at + "ut of memory: Killed ".len()..];
                let end = [") total-vm", "), "]
                    .into_iter()
                    .find_map(|end| victim.find(end))
                    .map_or(victim.len(), |at| at + 1);
                self.killed = Some(victim[..end].to_owned());
            }
            if self.banner.is_none() && line.starts_with("Linux version ") {
                self.banner = Some(line.to_owned());
            }
        }
        if self.broken.is_some() {
            return;
        }
        match self.judge.look(line, whole) {
            Some(Verdict::Complete) => kick(&self.exit_handler, ExitReason::Expected),
            Some(Verdict::Broken(why)) => {
                self.broken = Some(why.clone());
                let exit_handler = self.exit_handler.clone();
                let end = move || {
                    thread::sleep(LAST_LINES);
                    kick(&exit_handler, ExitReason::Rule(why));
                };
                // Without a thread the rest of what the kernel has to say is lost.
                if let Err(error) = thread::Builder::new().name("verdict".into()).spawn(end) {
                    kick(&self.exit_handler, ExitReason::Failed(format!("cannot start a thread: {error}")));
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::GuestRequest;
    use crate::vmm::KernelFault;
    use crate::vmm::WrappedExitHandler;

    fn watch(rules: &Rules, text: &str) -> (ConsoleMonitor<WrappedExitHandler>, WrappedExitHandler) {
        let handler = WrappedExitHandler::new().unwrap();
        let mut watch = ConsoleMonitor::new(rules, handler.clone()).unwrap();
        text.bytes().for_each(|byte| watch.on_byte(byte));
        (watch, handler)
    }

    #[test]
    fn the_last_lines_are_remembered_and_a_long_one_is_cut() {
        let text: String = (0..300).map(|n| format!("[    1.5] line {n}\r\n")).collect();
        let (watch, _) = watch(&Rules::default(), &format!("{text}{}\nno end", "x".repeat(10_000)));
        let lines = watch.log().lines;
        assert_eq!((lines.len(), lines[0].as_str()), (LINES + 1, "[    1.5] line 101"));
        assert_eq!((lines[LINES - 1].len(), lines[LINES].as_str()), (LINE, "no end"));
    }

    #[test]
    fn who_was_killed_for_memory_is_named() {
        for line in [
            "[ 9.1] Out of memory: Killed process 77 (my job) total-vm:1kB",
            "Memory cgroup out of memory: Killed process 77 (my job), UID 0",
        ] {
            let (watch, _) = watch(&Rules::default(), &format!("{line}\r\n"));
            assert_eq!(watch.log().killed.as_deref(), Some("process 77 (my job)"), "{line}");
        }
    }

    #[test]
    fn an_expected_prompt_ends_the_run_without_a_line_end() {
        let rules = Rules { expect: vec!["login: $".into()], ..Rules::default() };
        let (watch, handler) = watch(&rules, "[ 1.0] Linux version 6\r\nguest login: ");
        assert_eq!(handler.reason(), Some(ExitReason::Expected));
        assert_eq!(watch.log().banner.as_deref(), Some("Linux version 6"));
    }

    #[test]
    fn trouble_decides_unless_the_kernel_panicked() {
        let rules = Rules { fail_on: vec![KernelFault::Oops], ..Rules::default() };
        let (watch, _) = watch(&rules, "[ 1.0] Oops: 0002 [#1]\n");
        assert!(matches!(watch.judge(ExitReason::Command(0)), ExitReason::Rule(_)));
        assert!(matches!(watch.judge(ExitReason::Guest(GuestRequest::PowerOff)), ExitReason::Rule(_)));
        assert_eq!(watch.judge(ExitReason::Guest(GuestRequest::Panic)), ExitReason::Guest(GuestRequest::Panic));
        assert_eq!(watch.judge(ExitReason::Signal(15)), ExitReason::Signal(15));
    }

    #[test]
    fn trouble_is_seen_behind_the_stamps_of_any_kernel_and_without_a_line_end() {
        let rules = Rules { fail_on: vec![KernelFault::Oops], reject: vec!["^FAIL".into()], ..Rules::default() };
        for text in ["[    1.0][    T1] Oops: 0002 [#1]\n", "Oops: 0002 [#1]", "[    1.0][   C12] FAIL"] {
            let (watch, _) = watch(&rules, text);
            assert!(matches!(watch.judge(ExitReason::Guest(GuestRequest::Exit(0))), ExitReason::Rule(_)), "{text}");
        }
    }

    #[test]
    fn a_guest_that_ends_too_early_did_not_say_what_was_expected() {
        let rules = Rules { expect: vec!["never".into()], ..Rules::default() };
        let (watch, handler) = watch(&rules, "something else\n");
        assert_eq!(handler.reason(), None);
        let ExitReason::Rule(why) = watch.judge(ExitReason::Guest(GuestRequest::PowerOff)) else {
            panic!("no verdict")
        };
        assert_eq!(why, "the guest powered off, but the console had not said what --expect 'never' wants");
        assert_eq!(watch.judge(ExitReason::UserQuit), ExitReason::UserQuit);
    }
}
