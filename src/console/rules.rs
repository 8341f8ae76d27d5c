//! The user's rules for the console: lines that must appear, lines that must not, and faults of the kernel.

use regex_lite::Regex;

use super::allow_list::Allowed;
use super::kernel_fault::FaultClasses;
use crate::results::Format;

/// Rules as the user writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Kernel faults that fail the run.
    pub fail_on: FaultClasses,
    /// Faults that are permitted nevertheless.
    pub allow: Vec<Allowed>,
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

/// The compiled rules for lines.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    reject: Vec<Regex>,
    expect: Vec<Regex>, // those that no line has matched yet
}

impl Matcher {
    /// Compiles `rules`. The error names the expression that is not valid.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let compile = |option, text: &String| {
            Regex::new(text).map_err(|error| format!("cannot use {option} '{text}' as an expression: {error}"))
        };
        let all = |option, texts: &[String]| texts.iter().map(|text| compile(option, text)).collect::<Result<_, _>>();
        Ok(Self { reject: all("--reject", &rules.reject)?, expect: all("--expect", &rules.expect)? })
    }

    /// Examines a part of a console line (see [`Printk::split`](super::printk::Printk::split)). A part that is not
    /// complete can only meet expectations.
    pub fn check(&mut self, text: &str, complete: bool) -> Option<Verdict> {
        if complete && let Some(regex) = self.reject.iter().find(|expression| expression.is_match(text)) {
            return Some(Verdict::RuleViolated(format!("a console line matched --reject '{regex}': {text}")));
        }
        let before = self.expect.len();
        self.expect.retain(|expression| !expression.is_match(text));
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
    fn a_run_is_complete_with_the_last_expectation_and_only_once() {
        let rules = Rules { expect: vec!["login: $".into(), "^a+b".into()], ..Rules::default() };
        let mut matcher = Matcher::new(&rules).unwrap();
        assert_eq!((matcher.check("guest login: ", false), matcher.missing()), (None, Some("^a+b")));
        assert_eq!((matcher.check("aab", true), matcher.missing()), (Some(Verdict::ExpectationsMet), None));
        assert_eq!(matcher.check("aab", true), None);
        let error = Matcher::new(&Rules { reject: vec!["(".into()], ..Rules::default() }).unwrap_err();
        assert!(error.starts_with("cannot use --reject '(' as an expression: "), "{error}");
    }
}
