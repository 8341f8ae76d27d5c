//! KTAP (Linux, Documentation/dev-tools/ktap.rst) and TAP: results in nested levels.
//!
//! The results of a suite's tests come before the suite's own result, with more indentation. The suite's own result
//! counts only if it has no tests, or if it is a failure that none of its tests explains.

use std::collections::BTreeSet;

use super::ktap_line::{Line, begun_test, parse, split_result, yaml_duration};
use super::parser::Reader;
use super::{MAX_RUNNING, NO_RESULT, TestCase, TestOutcome, TestResults, append, append_line};

/// Levels that are distinguished. Deeper lines are output.
const MAX_LEVELS: usize = 16;

/// Reads KTAP, or TAP.
#[derive(Debug)]
pub(super) struct Ktap {
    /// TAP has one plan in each level, and its results are in order, but may have no number. Diagnostics follow a
    /// failed result. In KTAP, a series of tests may follow another one, and tests that run in parallel end in any
    /// order.
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
    plan_is_last: bool,       // in TAP
    seen: u64,                // tests with a result
    ahead: BTreeSet<u64>,     // those of them that come after one without a result
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

    /// The first test without a result.
    fn due(&self) -> u64 {
        self.seen - self.ahead.len() as u64 + 1
    }

    /// Counts the result of a test. Returns `false` if it cannot have one.
    fn count(&mut self, number: u64) -> bool {
        let due = self.due();
        let counts = number == due || number > due && self.ahead.len() < MAX_RUNNING && self.ahead.insert(number);
        self.seen += u64::from(counts);
        while self.ahead.remove(&self.due()) {}
        counts
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
        let parent = self.levels.len().checked_sub(2).map(|at| (self.levels[at].indent, self.levels[at].due()));
        let (indent, number) = parent.unwrap_or((indent, 1));
        let name = self.levels.last().and_then(|level| level.name.clone());
        let name = name.unwrap_or_else(|| format!("test {number}"));
        self.end_test(indent, None, TestCase::new("", &name, TestOutcome::Failed(NO_RESULT.to_owned())), results);
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
        let due = level.due();
        let Level { plan, seen, ahead, mut next, mut output, no_tests, .. } = level;
        if plan.is_none() && self.tap && seen > 0 {
            results.set_problem("there is no plan, such as 1..4");
        }
        let Some(plan) = plan.or(ahead.last().copied()) else { return output };
        let expected = plan.min(due - 1) + ahead.range(..=plan).count() as u64;
        if seen > expected {
            results.set_problem(format!("the plan is 1..{plan}, but there are more results"));
        }
        let outcome = TestOutcome::Failed(if why.is_empty() { NO_RESULT } else { why }.to_owned());
        let missing = (due..=plan).filter(|number| !ahead.contains(number));
        let names = missing.map(|number| next.take().unwrap_or_else(|| format!("test {number} of {plan}")));
        results.add_missing(plan - expected, names, &outcome, &mut output);
        if let Some(why) = no_tests.filter(|_| plan == 0) {
            results.add(TestCase::new("", "all tests", TestOutcome::Skipped(why)));
        }
        output
    }

    /// Adds a result with this indentation. A level that is indented further is that of its tests. Without a `number`,
    /// it is the next result.
    fn end_test(&mut self, indent: usize, number: Option<u64>, mut case: TestCase, results: &mut TestResults) {
        while let [.., parent, _] = &self.levels[..]
            && parent.indent > indent
        {
            self.end_without_result(indent, results);
        }
        let tests = self.levels.pop_if(|level| level.indent > indent);
        let tap = self.tap;
        let level = self.level(indent, results);
        // KUnit prints no plan for the suites of a module.
        if !tap && number == Some(1) && level.seen > 0 && (level.plan.is_none() || level.is_complete()) {
            self.restart(results);
        }
        let level = self.level(indent, results);
        let due = level.due();
        let number = number.unwrap_or(due);
        if !level.count(number) || tap && number != due {
            results.set_problem(format!("there is result {number} instead of {due}"));
        }
        if level.plan_is_last {
            results.set_problem("the plan is neither before the results nor behind them");
        }
        level.next = None;
        if case.name.is_empty() {
            case.name = format!("test {number}");
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
                if self.enter(indent, results).is_complete() && !self.tap {
                    self.restart(results);
                }
                let tap = self.tap;
                let level = self.level(indent, results);
                level.plan_is_last = tap && level.seen > 0;
                if level.plan.is_some() {
                    results.set_problem("there is more than one plan");
                }
                level.plan = level.plan.max(Some(count));
                level.no_tests = why.map(str::to_owned);
            }
            Line::Subtest(name) => {
                let level = self.enter(indent, results);
                let is_new = level.plan.is_none() && level.seen == 0;
                *(if is_new { &mut level.name } else { &mut level.next }) = Some(name.to_owned());
            }
            Line::Result(line) => self.end_test(indent, line.number, line.case(), results),
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
