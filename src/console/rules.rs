//! The user's rules for the console: lines that must appear, lines that must not, and faults that the kernel reports.

use regex_lite::Regex;

use super::kernel_fault::FaultClasses;
use super::printk::Origin;
use crate::results::Format;

/// Rules as the user writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Kernel faults that fail the run.
    pub fail_on: FaultClasses,
    /// Regular expressions. The run ends with success as soon as each has matched a line.
    pub expect: Vec<String>,
    /// Regular expressions that no line may match.
    pub reject: Vec<String>,
    /// The format of test results on the console.
    pub results: Option<Format>,
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
    fail_on: FaultClasses,
    reject: Vec<Regex>,
    expect: Vec<Regex>, // those that no line has matched yet
}

impl Matcher {
    /// Compiles `rules`. The error names the expression that is not valid.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let compile =
            |text: &String| Regex::new(text).map_err(|error| format!("cannot use the expression '{text}': {error}"));
        let all = |texts: &[String]| texts.iter().map(compile).collect::<Result<Vec<_>, _>>();
        Ok(Self { fail_on: rules.fail_on, reject: all(&rules.reject)?, expect: all(&rules.expect)? })
    }

    /// Examines a part of a console line (see [`Printk::split`](super::printk::Printk::split)). A part that is not
    /// complete can only meet expectations.
    pub fn check(&mut self, text: &str, origin: Origin, complete: bool) -> Option<Verdict> {
        let classes =
            if origin == Origin::Program { FaultClasses::NONE } else { FaultClasses::of_message(text) & self.fail_on };
        let fault = (classes != FaultClasses::NONE)
            .then(|| format!("the guest kernel reported a fault (--fail-on {classes}): {text}"));
        let rejected = || self.reject.iter().find(|expression| expression.is_match(text));
        let rejected = || rejected().map(|regex| format!("a console line matched --reject '{regex}': {text}"));
        if complete && let Some(why) = fault.or_else(rejected) {
            return Some(Verdict::RuleViolated(why));
        }
        let before = self.expect.len();
        self.expect.retain(|expression| !expression.is_match(text));
        (before > 0 && self.expect.is_empty()).then_some(Verdict::ExpectationsMet)
    }

    /// Whether faults of `classes` fail the run.
    pub fn fails_on(&self, classes: FaultClasses) -> bool {
        self.fail_on.intersects(classes)
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
    fn only_chosen_faults_count_and_only_in_complete_lines() {
        let rules = Rules { fail_on: FaultClasses::OOPS, ..Rules::default() };
        let mut matcher = Matcher::new(&rules).unwrap();
        assert_eq!(matcher.check("WARNING: CPU: 0", Origin::Unknown, true), None);
        assert_eq!(matcher.check("Oops: 0002", Origin::Unknown, false), None);
        assert_eq!(matcher.check("Oops: 0002", Origin::Program, true), None);
        let verdict = matcher.check("Oops: 0002", Origin::Unknown, true);
        assert!(matches!(verdict, Some(Verdict::RuleViolated(why)) if why.ends_with(": Oops: 0002")));
    }

    #[test]
    fn a_run_is_complete_with_the_last_expectation_and_only_once() {
        let rules = Rules { expect: vec!["login: $".into(), "^a+b".into()], ..Rules::default() };
        let mut matcher = Matcher::new(&rules).unwrap();
        assert_eq!((matcher.check("guest login: ", Origin::Unknown, false), matcher.missing()), (None, Some("^a+b")));
        assert_eq!(
            (matcher.check("aab", Origin::Unknown, true), matcher.missing()),
            (Some(Verdict::ExpectationsMet), None)
        );
        assert_eq!(matcher.check("aab", Origin::Unknown, true), None);
        let error = Matcher::new(&Rules { reject: vec!["(".into()], ..Rules::default() }).unwrap_err();
        assert!(error.starts_with("cannot use the expression '(': "), "{error}");
    }
}
