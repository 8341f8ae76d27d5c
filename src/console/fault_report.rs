//! The reports of the kernel's faults on the console: each from its first line to the end of its call trace.

use std::time::{Duration, Instant};

use super::allow_list::{AllowList, Allowed};
use super::fault_title::title;
use super::kernel_fault::FaultClasses;
use super::kernel_log::for_each_message;
use super::printk::{Origin, PANIC_BEGIN, Part};
use crate::results::floor_char_boundary;

/// Faults with different titles that are kept.
const MAX_FAULTS: usize = 64;
/// Lines of a report that are kept, and bytes of a line.
const MAX_LINES: usize = 300;
const MAX_LINE: usize = 512;
/// Reports of different callers that are open at the same time.
const MAX_OPEN: usize = 8;
/// The time between two messages of the kernel, by its own clock in microseconds, after which they are no longer of the
/// same report. On a slow console, a call trace of a debug kernel takes seconds.
const MAX_GAP: u64 = 5_000_000;
/// The silence by which a report is complete that does not lack its end.
const SILENCE: Duration = Duration::from_millis(500);
/// The time after which a report ends although the kernel continues to print.
const MAX_AGE: Duration = Duration::from_secs(20);
/// How long the kernel's log is examined.
const LOG_TIME: Duration = Duration::from_millis(500);
/// How a CPU requests the call traces of others, and how each of these begins and ends (lib/nmi_backtrace.c). They are
/// printed one after the other.
const TRACE_REQUEST: &str = "Sending NMI from CPU ";
const TRACE_BEGIN: &str = "NMI backtrace for cpu ";
const TRACE_END: &str = "</TASK>";
/// How KASAN reports an access to an address without memory of the kernel. The processor reports it, too.
const BAD_ADDRESS: [&str; 3] =
    ["BUG: KASAN: null-ptr-deref", "BUG: KASAN: user-memory-access", "BUG: KASAN: wild-memory-access"];
/// How the only report of lockdep begins that ends with a list of locks (kernel/locking/lockdep.c).
const LOCKS_HELD: &str = "WARNING: lock held when returning to user space";

/// A fault that the kernel has reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happened, and where.
    pub title: String,
    /// Its classes; none for a panic.
    pub classes: FaultClasses,
    /// The function in which it happened.
    pub function: Option<String>,
    /// How many reports have this title.
    pub count: u32,
    /// Whether an entry of `--allow` permits it.
    pub allowed: bool,
    /// The lines of the first report, without the kernel's prefixes.
    pub lines: Vec<String>,
}

/// A report that may continue.
#[derive(Debug)]
struct Open {
    caller: String,
    requests_traces: bool,
    /// The CPU that prints its call trace for this report.
    traced: Option<String>,
    time: u64,
    since: Instant,
    classes: FaultClasses,
    has_trace: bool,
    /// A call trace has begun, or was requested, and has not ended.
    in_trace: bool,
    lines: Vec<String>,
}

/// Collects the reports.
#[derive(Debug, Default)]
pub(super) struct FaultReports {
    fail_on: FaultClasses,
    allow: AllowList,
    open: Vec<Open>,
    faults: Vec<Fault>,
    /// Faults that were not kept.
    pub omitted: u32,
    /// Why the run fails.
    pub violation: Option<String>,
}

impl FaultReports {
    /// Faults of the classes `fail_on` fail the run, unless `allow` permits them.
    pub fn new(fail_on: FaultClasses, allow: AllowList) -> Self {
        Self { fail_on, allow, ..Self::default() }
    }

    /// Examines a part of a console line.
    pub fn add(&mut self, part: &Part<'_>) {
        if part.origin == Origin::Program {
            return;
        }
        let classes = FaultClasses::of_message(part.text);
        let panics = part.text.contains(PANIC_BEGIN) && !part.text.starts_with("---");
        let begins = classes != FaultClasses::NONE || panics;
        if part.text.starts_with(TRACE_BEGIN)
            && let Some(open) = self.open.iter_mut().find(|open| open.requests_traces && open.caller != part.caller)
        {
            open.traced = Some(part.caller.to_owned());
        }
        let traced = self.open.iter().position(|open| open.traced.as_deref() == Some(part.caller));
        if let Some(at) = traced.or_else(|| self.open.iter().position(|open| open.caller == part.caller)) {
            let open = &mut self.open[at];
            if part.time > 0 && part.time == open.time && open.lines.first().is_some_and(|first| first == part.text) {
                return; // a part of a long line that repeats the end of the one before
            }
            let late = part.time > open.time.saturating_add(MAX_GAP) || open.since.elapsed() > MAX_AGE;
            if !late && !open.ended_before(part.text) && (!begins || panics || open.continues_with(part.text, classes))
            {
                open.add(part, classes);
                if open.ends_with(part.text) {
                    self.close(at);
                }
                return;
            }
            self.close(at);
        }
        if begins && !(panics && self.is_consequence(part.text)) {
            if self.open.len() == MAX_OPEN {
                self.close(0);
            }
            let (caller, time, since) = (part.caller.to_owned(), part.time, Instant::now());
            let (requests_traces, traced, has_trace, in_trace, lines) = (false, None, false, false, Vec::new());
            let mut open = Open { caller, requests_traces, traced, time, since, classes, has_trace, in_trace, lines };
            open.add(part, classes);
            let ends = open.ends_with(part.text);
            self.open.push(open);
            if ends {
                self.close(self.open.len() - 1);
            }
        }
    }

    /// The silence by which all reports are complete; `None` if they are.
    pub fn silence(&self) -> Option<Duration> {
        let silence = |open: &Open| if open.lacks_end() { Duration::from_micros(MAX_GAP) } else { SILENCE };
        self.open.iter().map(silence).max()
    }

    /// No report continues.
    pub fn close_all(&mut self) {
        while !self.open.is_empty() {
            self.close(0);
        }
    }

    /// The faults whose reports are complete, in the order of their first reports.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Adds the faults of the kernel's log. Of those that the console has shown, too, the log has the whole report.
    /// Returns the number of records that the log lacks, or `None` if there was no time for all.
    pub fn add_kernel_log(&mut self, records: &[u8]) -> Option<u64> {
        let mut log = Self::new(self.fail_on, std::mem::take(&mut self.allow));
        let overwritten = for_each_message(records, Instant::now() + LOG_TIME, |part| log.add(part));
        log.close_all();
        self.violation = self.violation.take().or(log.violation);
        self.allow = log.allow;
        for fault in self.faults.drain(..) {
            let first = fault.lines.first();
            let is_known = log.faults.iter().any(|known| known.lines.iter().any(|line| Some(line) == first));
            match log.faults.iter_mut().find(|known| known.title == fault.title) {
                Some(known) => known.count = known.count.max(fault.count),
                None if is_known => {}
                None => log.faults.push(fault),
            }
        }
        (self.faults, self.omitted) = (log.faults, log.omitted.max(self.omitted));
        overwritten
    }

    /// Whether faults of `classes` fail the run.
    pub fn fails_on(&self, classes: FaultClasses) -> bool {
        self.fail_on.intersects(classes)
    }

    /// The entries of the list of permitted faults that no fault has matched.
    pub fn unused(&self) -> impl Iterator<Item = &Allowed> {
        self.allow.unused()
    }

    /// The kernel panics because of a fault whose report is complete.
    fn is_consequence(&self, text: &str) -> bool {
        const CAUSES: [&str; 6] =
            ["Fatal exception", "hung_task: ", "softlockup: ", "RCU Stall", "Hard LOCKUP", "panic_on"];
        let cause = text.split_once(PANIC_BEGIN).map_or("", |(_, cause)| cause.trim_start_matches([':', ' ']));
        !self.faults.is_empty() && (CAUSES.iter().any(|begin| cause.starts_with(begin)) || cause.contains("panic_on_"))
    }

    fn close(&mut self, at: usize) {
        let Open { classes, lines, .. } = self.open.remove(at);
        let first = lines.first().map_or("", String::as_str);
        let (title, function) = title(&lines, classes);
        // By the class of the first line: a report of another class may have a WARNING, too.
        let allowed = self.allow.permits(FaultClasses::of_message(first), [title.as_str(), first]);
        let failed = classes & self.fail_on;
        if failed != FaultClasses::NONE && !allowed && self.violation.is_none() {
            let place = function.as_deref().filter(|function| !first.contains(function));
            let place = place.map_or(String::new(), |function| format!(" (in {function})"));
            self.violation = Some(format!("the guest kernel reported a fault (--fail-on {failed}): {first}{place}"));
        }
        if let Some(known) = self.faults.iter_mut().find(|fault| fault.title == title) {
            known.count = known.count.saturating_add(1);
            known.classes = known.classes | classes;
            known.allowed &= allowed;
        } else if self.faults.len() == MAX_FAULTS {
            self.omitted = self.omitted.saturating_add(1);
        } else {
            self.faults.push(Fault { title, classes, function, count: 1, allowed, lines });
        }
    }
}

impl Open {
    fn add(&mut self, part: &Part<'_>, classes: FaultClasses) {
        self.time = part.time;
        self.classes = self.classes | classes;
        self.has_trace |= is_trace(part.text);
        self.requests_traces |= part.text.starts_with(TRACE_REQUEST);
        if is_trace(part.text) || part.text.starts_with(TRACE_REQUEST) {
            self.in_trace = true;
        } else if part.text.trim() == TRACE_END || part.text.contains(" skipped: idling") {
            (self.in_trace, self.traced) = (false, None);
        }
        if self.lines.len() < MAX_LINES {
            let end = floor_char_boundary(part.text, MAX_LINE);
            self.lines.push(part.text[..end].trim_end().to_owned());
        }
    }

    /// Whether this message about a fault belongs to this report.
    fn continues_with(&self, text: &str, classes: FaultClasses) -> bool {
        use FaultClasses as F;
        let after = |own: F, messages: &[&str]| {
            self.classes.intersects(own) && messages.iter().any(|message| text.starts_with(message))
        };
        self.is_bad_access() && classes.intersects(F::OOPS)
            || after(F::OOPS, &["Oops: "])
            || after(F::OOM, &["Out of memory: ", "Memory cgroup out of memory: "]) && !text.contains("invoked")
            || after(F::RCU, &["rcu: rcu_"])
            || !self.has_trace && after(F::REFCOUNT | F::LIST | F::LOCKDEP, &["WARNING: ", "kernel BUG at "])
            || !self.has_trace
                && after(F::OOPS | F::LIST | F::KASAN, &["Oops: ", "invalid opcode", "general protection"])
    }

    /// Whether the rest of this report, which is open, must still come.
    fn lacks_end(&self) -> bool {
        use FaultClasses as F;
        self.in_trace || self.classes.intersects(F::OOPS | F::WARN | F::KASAN | F::KFENCE | F::UBSAN)
    }

    /// KASAN has reported an access that the processor is about to report.
    fn is_bad_access(&self) -> bool {
        let first = self.lines.first().filter(|_| !self.classes.intersects(FaultClasses::OOPS));
        first.is_some_and(|first| BAD_ADDRESS.iter().any(|begin| first.starts_with(begin)))
    }

    /// Whether the last line has ended this report, because `text` follows it.
    fn ended_before(&self, text: &str) -> bool {
        let is_lock = |text: &str| text.starts_with(" #");
        let ended = self.lines.last().is_some_and(|last| is_lock(last)) && !is_lock(text);
        ended && self.lines[0].starts_with(LOCKS_HELD)
    }

    /// Whether its last line, `text`, ends this report.
    fn ends_with(&self, text: &str) -> bool {
        use FaultClasses as F;
        // These have no end mark, and are printed by a task, which may print other messages next.
        let ends_with_trace = F::LOCKDEP | F::ATOMIC;
        let ends_with_trace = self.classes.intersects(ends_with_trace)
            && self.classes | ends_with_trace | F::RCU == ends_with_trace | F::RCU;
        text.starts_with("---[ end ")
            || text.len() >= 20 && text.bytes().all(|byte| byte == b'=') && !self.is_bad_access()
            || self.classes.intersects(F::OOM) && text.contains("Killed process ")
            || self.classes == F::LEAK
            || self.classes == F::TAINT
            || ends_with_trace && text.trim() == TRACE_END
    }
}

fn is_trace(text: &str) -> bool {
    text.trim_start().get(..10).is_some_and(|begin| begin.eq_ignore_ascii_case("call trace"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::printk::Printk;

    fn reports(log: &str) -> FaultReports {
        let (mut printk, mut reports) = (Printk::default(), FaultReports::default());
        log.lines().for_each(|line| printk.split(line, |part| reports.add(part)));
        reports.close_all();
        reports
    }

    /// The titles, with the number of lines and of reports.
    fn seen(log: &str) -> Vec<(String, usize, u32)> {
        reports(log).faults().iter().map(|it| (it.title.clone(), it.lines.len(), it.count)).collect()
    }

    #[test]
    fn a_report_ends_with_its_mark_a_gap_or_the_next_fault() {
        const WARN: &str = "[    1.000000] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2\n[    1.000001] Call Trace:\n";
        let warn = |lines, count| ("WARNING in f".to_owned(), lines, count);
        for (after, expected) in [
            ("[    1.000002] ---[ end trace 0 ]---\n[    1.000003] x", vec![warn(3, 1)]),
            ("[    6.500000] x", vec![warn(2, 1)]),
            (
                "[    1.000002]  f+0x1/0x2\n[    1.000003] BUG: KFENCE: x in g+0x1/0x2",
                vec![warn(3, 1), ("KFENCE: x in g".into(), 1, 1)],
            ),
            ("[    1.500000] WARNING: CPU: 1 PID: 1 at x.c:1 f+0x1/0x2", vec![warn(2, 2)]),
            (
                "[    1.000002] kmemleak: 1 new suspected memory leaks\n[    1.000003] x",
                vec![warn(2, 1), ("memory leak".into(), 1, 1)],
            ),
        ] {
            assert_eq!(seen(&format!("{WARN}{after}")), expected, "{after}");
        }
    }

    #[test]
    fn messages_that_belong_together_are_one_report() {
        for (log, title) in [
            (
                "refcount_t: x.\nWARNING: CPU: 0 at lib/refcount.c:28 refcount_warn_saturate+0x1/0x2",
                "WARNING: refcount bug",
            ),
            (
                "list_add corruption. x\nkernel BUG at lib/list_debug.c:29!\nOops: invalid opcode: 0000 [#1]",
                "BUG: corrupted list",
            ),
            (
                "BUG: kernel NULL pointer dereference, address: 0\nOops: 0002 [#1]",
                "BUG: unable to handle kernel NULL pointer dereference",
            ),
            ("sh invoked oom-killer: x\nMem-Info:\nOut of memory: Killed process 1 (sh) x", "sh invoked oom-killer"),
            (
                "rcu: INFO: rcu_preempt self-detected stall on CPU\nrcu: rcu_preempt kthread starved",
                "INFO: rcu detected stall",
            ),
            ("BUG: x\nOops: 0\n---[ end trace 0 ]---\nKernel panic - not syncing: Fatal exception", "BUG: x"),
        ] {
            let seen = seen(log);
            assert_eq!((seen.len(), seen[0].0.as_str()), (1, title), "{seen:?}");
        }
    }

    #[test]
    fn callers_have_reports_of_their_own() {
        let line = |caller, text: &str| format!("[    1.000000][{caller:>5}] {text}\n");
        let log = [
            line("T1", "BUG: KASAN: a in f+0x1/0x2"),
            line("C1", "BUG: soft lockup - CPU#1"),
            line("T1", "Read of size 4"),
            line("C1", "RIP: 0010:g+0x1/0x2"),
        ];
        assert_eq!(seen(&log.concat()), [("KASAN: a Read in f".into(), 2, 1), ("BUG: soft lockup in g".into(), 2, 1)]);
    }

    /// Reports of Linux 6.12 with printk's caller IDs, without most registers.
    #[test]
    fn a_real_report_is_whole_and_ends_where_the_kernel_ends_it() {
        const HARD_LOCKUP: &str = include_str!("fixtures/hard-lockup.log");
        const RCU_STALL: &str = include_str!("fixtures/rcu-stall.log");
        const KASAN_NULL: &str = include_str!("fixtures/kasan-null.log");
        const HELD_LOCK: &str = include_str!("fixtures/held-lock.log");
        const LOCK: &str = " #0: ffffffff823a4c98 (lock_me_up){+.+.}-{2:2}, at: lkdtm_SPINLOCKUP+0x10/0x20";
        for (log, expected) in [
            // The CPU that detects it requests the call trace of the one that is stuck.
            (HARD_LOCKUP, &[("BUG: hard lockup in lkdtm_HARDLOCKUP", 22, " </TASK>")][..]),
            (RCU_STALL, &[("INFO: rcu detected stall in lkdtm_HARDLOCKUP", 21, "rcu: rcu_sched kthread starved")]),
            // KASAN reports the access, and then the processor. The panic is a consequence.
            (KASAN_NULL, &[("KASAN: null-ptr-deref Write in lkdtm_EXCEPTION", 45, "---[ end trace ")]),
            // Without an end mark. The messages that follow are of the same task.
            (
                HELD_LOCK,
                &[
                    ("WARNING: lock held when returning to user space in lkdtm_SPINLOCKUP", 6, LOCK),
                    ("BUG: scheduling while atomic in irqentry_exit_to_user_mode", 15, " </TASK>"),
                ],
            ),
        ] {
            let reports = reports(log);
            let seen: Vec<_> = reports.faults().iter().map(|it| (it.title.as_str(), it.lines.len())).collect();
            assert_eq!(seen, expected.iter().map(|(title, lines, _)| (*title, *lines)).collect::<Vec<_>>());
            for (fault, (.., last)) in reports.faults().iter().zip(expected) {
                assert!(fault.count == 1 && fault.lines[fault.lines.len() - 1].starts_with(last), "{fault:#?}");
            }
        }
    }

    #[test]
    fn a_requested_call_trace_interrupts_the_report_of_its_cpu() {
        let line = |caller: &str, text: &str| format!("[    1.000000][{caller:>5}] {text}\n");
        let log = [
            line("C1", "watchdog: BUG: soft lockup - CPU#1"),
            line("C0", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"),
            line("C0", "Sending NMI from CPU 0 to CPUs 1-2:"),
            line("C2", "NMI backtrace for cpu 2 skipped: idling at x+0x1/0x2"),
            line("C2", "of another interrupt"),
            line("C1", "NMI backtrace for cpu 1"),
            line("C1", "RIP: 0010:f+0x1/0x2"),
            line("C1", " </TASK>"),
            line("C1", "RIP: 0010:g+0x1/0x2"),
        ];
        let seen = seen(&log.concat());
        assert_eq!(seen[0], ("BUG: soft lockup in g".into(), 2, 1), "{seen:?}");
        assert_eq!((seen[1].1, seen.len()), (6, 2), "{seen:?}");
        let reports = |lines: usize| {
            let (mut printk, mut reports) = (Printk::default(), FaultReports::default());
            log[..lines].iter().for_each(|line| printk.split(line.trim_end(), |part| reports.add(part)));
            reports.silence()
        };
        let long = Some(Duration::from_micros(MAX_GAP));
        assert_eq!([0, 2, 3, 4].map(reports), [None, Some(SILENCE), long, Some(SILENCE)]);
    }

    #[test]
    fn the_kernels_log_adds_what_the_console_has_not_shown() {
        let mut shown = reports("BUG: a\n---[ end trace 0 ]---\nUBSAN: b in c.c:1\nOops: 0");
        let log = "6,3,100,-;BUG: a\n4,4,200,-;WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2\n3,5,300,-;UBSAN: b in c.c:1\n\
                   6,6,400,-;Call Trace:\n6,7,400,-; g+0x1/0x2\n12,8,400,-;BUG: of a program";
        assert_eq!(shown.add_kernel_log(log.as_bytes()), Some(3));
        let titles: Vec<_> = shown.faults().iter().map(|fault| fault.title.as_str()).collect();
        assert_eq!(titles, ["BUG: a", "WARNING in f", "UBSAN: b in g", "Oops"]);
    }

    #[test]
    fn endless_reports_take_bounded_memory() {
        let lines: String =
            (0..1000).map(|n| format!("BUG: fault {n} {}\n{}", "x".repeat(900), "y\n".repeat(2))).collect();
        let reports = reports(&lines);
        assert_eq!((reports.faults().len(), reports.omitted), (MAX_FAULTS, 936));
        assert!(reports.faults().iter().all(|fault| fault.lines[0].len() <= MAX_LINE && fault.title.len() <= MAX_LINE));
        let one = format!("BUG: x\n{}", "y\n".repeat(1000));
        assert_eq!(seen(&one)[0].1, MAX_LINES);
    }

    #[test]
    fn a_log_cut_at_any_byte_is_no_failure_that_the_whole_log_does_not_have() {
        let log = "[    0.000000] Linux version 6\n[    1.000000] é BUG: x\n[    1.000001] UBSAN: a in b.c:1\n";
        let violation = |log: &str| {
            let (mut printk, mut reports) =
                (Printk::default(), FaultReports::new(FaultClasses::CI, AllowList::default()));
            log.lines().for_each(|line| printk.split(line, |part| reports.add(part)));
            reports.close_all();
            reports.violation
        };
        assert!(violation(log).is_some_and(|why| why.ends_with("UBSAN: a in b.c:1")));
        for cut in (0..log.len()).filter(|cut| log.is_char_boundary(*cut)) {
            let fault = violation(&log[..cut]);
            assert_eq!(fault.is_some(), cut >= log.find("UBSAN: ").unwrap() + "UBSAN: ".len(), "{cut}: {fault:?}");
        }
    }
}
