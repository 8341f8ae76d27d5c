//! The user's rules for the console: lines that must appear, lines that must not, and faults that the kernel reports.

use std::fmt;

use regex_lite::Regex;

/// Rules as the user writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Kernel faults that fail the run.
    pub fail_on: Vec<KernelFault>,
    /// Regular expressions. The run ends with success as soon as each has matched a line.
    pub expect: Vec<String>,
    /// Regular expressions that no line may match.
    pub reject: Vec<String>,
}

/// A fault short of a panic that Linux reports on its console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFault {
    /// A fault in the kernel.
    Oops,
    /// A processor that is stuck: a soft or hard lockup, or an RCU stall.
    Lockup,
    /// A task that is blocked for minutes.
    HungTask,
    /// A `WARN_ON`.
    Warn,
}

/// The first words of each fault (lib/dump_stack.c, kernel/watchdog.c, kernel/hung_task.c, kernel/panic.c,
/// arch/x86/mm/fault.c and arch/x86/kernel/traps.c of Linux). The first that matches counts.
const PATTERNS: [(&str, KernelFault); 17] = [
    ("watchdog: BUG: soft lockup", KernelFault::Lockup),
    ("BUG: soft lockup", KernelFault::Lockup),
    ("BUG: workqueue lockup", KernelFault::Lockup),
    ("watchdog: Watchdog detected hard LOCKUP", KernelFault::Lockup),
    ("NMI watchdog: Watchdog detected hard LOCKUP", KernelFault::Lockup),
    ("rcu: INFO: rcu_", KernelFault::Lockup),
    ("INFO: task ", KernelFault::HungTask),
    ("WARNING: ", KernelFault::Warn),
    ("BUG: ", KernelFault::Oops),
    ("kernel BUG at ", KernelFault::Oops),
    ("Oops: ", KernelFault::Oops),
    ("general protection fault", KernelFault::Oops),
    ("invalid opcode: ", KernelFault::Oops),
    ("divide error: ", KernelFault::Oops),
    ("stack segment: ", KernelFault::Oops),
    ("int3: ", KernelFault::Oops),
    ("double fault: ", KernelFault::Oops),
];

impl KernelFault {
    /// The fault that `line` reports. The line has no printk prefix.
    pub fn in_line(line: &str) -> Option<Self> {
        let (_, fault) = PATTERNS.iter().find(|(pattern, _)| line.starts_with(pattern))?;
        // Other lines name a task, too.
        (*fault != Self::HungTask || line.contains(" blocked for more than ")).then_some(*fault)
    }

    /// Parses the name that `--fail-on` takes. The error states the names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "oops" => Ok(Self::Oops),
            "lockup" => Ok(Self::Lockup),
            "hung-task" | "hung" => Ok(Self::HungTask),
            "warn" => Ok(Self::Warn),
            _ => Err("give oops, lockup, hung-task or warn, or several with commas".to_owned()),
        }
    }
}

impl fmt::Display for KernelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oops => "oops",
            Self::Lockup => "lockup",
            Self::HungTask => "hung-task",
            Self::Warn => "warn",
        })
    }
}

/// The decision of the rules about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A line violated a rule; the text names both.
    RuleViolated(String),
    /// Each expression of [`Rules::expect`] has matched a line.
    ExpectationsMet,
}

/// Compiled rules.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    fail_on: Vec<KernelFault>,
    reject: Vec<Regex>,
    expect: Vec<Regex>, // those that no line has matched yet
}

impl Matcher {
    /// Compiles `rules`. The error names the expression that is not valid.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let compile =
            |text: &String| Regex::new(text).map_err(|error| format!("cannot use the expression '{text}': {error}"));
        let all = |texts: &[String]| texts.iter().map(compile).collect::<Result<Vec<_>, _>>();
        Ok(Self { fail_on: rules.fail_on.clone(), reject: all(&rules.reject)?, expect: all(&rules.expect)? })
    }

    /// Examines a line of the console without its printk prefix. A line that is not complete can only meet
    /// expectations.
    pub fn check_line(&mut self, line: &str, complete: bool) -> Option<Verdict> {
        let fault = KernelFault::in_line(line).filter(|fault| self.fail_on.contains(fault));
        let fault = fault.map(|fault| format!("the guest kernel reported a fault (--fail-on {fault}): {line}"));
        let rejected = || self.reject.iter().find(|expression| expression.is_match(line));
        let rejected = || rejected().map(|regex| format!("a console line matched --reject '{regex}': {line}"));
        if complete && let Some(why) = fault.or_else(rejected) {
            return Some(Verdict::RuleViolated(why));
        }
        let before = self.expect.len();
        self.expect.retain(|expression| !expression.is_match(line));
        (before > 0 && self.expect.is_empty()).then_some(Verdict::ExpectationsMet)
    }

    /// The first expression that no line has matched yet.
    pub fn missing(&self) -> Option<&str> {
        self.expect.first().map(Regex::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_reports_faults_in_these_words() {
        for (line, fault) in [
            ("BUG: kernel NULL pointer dereference, address: 0000000000000000", Some(KernelFault::Oops)),
            ("Oops: 0002 [#1] PREEMPT SMP NOPTI", Some(KernelFault::Oops)),
            ("general protection fault, probably for non-canonical address 0x1: 0000 [#1]", Some(KernelFault::Oops)),
            ("kernel BUG at mm/slub.c:379!", Some(KernelFault::Oops)),
            ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]", Some(KernelFault::Lockup)),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", Some(KernelFault::Lockup)),
            ("INFO: task sh:77 blocked for more than 120 seconds.", Some(KernelFault::HungTask)),
            ("INFO: task accounting is on", None),
            ("WARNING: CPU: 0 PID: 1 at kernel/x.c:3 f+0x1/0x2", Some(KernelFault::Warn)),
            ("traps: a.out[77] general protection fault ip:1 sp:2 error:0", None),
            ("a.out[77]: segfault at 0 ip 1 sp 2 error 4", None),
            ("debug: BUG: is not at the beginning", None),
        ] {
            assert_eq!(KernelFault::in_line(line), fault, "{line}");
        }
        for name in ["oops", "lockup", "hung-task", "warn"] {
            assert_eq!(KernelFault::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn only_chosen_faults_count_and_only_in_complete_lines() {
        let rules = Rules { fail_on: vec![KernelFault::Oops], ..Rules::default() };
        let mut matcher = Matcher::new(&rules).unwrap();
        assert_eq!(matcher.check_line("WARNING: CPU: 0", true), None);
        assert_eq!(matcher.check_line("Oops: 0002", false), None);
        let verdict = matcher.check_line("Oops: 0002", true);
        assert!(matches!(verdict, Some(Verdict::RuleViolated(why)) if why.ends_with(": Oops: 0002")));
    }

    #[test]
    fn a_run_is_complete_with_the_last_expectation_and_only_once() {
        let rules = Rules { expect: vec!["login: $".into(), "^a+b".into()], ..Rules::default() };
        let mut matcher = Matcher::new(&rules).unwrap();
        assert_eq!((matcher.check_line("guest login: ", false), matcher.missing()), (None, Some("^a+b")));
        assert_eq!((matcher.check_line("aab", true), matcher.missing()), (Some(Verdict::ExpectationsMet), None));
        assert_eq!(matcher.check_line("aab", true), None);
        let error = Matcher::new(&Rules { reject: vec!["(".into()], ..Rules::default() }).unwrap_err();
        assert!(error.starts_with("cannot use the expression '(': "), "{error}");
    }
}
