//! KTAP (Linux, Documentation/dev-tools/ktap.rst) and TAP: results in nested levels.
//!
//! The results of a suite's tests come before the suite's own result, with more indentation. The suite's own result
//! counts only if it has no tests, or if it is a failure that none of its tests explains.

use super::ktap_line::{Line, begun_test, parse, split_result, yaml_duration};
use super::parser::Reader;
use super::{TestCase, TestOutcome, TestResults, append, append_line};

/// Levels that are distinguished. Deeper lines are output.
const MAX_LEVELS: usize = 16;
/// Tests without a result that become a case each. Further ones are only counted.
const MAX_MISSING: u64 = 100;
const NO_RESULT: &str = "it has no result";

/// Reads KTAP, or TAP.
#[derive(Debug)]
pub(super) struct Ktap {
    /// TAP has a plan in each level, and a result may have no number. Diagnostics follow a failed result.
    tap: bool,
    levels: Vec<Level>,
    after: After,
    last_is_case: bool, // as opposed to a suite
}

/// What the lines after a result belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The next test.
    Other,
    /// The last result: a YAML block that is indented further than this, and in TAP the diagnostics of a failure.
    Result { indent: usize, failed: bool },
    /// The last result: a YAML block with this indentation.
    Yaml(usize),
}

/// A suite whose tests run.
#[derive(Debug, Default)]
struct Level {
    indent: usize,
    plan: Option<u64>,
    seen: u64,                // results
    name: Option<String>,     // of the suite, from its header
    next: Option<String>,     // of the test that runs
    no_tests: Option<String>, // why the plan is 1..0
    output: String,           // since the last result
    // The state of the results when the suite began.
    first_case: usize,
    total: u64,
    failed: u64,
}

impl Level {
    fn is_complete(&self) -> bool {
        self.plan.is_some_and(|plan| self.seen >= plan)
    }

    /// Whether another series of tests may follow.
    fn has_ended(&self) -> bool {
        self.is_complete() && self.seen > 0
    }
}

impl Ktap {
    pub fn new(tap: bool) -> Self {
        Self { tap, levels: Vec::new(), after: After::Other, last_is_case: false }
    }

    /// Ends levels that are indented further than `indent`, and returns the level with this indentation.
    fn enter(&mut self, indent: usize, results: &mut TestResults) -> &mut Level {
        while self.levels.last().is_some_and(|level| level.indent > indent) {
            self.end_without_result(indent, results);
        }
        self.level(indent, results)
    }

    /// The innermost level, which is a new one if its indentation is less than `indent`.
    fn level(&mut self, indent: usize, results: &TestResults) -> &mut Level {
        if self.levels.last().is_none_or(|level| level.indent < indent) {
            let name = self.levels.last_mut().and_then(|parent| parent.next.take());
            let (first_case, total, failed) = (results.cases.len(), results.total(), results.failed);
            self.levels.push(Level { indent, name, first_case, total, failed, ..Level::default() });
        }
        let last = self.levels.len() - 1; // there is one now
        &mut self.levels[last]
    }

    /// Ends the innermost level, although the level around it has no result for it. If there is none around it,
    /// one with the indentation `indent` begins.
    fn end_without_result(&mut self, indent: usize, results: &mut TestResults) {
        let parent = self.levels.len().checked_sub(2).map(|at| (self.levels[at].indent, self.levels[at].seen + 1));
        let (indent, number) = parent.unwrap_or((indent, 1));
        let name = self.levels.last().and_then(|level| level.name.clone());
        let name = name.unwrap_or_else(|| format!("test {number}"));
        self.end_test(indent, false, TestCase::new("", &name, TestOutcome::Failed(NO_RESULT.to_owned())), results);
    }

    /// The innermost level continues with another series of tests.
    fn restart(&mut self, results: &mut TestResults) {
        if let Some(level) = self.levels.pop() {
            let Level { indent, first_case, total, failed, .. } = level;
            self.settle(level, "", results);
            self.levels.push(Level { indent, first_case, total, failed, ..Level::default() });
        }
    }

    /// Compares a level that has ended with its plan. `why` may explain missing results. Returns output that belongs
    /// to none of its tests.
    fn settle(&self, level: Level, why: &str, results: &mut TestResults) -> String {
        let Level { plan, seen, mut next, mut output, no_tests, .. } = level;
        let Some(plan) = plan else {
            if self.tap && seen > 0 {
                results.set_problem("there is no plan, such as 1..4");
            }
            return output;
        };
        if seen > plan {
            results.set_problem(format!("the plan is 1..{plan}, but there are {seen} results"));
        }
        let outcome = TestOutcome::Failed(if why.is_empty() { NO_RESULT } else { why }.to_owned());
        let listed = plan.min(seen.saturating_add(MAX_MISSING));
        for number in seen + 1..=listed {
            let name = next.take().unwrap_or_else(|| format!("test {number} of {plan}"));
            let output = std::mem::take(&mut output);
            results.add(TestCase { output, ..TestCase::new("", &name, outcome.clone()) });
        }
        results.count(&outcome, plan.saturating_sub(listed.max(seen)));
        if let Some(why) = no_tests.filter(|_| plan == 0) {
            results.add(TestCase::new("", "all tests", TestOutcome::Skipped(why)));
        }
        output
    }

    /// Adds a result with this indentation. A level that is indented further is that of its tests. `is_first` means
    /// that the result has the number 1.
    fn end_test(&mut self, indent: usize, is_first: bool, mut case: TestCase, results: &mut TestResults) {
        while let [.., parent, _] = &self.levels[..]
            && parent.indent > indent
        {
            self.end_without_result(indent, results);
        }
        let tests = self.levels.pop_if(|level| level.indent > indent);
        if self.level(indent, results).has_ended() && is_first {
            self.restart(results);
        }
        let level = self.level(indent, results);
        level.seen += 1;
        level.next = None;
        if case.name.is_empty() {
            case.name = format!("test {}", level.seen);
        }
        case.output = std::mem::take(&mut level.output);
        let failed = matches!(case.outcome, TestOutcome::Failed(_));
        let mut counts = true;
        if let Some(mut tests) = tests {
            let (first_case, total, failed_before) = (tests.first_case, tests.total, tests.failed);
            let output = match &mut case.outcome {
                TestOutcome::Skipped(why) => {
                    if why.is_empty() {
                        *why = tests.no_tests.take().unwrap_or_default();
                    }
                    tests.output // the tests that were not run need no result
                }
                TestOutcome::Failed(why) => self.settle(tests, why, results),
                _ => self.settle(tests, "", results),
            };
            append(&mut case.output, &output);
            results.nest(first_case, &case.name);
            counts = results.total() == total || failed && results.failed == failed_before;
        }
        self.last_is_case = counts && results.add(case);
        self.after = After::Result { indent, failed };
    }

    /// Adds a line to the last test. Returns `false` if it does not belong to that.
    fn extend_last(&mut self, line: &str, indent: usize, text: &str, results: &mut TestResults) -> bool {
        let last = results.cases.last_mut().filter(|_| self.last_is_case);
        match self.after {
            After::Result { indent: outer, .. } if line.trim() == "---" && indent > outer => {
                self.after = After::Yaml(indent);
            }
            After::Yaml(outer) if indent >= outer && text == "..." => self.after = After::Other,
            After::Yaml(outer) if indent >= outer => {
                if let (Some(time), Some(case)) = (yaml_duration(text), last) {
                    case.time = Some(time);
                }
            }
            After::Result { failed: true, .. } if self.tap && line.trim_start().starts_with('#') => {}
            _ => return false,
        }
        if self.last_is_case {
            results.extend_last(line);
        }
        true
    }

    /// Adds a line to the output of the test that runs. Returns `false` if none does. `text` is the line without its
    /// indentation.
    fn extend_next(&mut self, line: &str, text: &str) -> bool {
        let is_nested = self.levels.len() > 1;
        let Some(level) = self.levels.last_mut().filter(|level| is_nested || !level.is_complete()) else {
            return false;
        };
        append_line(&mut level.output, line);
        if let Some(name) = begun_test(text) {
            level.next = Some(name.to_owned());
        }
        true
    }
}

impl Reader for Ktap {
    fn read_line(&mut self, line: &str, results: &mut TestResults) -> bool {
        let (indent, mut parsed) = parse(line, self.tap);
        if self.levels.len() == MAX_LEVELS && self.levels.last().is_some_and(|level| level.indent < indent) {
            parsed = Line::Text("");
        }
        let text = if let Line::Text(text) = parsed { text } else { line.trim() };
        if matches!((self.after, parsed), (After::Yaml(_), _) | (_, Line::Text(_)))
            && self.extend_last(line, indent, text, results)
        {
            return true;
        }
        if !matches!(parsed, Line::Text(_)) {
            self.after = After::Other;
        }
        match parsed {
            Line::Version => {
                let level = self.enter(indent, results);
                if level.plan.is_some() || level.seen > 0 {
                    self.restart(results);
                }
            }
            Line::Plan(count, why) => {
                if self.enter(indent, results).has_ended() {
                    self.restart(results);
                }
                let level = self.level(indent, results);
                level.plan = level.plan.max(Some(count));
                level.no_tests = why.map(str::to_owned);
            }
            Line::Subtest(name) => {
                let level = self.enter(indent, results);
                let is_new = level.plan.is_none() && level.seen == 0;
                *(if is_new { &mut level.name } else { &mut level.next }) = Some(name.to_owned());
            }
            Line::Result(line) => self.end_test(indent, line.number == Some(1), line.case(), results),
            Line::BailOut(why) => {
                results.set_problem(format!("Bail out! {why}").trim_end());
                return self.extend_next(line, text);
            }
            Line::Text(_) => {
                let Some((output, result)) = split_result(line) else { return self.extend_next(line, text) };
                self.extend_next(output, "");
                return self.read_line(result, results);
            }
        }
        true
    }

    fn take_output(&mut self, line: &str) {
        self.extend_next(line, "");
    }

    fn finish(&mut self, results: &mut TestResults) -> bool {
        while self.levels.len() > 1 || self.levels.last().is_some_and(|level| level.indent > 0 && level.name.is_some())
        {
            self.end_without_result(0, results);
        }
        let Some(level) = self.levels.pop() else { return false };
        let is_complete = level.is_complete();
        self.settle(level, "", results);
        is_complete
    }
}
