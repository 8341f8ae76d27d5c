//! Faults of a real kernel: each is found with its class, its title and its whole report, and ends the run with 123, or
//! with 120 if the kernel panics. The kernel causes them on request, by lkdtm
//! (Documentation/fault-injection/provoke-crashes.rst) and sysrq.

use super::run;
use crate::common::TempDir;
use crate::support::transcript::{lines, unstamped};
use kickvm::console::{ConsoleMonitor, FaultClasses, Rules, Verdict};
use regex_lite::Regex;
use serde_json::{Value, json};
use std::time::Duration;

/// Shell functions. What lkdtm does may kill the process that requests it, or never return.
const MEANS: &str = r#"
mount -t debugfs debugfs /sys/kernel/debug
lkdtm() { $2 sh -c "echo $1 >/sys/kernel/debug/provoke-crash/DIRECT"; }
sysctl() { echo $2 >/proc/sys/kernel/$1; }
parameter() { echo $2 >/sys/module/${1%.*}/parameters/${1#*.}; }
seen() { dmesg | grep -q "$1"; }
"#;

/// A fault, and what kickvm finds.
struct Fault {
    /// Shell commands that cause it. Without any, those of the fault before cause both.
    cause: &'static str,
    classes: &'static [&'static str],
    /// A regular expression for its title.
    title: &'static str,
    /// Regular expressions for the beginnings of the first and the last line of its report. A slow console separates
    /// what follows the call trace, unless the report has an end mark.
    report: [&'static str; 2],
}

const END: &str = r"---\[ end trace ";
const TRACE: &str = " </TASK>";
const LINE: &str = "={20}";

/// In this order: after an oops the kernel looks for no hung tasks, and after most faults for no deadlocks. The last
/// one is a panic.
#[rustfmt::skip]
const FAULTS: [Fault; 14] = [
    Fault {
        cause: "sysctl hung_task_timeout_secs 1; lkdtm HUNG_TASK & \
                until seen 'Showing all locks'; do sleep 1; done; sysctl hung_task_timeout_secs 0",
        classes: &["hung-task"],
        title: "INFO: task hung in lkdtm_HUNG_TASK",
        report: ["INFO: task sh:", " </TASK>|={20}"],
    },
    Fault {
        cause: "lkdtm SPINLOCKUP",
        classes: &["atomic"],
        title: r"BUG: (scheduling while atomic|sleeping function called from invalid context) in \w+",
        report: ["BUG: (scheduling while atomic|sleeping function called from invalid context)", TRACE],
    },
    Fault {
        cause: "",
        classes: &["lockdep"],
        title: "WARNING: lock held when returning to user space in lkdtm_SPINLOCKUP",
        report: ["WARNING: lock held when returning to user space!", " #0: "],
    },
    Fault {
        cause: "lkdtm REFCOUNT_INC_ZERO",
        classes: &["warn", "refcount"],
        title: "WARNING: refcount bug in lkdtm_REFCOUNT_INC_ZERO",
        report: ["refcount_t: addition on 0; use-after-free.", END],
    },
    Fault {
        cause: "lkdtm WARNING",
        classes: &["warn"],
        title: "WARNING in lkdtm_WARNING",
        report: [r"WARNING: CPU: 0 PID: \d+ at drivers/misc/lkdtm/bugs.c:", END],
    },
    Fault {
        cause: "lkdtm ARRAY_BOUNDS",
        classes: &["ubsan"],
        title: "UBSAN: array-index-out-of-bounds in lkdtm_ARRAY_BOUNDS",
        report: ["UBSAN: array-index-out-of-bounds in drivers/misc/lkdtm/bugs.c:", END],
    },
    Fault {
        cause: "lkdtm CORRUPT_LIST_ADD",
        classes: &["warn", "list"],
        title: "BUG: corrupted list in lkdtm_CORRUPT_LIST_ADD",
        report: ["list_add corruption. ", END],
    },
    Fault {
        cause: "lkdtm SLAB_LINEAR_OVERFLOW",
        classes: &["kasan"],
        title: "KASAN: slab-out-of-bounds Write in lkdtm_SLAB_LINEAR_OVERFLOW",
        report: [r"BUG: KASAN: slab-out-of-bounds in lkdtm_SLAB_LINEAR_OVERFLOW\+", LINE],
    },
    Fault {
        cause: "parameter kfence.sample_interval 10; lkdtm KFENCE_READ_AFTER_FREE; parameter kfence.sample_interval 0",
        classes: &["kfence"],
        title: "KFENCE: use-after-free read in lkdtm_KFENCE_READ_AFTER_FREE",
        report: [r"BUG: KFENCE: use-after-free read in lkdtm_KFENCE_READ_AFTER_FREE\+", LINE],
    },
    Fault {
        cause: "sleep 1000 & echo 1000 >/proc/$!/oom_score_adj; echo f >/proc/sysrq-trigger; wait $!",
        classes: &["oom"],
        title: r"kworker/\S+ invoked oom-killer",
        report: [r"kworker/\S+ invoked oom-killer: ", "Out of memory: Killed process "],
    },
    Fault {
        cause: "lkdtm BUG",
        classes: &["oops"],
        title: "kernel BUG in lkdtm_BUG",
        report: ["kernel BUG at drivers/misc/lkdtm/bugs.c:", END],
    },
    Fault {
        cause: "lkdtm EXEC_KMALLOC",
        classes: &["oops"],
        title: "BUG: unable to handle kernel paging request in lkdtm_EXEC_KMALLOC",
        report: ["BUG: unable to handle page fault for address: ", END],
    },
    Fault {
        // Any word with its address hides a leak, so there are more until one is found.
        cause: "until seen 'new suspected'; do lkdtm EXEC_KMALLOC; sleep 2; echo scan >/sys/kernel/debug/kmemleak; done",
        classes: &["leak"],
        title: "memory leak",
        report: [r"kmemleak: \d+ new suspected memory leaks"; 2],
    },
    Fault {
        cause: "sysctl panic_on_oops 1; lkdtm EXCEPTION",
        classes: &["oops", "kasan"],
        title: "KASAN: null-ptr-deref Write in lkdtm_EXCEPTION",
        report: [r"BUG: KASAN: null-ptr-deref in lkdtm_EXCEPTION\+", END],
    },
];

fn matches(expression: &str, text: &str) -> bool {
    Regex::new(expression).expect("it is an expression").is_match(text)
}

impl Fault {
    fn has_title(&self, fault: &Value) -> bool {
        matches(&format!("^(?:{})$", self.title), fault["title"].as_str().expect("it is text"))
    }

    /// Asserts that it is among `faults`, with its whole report and as often as on `console`.
    #[track_caller]
    fn is_among(&self, faults: &[Value], console: &str) {
        let found: Vec<_> = faults.iter().filter(|fault| self.has_title(fault)).collect();
        assert!(!found.is_empty(), "no fault '{}' in {faults:#?}", self.title);
        let [first, last] = self.report.map(|expression| format!("^(?:{expression})"));
        let is =
            |expression: &str, line: Option<&Value>| matches(expression, line.and_then(Value::as_str).unwrap_or(""));
        for fault in &found {
            assert_eq!(fault["classes"], json!(self.classes), "{fault:#}");
            // The title names a function of the report.
            if let Some(function) = fault["function"].as_str() {
                assert!(fault["title"].as_str().is_some_and(|title| title.contains(function)), "{fault:#}");
                assert!(fault["report"].to_string().contains(&format!("{function}+")), "{fault:#}");
            }
            let mut lines = fault["report"].as_array().expect("it has lines").clone();
            lines.retain(|line| !line.as_str().is_some_and(|line| line.starts_with("clocksource: "))); // a slow machine
            assert!(is(&first, lines.first()) && is(&last, lines.last()), "{fault:#}");
        }
        let count: u64 = found.iter().filter_map(|fault| fault["count"].as_u64()).sum();
        let on_console = lines(console).into_iter().filter(|line| matches(&first, unstamped(line))).count();
        assert_eq!(count, on_console as u64, "{}", self.title);
    }
}

/// The faults in a report.
fn faults(report: &Value) -> &[Value] {
    report["faults"].as_array().expect("it has faults")
}

/// How a run ends whose console has this text.
fn verdict(fail_on: FaultClasses, console: &str) -> Option<Verdict> {
    let mut monitor = ConsoleMonitor::new(&Rules { fail_on, ..Rules::default() }).expect("there is no expression");
    monitor.push(console.as_bytes());
    monitor.examine(Duration::MAX);
    monitor.finish();
    monitor.verdict().cloned()
}

/// Two boots are enough for all, because the guest survives a fault that ends no run. Whether a fault of a class would
/// have ended it with 123 is decided by the output.
#[test]
fn each_fault_has_its_class_its_title_and_its_whole_report() {
    let causes: Vec<_> = FAULTS.iter().map(|fault| fault.cause).collect();
    let job = format!("{MEANS}{}", causes.join("\n"));
    let (ended, report) =
        run(linux!(Debug).append("loglevel=8 kasan_multi_shot").options(&["--console", "virtio"]).job(&job));
    ended.assert_code(120);
    assert_eq!(lines(&ended.stderr)[0], "kickvm: the guest kernel panicked");
    let faults = faults(&report);
    FAULTS.iter().for_each(|fault| fault.is_among(faults, &ended.stdout));
    let is_known = |fault: &Value| FAULTS.iter().any(|known| known.has_title(fault));
    assert!(faults.iter().all(is_known), "{faults:#?}");
    for class in FAULTS.iter().flat_map(|fault| fault.classes) {
        let fail_on = FaultClasses::NONE.change(class).expect("it is a class");
        let why = format!("the guest kernel reported a fault (--fail-on {class}): ");
        let violated = |verdict| matches!(verdict, Verdict::RuleViolated(text) if text.starts_with(&why));
        assert!(verdict(fail_on, &ended.stdout).is_some_and(violated), "{class}");
    }
}

/// CPU 1 loops in the kernel, which is three faults. The report of a workqueue lockup delays the detection of a soft
/// lockup, and vice versa. Then CPU 0 loops without interrupts. Only that ends the run.
#[test]
fn a_cpu_that_is_stuck_has_its_title_and_ends_the_run() {
    const LOCKUPS: [Fault; 4] = [
        // The kernel prints no call trace of what keeps the worker from running.
        Fault {
            cause: "sysctl hung_task_timeout_secs 0; sysctl watchdog_thresh 6; sysctl nmi_watchdog 1
                    parameter rcupdate.rcu_cpu_stall_timeout 30; parameter workqueue.watchdog_thresh 4
                    taskset -p 1 $$; lkdtm SOFTLOCKUP 'taskset 2' &
                    until seen 'workqueue lockup'; do sleep 1; done; parameter workqueue.watchdog_thresh 0",
            classes: &["lockup"],
            title: "BUG: workqueue lockup",
            report: ["BUG: workqueue lockup - pool cpus=1 ", "Showing |workqueue |  "],
        },
        Fault {
            cause: "until seen 'soft lockup'; do sleep 1; done",
            classes: &["lockup"],
            // The function at RIP: the one that loops, or one that has interrupted it.
            title: r"BUG: soft lockup in \w+",
            report: ["watchdog: BUG: soft lockup - CPU#1 stuck for ", TRACE],
        },
        Fault {
            cause: "until seen 'rcu_.* stall'; do sleep 1; done",
            classes: &["rcu", "lockup"],
            title: r"INFO: rcu detected stall in \w+",
            report: [r"rcu: INFO: rcu_\w+ (self-)?detected stall", TRACE],
        },
        Fault {
            cause: "parameter rcupdate.rcu_cpu_stall_suppress 1; lkdtm HARDLOCKUP",
            classes: &["lockup"],
            title: "BUG: hard lockup in lkdtm_HARDLOCKUP",
            report: ["watchdog: Watchdog detected hard LOCKUP on cpu 0", TRACE],
        },
    ];
    let dir = TempDir::new();
    let known = dir.file("known", b"^INFO: rcu detected stall\nsoft lockup - CPU#1\nlockup: ^BUG: workqueue lockup");
    let options = ["--console", "virtio", "--fail-on", "lockup", "--allow", known.to_str().expect("it is text")];
    let causes: Vec<_> = LOCKUPS.iter().map(|fault| fault.cause).collect();
    let job = format!("{MEANS}{}", causes.join("\n"));
    let (ended, report) = run(linux!(Debug).cpus(2).append("loglevel=8").options(&options).job(&job));
    ended.assert_code(123);
    LOCKUPS.iter().for_each(|fault| fault.is_among(faults(&report), &ended.stdout));
    // Whatever has interrupted the loop, it is in the trace.
    for title in ["BUG: soft lockup", "INFO: rcu detected stall"] {
        let is_it = |fault: &&Value| fault["title"].as_str().is_some_and(|it| it.starts_with(title));
        let fault = faults(&report).iter().find(is_it).expect("it is among them");
        assert!(fault["report"].to_string().contains("lkdtm_SOFTLOCKUP+"), "{fault:#}");
    }
    let why = "kickvm: the guest kernel reported a fault (--fail-on lockup): watchdog: Watchdog detected hard LOCKUP \
               on cpu 0 (in lkdtm_HARDLOCKUP)";
    assert_eq!(lines(&ended.stderr)[0], why, "{}", ended.stderr);
}

/// No kernel with KASAN has these sanitizers, so a program writes their reports to the kernel's log.
#[test]
fn a_report_of_kcsan_or_kmsan_ends_the_run() {
    let race = [
        "BUG: KCSAN: data-race in reader / writer",
        "",
        "write to 0xffffffffc0001000 of 8 bytes by task 71 on cpu 0:",
        " writer+0x1d/0x30",
        " kthread+0x1b5/0x200",
        "",
        "read to 0xffffffffc0001000 of 8 bytes by task 72 on cpu 1:",
        " reader+0x10/0x20",
        "",
        "Reported by Kernel Concurrency Sanitizer on:",
        "CPU: 1 PID: 72 Comm: reader Not tainted",
    ];
    let uninitialized = [
        "BUG: KMSAN: uninit-value in user+0x1e3/0x400",
        " user+0x1e3/0x400",
        "",
        "Local variable x created at:",
        " maker+0x2a/0x60",
        "",
        "CPU: 0 PID: 73 Comm: user Not tainted",
    ];
    for (lines, class, title) in [
        (&race[..], "kcsan", "KCSAN: data-race in reader / writer"),
        (&uninitialized, "kmsan", "KMSAN: uninit-value in user"),
    ] {
        let line = "=".repeat(53);
        let text: String = [&line]
            .into_iter()
            .map(String::as_str)
            .chain(lines.iter().copied())
            .chain([line.as_str()])
            .map(|line| format!("echo '<3>{line}' >/dev/kmsg\n"))
            .collect();
        let guest = linux!(BzImage).append("loglevel=8").options(&["--fail-on", class]);
        let (ended, report) = run(guest.job(&format!("{text}sleep 1000")));
        ended.assert_code(123);
        let fault = &faults(&report)[0];
        assert_eq!((&fault["title"], &fault["classes"]), (&title.into(), &json!([class])), "{fault:#}");
        assert_eq!(fault["report"].as_array().map(Vec::len), Some(lines.len() + 1), "{fault:#}"); // and the line behind it
    }
}

/// Some requests of sysrq print call traces.
#[test]
fn a_boot_without_faults_is_clean() {
    let job = "mount -t debugfs debugfs /sys/kernel/debug
        for key in l m w; do echo $key >/proc/sysrq-trigger; done; sleep 6
        for scan in 1 2; do echo scan >/sys/kernel/debug/kmemleak; done";
    let (ended, report) = run(linux!(Debug).cpus(2).append("loglevel=8").options(&["--fail-on", "all"]).job(job));
    ended.assert(0, &[]);
    assert_eq!(faults(&report), &[] as &[Value]);
}

#[test]
fn a_reset_without_a_request_of_a_program_ends_the_run() {
    let (ended, _) = run(linux!(BzImage).append("loglevel=7").job("echo b >/proc/sysrq-trigger; sleep 1000"));
    ended.assert(
        123,
        &["kickvm: the guest reset, although no program had requested it (--fail-on reset); \
           '--fail-on -reset' accepts that"],
    );
}
