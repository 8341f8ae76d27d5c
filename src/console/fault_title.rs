//! Titles for the kernel's faults, as syzkaller gives them: what happened, and the function in which it happened.

use super::kernel_fault::FaultClasses as F;

/// How the first line of a report begins, and the title without the function. The first that matches counts.
#[rustfmt::skip]
const TITLES: [(&str, &str); 31] = [
    ("BUG: kernel NULL pointer dereference", "BUG: unable to handle kernel NULL pointer dereference"),
    ("BUG: unable to handle kernel NULL", "BUG: unable to handle kernel NULL pointer dereference"),
    ("BUG: unable to handle ", "BUG: unable to handle kernel paging request"),
    ("Oops: general protection fault", "general protection fault"),
    ("general protection fault", "general protection fault"),
    ("Oops: invalid opcode", "invalid opcode"),
    ("Oops: divide error", "divide error"),
    ("Oops: stack segment", "stack segment fault"),
    ("Oops: int3", "int3"),
    ("Oops: ", "Oops"),
    ("kernel BUG at lib/list_debug.c", "BUG: corrupted list"),
    ("kernel BUG at ", "kernel BUG"),
    ("list_", "BUG: corrupted list"),
    ("refcount_t: ", "WARNING: refcount bug"),
    ("BUG: sleeping function called", "BUG: sleeping function called from invalid context"),
    ("BUG: scheduling while atomic", "BUG: scheduling while atomic"),
    ("BUG: workqueue leaked", "BUG: workqueue leaked lock or atomic"),
    ("BUG: workqueue lockup", "BUG: workqueue lockup"),
    ("BUG: soft lockup", "BUG: soft lockup"),
    ("watchdog: BUG: soft lockup", "BUG: soft lockup"),
    ("watchdog: ", "BUG: hard lockup"),
    ("NMI watchdog: ", "BUG: hard lockup"),
    ("rcu: ", "INFO: rcu detected stall"),
    ("INFO: rcu_", "INFO: rcu detected stall"),
    ("INFO: task ", "INFO: task hung"),
    ("INFO: trying to register", "INFO: trying to register non-static key"),
    ("DEBUG_LOCKS_WARN_ON", "WARNING: locking bug"),
    ("kmemleak: ", "memory leak"),
    ("WARNING: CPU", "WARNING"),
    ("Memory cgroup out of memory", "out of memory"),
    ("Out of memory", "out of memory"),
];

/// Reports of lockdep about two locks, without the decoration of older kernels.
const DEADLOCKS: [&str; 5] = ["possible circular", "possible recursive", "possible irq lock", "HARDIRQ-", "SOFTIRQ-"];

/// How the names of functions begin that report a fault, or in which a sanitizer found it on behalf of their caller.
const REPORTERS: [&str; 34] = [
    "__asan_",
    "__bad_area",
    "__dump_",
    "__kasan",
    "__kcsan",
    "__kfence",
    "__list_add_",
    "__list_del_",
    "__might_",
    "__mem",
    "__msan_",
    "__schedule_bug",
    "__tsan_",
    "__ubsan",
    "__warn",
    "check_memory_region",
    "debug_check_no_",
    "dump_",
    "handle_bug",
    "kasan_",
    "kcsan_",
    "kfence_",
    "kmsan_",
    "lockdep_",
    "memcpy",
    "memmove",
    "memset",
    "oops_",
    "panic",
    "print_",
    "refcount_",
    "report_bug",
    "show_",
    "ubsan_",
];
/// How the names of functions begin that wait, or take a lock, on behalf of their caller.
const WAITERS: [&str; 26] = [
    "__cond_resched",
    "__down",
    "__flush_work",
    "__lock_acquire",
    "__mutex",
    "__raw_",
    "__rt_mutex",
    "__schedule",
    "__switch_to",
    "__wait",
    "_raw_",
    "do_wait_for",
    "down_",
    "io_schedule",
    "lock_",
    "mutex_",
    "native_",
    "preempt_schedule",
    "pv_",
    "queued_",
    "rcu_",
    "rwsem_",
    "schedule",
    "synchronize_",
    "wait_for",
    "wait_on",
];

/// Returns the title of the fault of `classes` whose report has these `lines`, and its function.
pub(super) fn title(lines: &[String], classes: F) -> (String, Option<String>) {
    let first = lines.first().map_or("", String::as_str);
    let function = function(lines, classes).map(str::to_owned);
    let plain = first.trim_start_matches("[ ").trim_end_matches(" ]");
    let locking = plain.strip_prefix("WARNING: ").or(plain.strip_prefix("INFO: ")).unwrap_or(plain);
    let what = if let Some((_, panic)) = first.split_once("Kernel panic - not syncing: ") {
        return (format!("kernel panic: {panic}"), function);
    } else if let Some(what) = sanitizer(lines, classes) {
        what
    } else if classes.intersects(F::LOCKDEP) && DEADLOCKS.iter().any(|begin| locking.starts_with(begin)) {
        "possible deadlock".to_owned()
    } else if let Some((_, what)) = TITLES.iter().find(|(begin, _)| first.starts_with(begin)) {
        (*what).to_owned()
    } else if classes.intersects(F::WARN) && symbol(first).is_some() {
        "WARNING".to_owned()
    } else if let Some((task, _)) = plain.split_once(" invoked oom-killer: ") {
        format!("{task} invoked oom-killer")
    } else {
        plain.trim_end_matches(['!', '.', ':', ' ']).to_owned()
    };
    match (&function, killed(first)) {
        (_, Some(process)) => (format!("{what}: {process} was killed"), function),
        (Some(name), _) if !what.contains(" / ") => (format!("{what} in {name}"), function),
        _ => (what, function),
    }
}

/// What a sanitizer found: "KASAN: slab-out-of-bounds Read".
fn sanitizer(lines: &[String], classes: F) -> Option<String> {
    let first = lines.first()?;
    if !classes.intersects(F::KASAN | F::KFENCE | F::KMSAN | F::KCSAN | F::UBSAN) {
        return None;
    }
    let what = first.strip_prefix("BUG: ").unwrap_or(first);
    if what.starts_with("KCSAN: ") {
        // Two functions race: "data-race in a / b".
        let words = what.split(' ').map(|word| symbol(word).unwrap_or(word)).collect::<Vec<_>>();
        return Some(words.join(" "));
    }
    let what = what.split_once(" in ").map_or(what, |(what, _)| what);
    let access = ["Read", "Write"].into_iter().find(|access| {
        what.starts_with("KASAN") && lines.iter().take(4).any(|line| line.starts_with(&format!("{access} of size ")))
    });
    Some(access.map_or(what.to_owned(), |access| format!("{what} {access}")))
}

/// The name in "Out of memory: Killed process 77 (name) …".
fn killed(first: &str) -> Option<&str> {
    let (_, name) = first.split_once("Killed process ")?.1.split_once(" (")?;
    Some(name.split_once(") total-vm").or(name.split_once("), ")).map_or(name, |(name, _)| name))
}

/// The function in which a fault happened: in the first line, at the instruction pointer, or the first in the call
/// trace that does not act on behalf of its caller.
fn function(lines: &[String], classes: F) -> Option<&str> {
    if classes.intersects(F::OOM | F::LEAK | F::TAINT) {
        return None;
    }
    let is_one_of = |begins: &[&str], name: &str| begins.iter().any(|begin| name.starts_with(begin));
    let waits = classes.intersects(F::HUNG_TASK | F::RCU | F::LOCKUP | F::ATOMIC | F::LOCKDEP);
    let acts = |name: &&str| !(is_one_of(&REPORTERS, name) || waits && is_one_of(&WAITERS, name));
    let locks = lines.iter().filter(|line| classes.intersects(F::LOCKDEP) && line.contains(", at: "));
    // The addresses before the call trace are those of earlier events.
    let is_trace = |line: &String| line.trim_start().to_ascii_lowercase().starts_with("call trace:");
    let only_trace = classes.intersects(F::HUNG_TASK | F::ATOMIC | F::UBSAN);
    let from = if only_trace { lines.iter().position(is_trace).unwrap_or(lines.len()) } else { 0 };
    let unreliable =
        |line: &&String| line.trim_start().starts_with("? ") || line.contains("abled at ") || line.contains(", at: ");
    let trace = lines[from..].iter().filter(|line| !unreliable(line));
    locks.chain(trace).filter_map(|line| symbol(line)).find(acts)
}

/// The function of an address such as "f+0x12/0x34" in a line.
fn symbol(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("+0x")?;
    after.split_once(|c: char| !c.is_ascii_hexdigit()).filter(|(_, rest)| rest.starts_with("0x"))?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    let name = before.char_indices().rfind(|(_, c)| !is_name(*c)).map_or(0, |(at, c)| at + c.len_utf8());
    let name = &before[name..];
    // A clone that the compiler made: "f.isra.0".
    Some(name.split('.').next().unwrap_or(name)).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The title of a report, in which `@` is the rest of an address and `|` the end of a line.
    fn of(report: &str) -> String {
        let report = report.replace('@', "+0x1/0x2");
        let lines: Vec<_> = report.split('|').map(str::to_owned).collect();
        let classes = lines.iter().fold(F::NONE, |all, line| all | F::of_message(line));
        title(&lines, classes).0
    }

    #[test]
    fn a_title_has_the_fault_and_its_function() {
        for (report, title) in [
            (
                "BUG: kernel NULL pointer dereference, address: 0|Oops: 0002 [#1]|RIP: 0010:f.isra.0@|\
                 Call Trace:| g@",
                "BUG: unable to handle kernel NULL pointer dereference in f",
            ),
            (
                "BUG: unable to handle page fault for address: ff|RIP: 0010:f@ [mod]",
                "BUG: unable to handle kernel paging request in f",
            ),
            ("Oops: general protection fault, probably for x: 0000 [#1]|RIP: 0010:f@", "general protection fault in f"),
            ("kernel BUG at mm/slub.c:379!|RIP: 0010:f@", "kernel BUG in f"),
            ("WARNING: CPU: 0 PID: 1 at kernel/x.c:3 f@", "WARNING in f"),
            ("WARNING: kernel/x.c:3 at f@, CPU#0: sh/77", "WARNING in f"),
            (
                "refcount_t: underflow; use-after-free.|\
                 WARNING: CPU: 0 PID: 1 at lib/refcount.c:28 refcount_warn_saturate@|\
                 RIP: 0010:refcount_warn_saturate@|Call Trace:| <TASK>| ? __warn@| f@",
                "WARNING: refcount bug in f",
            ),
            (
                "list_add corruption. next->prev should be prev|kernel BUG at lib/list_debug.c:29!|\
                 RIP: 0010:__list_add_valid_or_report@|Call Trace:| f@",
                "BUG: corrupted list in f",
            ),
            (
                "BUG: KASAN: slab-out-of-bounds in f@|Write of size 8 at addr ff by task sh/1",
                "KASAN: slab-out-of-bounds Write in f",
            ),
            (
                "BUG: KASAN: use-after-free in memcpy@|Read of size 8|Call Trace:| dump_stack_lvl@| memcpy@| f@",
                "KASAN: use-after-free Read in f",
            ),
            ("BUG: KFENCE: use-after-free read in f@", "KFENCE: use-after-free read in f"),
            ("BUG: KCSAN: data-race in f@ / g@", "KCSAN: data-race in f / g"),
            (
                "UBSAN: array-index-out-of-bounds in lib/x.c:3:4|Call Trace:| dump_stack_lvl@|\
                  __ubsan_handle_out_of_bounds@| f@",
                "UBSAN: array-index-out-of-bounds in f",
            ),
            (
                "WARNING: possible circular locking dependency detected|sh/1 is trying to acquire lock:|\
                 ff (a){+.+.}-{3:3}, at: f@|but task is already holding lock:|ff (b){+.+.}-{3:3}, at: g@",
                "possible deadlock in f",
            ),
            ("[ INFO: possible recursive locking detected ]|(a), at: [<ff>] f@", "possible deadlock in f"),
            ("BUG: Invalid wait context ]", "BUG: Invalid wait context"),
            ("[ BUG: Invalid wait context ]", "BUG: Invalid wait context"),
            (
                "WARNING: suspicious RCU usage|Call Trace:| dump_stack@| lockdep_rcu_suspicious@| f@",
                "WARNING: suspicious RCU usage in f",
            ),
            (
                "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]|\
                 hardirqs last  enabled at (1): [<ff>] g@|RIP: 0010:f@",
                "BUG: soft lockup in f",
            ),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU|RIP: 0010:f@", "INFO: rcu detected stall in f"),
            (
                "INFO: task sh:77 blocked for more than 5 seconds.|Call Trace:| <TASK>| __schedule@| schedule@| f@",
                "INFO: task hung in f",
            ),
            (
                "BUG: sleeping function called from invalid context at x.c:1|[<ff>] g@|Call Trace:|\
                  __might_resched@| f@",
                "BUG: sleeping function called from invalid context in f",
            ),
            ("kmemleak: 3 new suspected memory leaks (see /sys)", "memory leak"),
            ("sh invoked oom-killer: gfp_mask=0x0", "sh invoked oom-killer"),
            ("Out of memory: Killed process 77 (my job) total-vm:1kB", "out of memory: my job was killed"),
            ("x: loading out-of-tree module taints kernel.", "x: loading out-of-tree module taints kernel"),
            ("Kernel panic - not syncing: VFS: x|Call Trace:| dump_stack@| panic@| f@", "kernel panic: VFS: x"),
            ("BUG: |+0x@ a.+0x1/0x é@", "BUG"),
            ("BUG: x|é@ \u{fffd}f@|\u{fffd}f@", "BUG: x in f"),
            ("", ""),
        ] {
            assert_eq!(of(report), title, "{report}");
        }
    }
}
