//! What a user wants of the console: lines that must come, lines that must not, and trouble that the kernel may report.

use std::fmt;

use regex_lite::Regex;

/// Rules as their user writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// KernelFault that fails the run.
    pub fail_on: Vec<KernelFault>,
    /// Regular expressions each of which some line must match; the run ends well when all have.
    pub expect: Vec<String>,
    /// Regular expressions that no line may match.
    pub reject: Vec<String>,
}

/// KernelFault short of a panic that Linux reports on its console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFault {
    /// A fault in the kernel.
    Oops,
    /// A processor that does nothing else any more: soft lock-ups, hard ones, and what RCU calls a stall.
    Lockup,
    /// A task that waits and waits.
    Hung,
    /// A `WARN_ON`.
    Warn,
}

/// How each kind of trouble begins (lib/dump_stack.c, kernel/watchdog.c, kernel/hung_task.c, kernel/panic.c, arch/x86/mm/fault.c
/// and arch/x86/kernel/traps.c of Linux). Of two that fit, the first counts.
const PATTERNS: [(&str, KernelFault); 17] = [
    ("watchdog: BUG: soft lockup", KernelFault::Lockup),
    ("BUG: soft lockup", KernelFault::Lockup),
    ("BUG: workqueue lockup", KernelFault::Lockup),
    ("watchdog: Watchdog detected hard LOCKUP", KernelFault::Lockup),
    ("NMI watchdog: Watchdog detected hard LOCKUP", KernelFault::Lockup),
    ("rcu: INFO: rcu_", KernelFault::Lockup),
    ("INFO: task ", KernelFault::Hung),
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
    /// What `line` of the console reports, its time stamp aside.
    pub fn in_line(line: &str) -> Option<Self> {
        let (_, trouble) = PATTERNS.iter().find(|(sign, _)| line.starts_with(sign))?;
        // A task is named in other lines too.
        (*trouble != Self::Hung || line.contains(" blocked for more than ")).then_some(*trouble)
    }

    /// Reads the name by which a user chooses.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "oops" => Self::Oops,
            "lockup" => Self::Lockup,
            "hung" => Self::Hung,
            "warn" => Self::Warn,
            _ => return None,
        })
    }
}

impl fmt::Display for KernelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oops => "oops",
            Self::Lockup => "lockup",
            Self::Hung => "hung",
            Self::Warn => "warn",
        })
    }
}

/// What a line means by the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This was forbidden.
    Broken(String),
    /// It was the last that was expected.
    Complete,
}

/// Rules, ready to be applied.
#[derive(Debug)]
pub struct Matcher {
    fail_on: Vec<KernelFault>,
    reject: Vec<Regex>,
    expect: Vec<Regex>, // those that have not been met
    expects: bool,
}

impl Matcher {
    /// Compiles `rules`; an error names the expression that is none.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let compile =
            |text: &String| Regex::new(text).map_err(|error| format!("cannot use the expression '{text}': {error}"));
        let all = |texts: &[String]| texts.iter().map(compile).collect::<Result<Vec<_>, _>>();
        let (reject, expect) = (all(&rules.reject)?, all(&rules.expect)?);
        Ok(Self { fail_on: rules.fail_on.clone(), reject, expects: !expect.is_empty(), expect })
    }

    /// Looks at a line of the console without its time stamp. One that goes on is looked at again, and until then may only be
    /// what was expected.
    pub fn look(&mut self, line: &str, whole: bool) -> Option<Verdict> {
        if let Some(trouble) = KernelFault::in_line(line).filter(|it| whole && self.fail_on.contains(it)) {
            return Some(Verdict::Broken(format!("the guest kernel reported trouble (--fail-on {trouble}): {line}")));
        }
        if let Some(expression) = self.reject.iter().find(|it| whole && it.is_match(line)) {
            return Some(Verdict::Broken(format!("the console said what --reject '{expression}' forbids: {line}")));
        }
        let before = self.expect.len();
        self.expect.retain(|expression| !expression.is_match(line));
        (self.expects && before > 0 && self.expect.is_empty()).then_some(Verdict::Complete)
    }

    /// The first expression that is still to be met.
    pub fn missing(&self) -> Option<&str> {
        self.expect.first().map(Regex::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_reports_trouble_in_these_words() {
        for (line, trouble) in [
            ("BUG: kernel NULL pointer dereference, address: 0000000000000000", Some(KernelFault::Oops)),
            ("Oops: 0002 [#1] PREEMPT SMP NOPTI", Some(KernelFault::Oops)),
            ("general protection fault, probably for non-canonical address 0x1: 0000 [#1]", Some(KernelFault::Oops)),
            ("kernel BUG at mm/slub.c:379!", Some(KernelFault::Oops)),
            ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]", Some(KernelFault::Lockup)),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", Some(KernelFault::Lockup)),
            ("INFO: task sh:77 blocked for more than 120 seconds.", Some(KernelFault::Hung)),
            ("INFO: task accounting is on", None),
            ("WARNING: CPU: 0 PID: 1 at kernel/x.c:3 f+0x1/0x2", Some(KernelFault::Warn)),
            ("traps: a.out[77] general protection fault ip:1 sp:2 error:0", None),
            ("a.out[77]: segfault at 0 ip 1 sp 2 error 4", None),
            ("debug: BUG: is not at the beginning", None),
        ] {
            assert_eq!(KernelFault::in_line(line), trouble, "{line}");
        }
        for name in ["oops", "lockup", "hung", "warn"] {
            assert_eq!(KernelFault::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn only_chosen_trouble_counts_and_only_in_whole_lines() {
        let rules = Rules { fail_on: vec![KernelFault::Oops], ..Rules::default() };
        let mut judge = Matcher::new(&rules).unwrap();
        assert_eq!(judge.look("WARNING: CPU: 0", true), None);
        assert_eq!(judge.look("Oops: 0002", false), None);
        assert!(matches!(judge.look("Oops: 0002", true), Some(Verdict::Broken(why)) if why.ends_with(": Oops: 0002")));
    }

    #[test]
    fn a_run_is_complete_with_the_last_expectation_and_only_once() {
        let rules = Rules { expect: vec!["login: $".into(), "^a+b".into()], ..Rules::default() };
        let mut judge = Matcher::new(&rules).unwrap();
        assert_eq!((judge.look("guest login: ", false), judge.missing()), (None, Some("^a+b")));
        assert_eq!((judge.look("aab", true), judge.missing()), (Some(Verdict::Complete), None));
        assert_eq!(judge.look("aab", true), None);
        let error = Matcher::new(&Rules { reject: vec!["(".into()], ..Rules::default() }).unwrap_err();
        assert!(error.starts_with("cannot use the expression '(': "), "{error}");
    }
}
