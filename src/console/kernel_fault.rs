//! The faults that Linux reports on its console, by class.

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// A set of classes of kernel faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultClasses(u32);

/// Each class and its name, as `--fail-on` takes it.
const CLASSES: [(&str, FaultClasses); 18] = [
    ("oops", FaultClasses::OOPS),
    ("warn", FaultClasses::WARN),
    ("kasan", FaultClasses::KASAN),
    ("kfence", FaultClasses::KFENCE),
    ("kmsan", FaultClasses::KMSAN),
    ("kcsan", FaultClasses::KCSAN),
    ("ubsan", FaultClasses::UBSAN),
    ("lockdep", FaultClasses::LOCKDEP),
    ("rcu", FaultClasses::RCU),
    ("refcount", FaultClasses::REFCOUNT),
    ("list", FaultClasses::LIST),
    ("atomic", FaultClasses::ATOMIC),
    ("lockup", FaultClasses::LOCKUP),
    ("hung-task", FaultClasses::HUNG_TASK),
    ("oom", FaultClasses::OOM),
    ("leak", FaultClasses::LEAK),
    ("taint", FaultClasses::TAINT),
    ("reset", FaultClasses::RESET),
];

/// The names of groups of classes.
const GROUPS: [(&str, FaultClasses); 3] =
    [("all", FaultClasses::ALL), ("default", FaultClasses::CI), ("hung", FaultClasses::HUNG_TASK)];

impl FaultClasses {
    /// No class.
    pub const NONE: Self = Self(0);
    /// An access or instruction that the kernel cannot handle, or a `BUG`.
    pub const OOPS: Self = Self(1);
    /// A `WARN_ON`.
    pub const WARN: Self = Self(1 << 1);
    /// The Kernel Address Sanitizer (Documentation/dev-tools/kasan.rst).
    pub const KASAN: Self = Self(1 << 2);
    /// The Kernel Electric Fence (Documentation/dev-tools/kfence.rst).
    pub const KFENCE: Self = Self(1 << 3);
    /// The Kernel Memory Sanitizer (Documentation/dev-tools/kmsan.rst).
    pub const KMSAN: Self = Self(1 << 4);
    /// The Kernel Concurrency Sanitizer (Documentation/dev-tools/kcsan.rst).
    pub const KCSAN: Self = Self(1 << 5);
    /// The Undefined Behaviour Sanitizer (lib/ubsan.c).
    pub const UBSAN: Self = Self(1 << 6);
    /// The validator of locks (kernel/locking/lockdep.c).
    pub const LOCKDEP: Self = Self(1 << 7);
    /// A stall of RCU, or its wrong use (kernel/rcu).
    pub const RCU: Self = Self(1 << 8);
    /// A reference count that over- or underflows (lib/refcount.c).
    pub const REFCOUNT: Self = Self(1 << 9);
    /// A corrupt list (lib/list_debug.c).
    pub const LIST: Self = Self(1 << 10);
    /// Sleeping or scheduling in an atomic context (kernel/sched/core.c).
    pub const ATOMIC: Self = Self(1 << 11);
    /// A processor that is stuck: a soft or hard lockup, a workqueue lockup, or an RCU stall.
    pub const LOCKUP: Self = Self(1 << 12);
    /// A task that is blocked for minutes (kernel/hung_task.c).
    pub const HUNG_TASK: Self = Self(1 << 13);
    /// A process that was killed for want of memory (mm/oom_kill.c).
    pub const OOM: Self = Self(1 << 14);
    /// Memory leaks that kmemleak suspects (mm/kmemleak.c).
    pub const LEAK: Self = Self(1 << 15);
    /// A kernel that becomes tainted by a module (kernel/module).
    pub const TAINT: Self = Self(1 << 16);
    /// A reset without an orderly end before it.
    pub const RESET: Self = Self(1 << 17);
    /// All classes.
    pub const ALL: Self = Self((1 << 18) - 1);
    /// What a CI should fail on: all but what a test may cause on purpose.
    pub const CI: Self = Self(Self::ALL.0 & !(Self::OOM.0 | Self::TAINT.0));

    /// Classes of which some messages have the level KERN_WARNING or KERN_NOTICE.
    const PRINTED_AS_WARNING: Self =
        Self(Self::WARN.0 | Self::LOCKDEP.0 | Self::RCU.0 | Self::REFCOUNT.0 | Self::OOM.0 | Self::TAINT.0);
    /// Classes of which some messages have the level KERN_INFO.
    const PRINTED_AS_INFORMATION: Self = Self::LEAK;

    /// The console log level that shows the faults of these classes (include/linux/kern_levels.h): messages of lower
    /// levels are printed.
    pub fn console_level(self) -> u8 {
        if self.intersects(Self::PRINTED_AS_INFORMATION) {
            7
        } else if self.intersects(Self::PRINTED_AS_WARNING) {
            5
        } else {
            4
        }
    }

    /// Whether a kernel with this command line does not show all of these faults on its console.
    pub fn are_hidden_by(self, cmdline: &str) -> bool {
        let level = cmdline.split(' ').fold(7, |level, word| match word {
            "quiet" => 4,
            "debug" | "ignore_loglevel" => 10,
            word => word.strip_prefix("loglevel=").and_then(|number| number.parse().ok()).unwrap_or(level),
        });
        level < self.console_level()
    }

    /// Whether the set has classes that the kernel's messages show.
    pub fn need_messages(self) -> bool {
        self.0 & !Self::RESET.0 != 0
    }

    /// Whether the sets have a class in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The default of `--fail-on`. kickvm's command line makes a panic a reset, so a reset that nothing explains may be
    /// a panic that the console does not show.
    pub const DEFAULT: Self = Self::RESET;

    /// Adds the class or group `name`, as `--fail-on` takes it, or removes it if the name has a minus.
    ///
    /// # Errors
    ///
    /// The message states the names.
    pub fn change(self, name: &str) -> Result<Self, String> {
        let (remove, name) = name.strip_prefix('-').map_or((false, name), |name| (true, name));
        let classes = Self::named(name).ok_or_else(|| {
            let names = CLASSES.iter().chain(&GROUPS[..2]).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            format!("give one of {names}, or several with commas; -NAME removes one")
        })?;
        Ok(if remove { Self(self.0 & !classes.0) } else { self | classes })
    }

    /// The class or group with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        CLASSES.iter().chain(&GROUPS).find(|(known, _)| *known == name).map(|(_, classes)| *classes)
    }

    /// The names of its classes.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        CLASSES.iter().filter(move |(_, class)| self.intersects(*class)).map(|(name, _)| *name)
    }

    /// The classes of the fault that `message` reports: the message of a kernel, without its prefix.
    pub(super) fn of_message(message: &str) -> Self {
        let found = MESSAGES.iter().find(|(begin, _)| message.starts_with(begin));
        match found {
            // Other lines name a task, too.
            Some((_, Self::HUNG_TASK)) if !message.contains(" blocked ") => Self::NONE,
            Some((_, classes)) => *classes,
            // mm/slub.c: "BUG kmalloc-64 (Not tainted): Poison overwritten".
            None if message.starts_with("BUG ") && is_slab_report(message) => Self::OOPS,
            None if message.starts_with("Out of memory: Killed process ") => Self::OOM,
            None if message.contains("invoked oom-killer: ") => Self::OOM,
            None if message.contains(" new suspected memory leaks") => Self::LEAK,
            None if message.contains("taints kernel") || message.contains("tainting kernel") => Self::TAINT,
            None => Self::NONE,
        }
    }
}

/// How the kernel's messages about faults begin. The first that matches counts.
#[rustfmt::skip]
const MESSAGES: [(&str, FaultClasses); 63] = {
    use FaultClasses as F;
    const STALL: FaultClasses = FaultClasses(F::RCU.0 | F::LOCKUP.0);
    [
        ("BUG: KASAN: ", F::KASAN),
        ("BUG: KFENCE: ", F::KFENCE),
        ("BUG: KMSAN: ", F::KMSAN),
        ("BUG: KCSAN: ", F::KCSAN),
        ("UBSAN: ", F::UBSAN),
        // kernel/locking/lockdep.c, with "INFO: " or brackets in older kernels.
        ("WARNING: possible circular locking dependency detected", F::LOCKDEP),
        ("WARNING: possible recursive locking detected", F::LOCKDEP),
        ("WARNING: possible irq lock inversion dependency detected", F::LOCKDEP),
        ("WARNING: HARDIRQ-", F::LOCKDEP),
        ("WARNING: SOFTIRQ-", F::LOCKDEP),
        ("WARNING: inconsistent lock state", F::LOCKDEP),
        ("WARNING: bad unlock balance detected", F::LOCKDEP),
        ("WARNING: bad contention detected", F::LOCKDEP),
        ("WARNING: held lock freed", F::LOCKDEP),
        ("WARNING: lock held when returning to user space", F::LOCKDEP),
        ("WARNING: lock held at task exit time", F::LOCKDEP),
        ("WARNING: Nested lock was not taken", F::LOCKDEP),
        ("WARNING: suspicious RCU usage", FaultClasses(F::RCU.0 | F::LOCKDEP.0)),
        ("INFO: suspicious RCU usage", FaultClasses(F::RCU.0 | F::LOCKDEP.0)),
        ("INFO: trying to register non-static key", F::LOCKDEP),
        ("INFO: possible ", F::LOCKDEP),
        ("INFO: inconsistent lock state", F::LOCKDEP),
        ("[ INFO: suspicious RCU usage", FaultClasses(F::RCU.0 | F::LOCKDEP.0)),
        ("[ INFO: ", F::LOCKDEP),
        ("[ BUG: ", F::LOCKDEP),
        ("[ WARNING: ", F::LOCKDEP),
        ("BUG: Invalid wait context", F::LOCKDEP),
        ("BUG: held lock freed", F::LOCKDEP),
        ("BUG: bad unlock balance detected", F::LOCKDEP),
        ("BUG: lock held ", F::LOCKDEP),
        ("BUG: MAX_LOCK", F::LOCKDEP),
        ("BUG: MAX_STACK_TRACE_ENTRIES", F::LOCKDEP),
        ("DEBUG_LOCKS_WARN_ON", F::LOCKDEP),
        ("rcu: INFO: rcu_", STALL),
        ("INFO: rcu_", STALL),
        ("rcu: rcu_", STALL), // "… kthread starved" and "… kthread timer wakeup didn't happen"
        ("refcount_t: ", F::REFCOUNT),
        ("list_add ", F::LIST),
        ("list_add_", F::LIST),
        ("list_del ", F::LIST),
        ("list_del_", F::LIST),
        ("BUG: sleeping function called from invalid context", F::ATOMIC),
        ("BUG: scheduling while atomic", F::ATOMIC),
        ("BUG: workqueue leaked ", F::ATOMIC),
        ("watchdog: BUG: soft lockup", F::LOCKUP),
        ("BUG: soft lockup", F::LOCKUP),
        ("BUG: workqueue lockup", F::LOCKUP),
        ("watchdog: Watchdog detected hard LOCKUP", F::LOCKUP),
        ("NMI watchdog: Watchdog detected hard LOCKUP", F::LOCKUP),
        ("watchdog: CPU", F::LOCKUP), // "watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3"
        ("INFO: task ", F::HUNG_TASK),
        ("Memory cgroup out of memory: Killed process ", F::OOM),
        ("WARNING: ", F::WARN),
        ("BUG: ", F::OOPS),
        ("kernel BUG at ", F::OOPS),
        ("Oops: ", F::OOPS),
        ("Unable to handle kernel ", F::OOPS),
        ("general protection fault", F::OOPS),
        ("invalid opcode: ", F::OOPS),
        ("divide error: ", F::OOPS),
        ("stack segment: ", F::OOPS),
        ("int3: ", F::OOPS),
        ("double fault: ", F::OOPS),
    ]
};

fn is_slab_report(message: &str) -> bool {
    message.contains(" (Not tainted): ") || message.contains(" (Tainted: ")
}

impl BitAnd for FaultClasses {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for FaultClasses {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for FaultClasses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_reports_faults_in_these_words() {
        use FaultClasses as F;
        for (message, classes) in [
            ("BUG: kernel NULL pointer dereference, address: 0000000000000000", F::OOPS),
            ("Oops: 0002 [#1] PREEMPT SMP NOPTI", F::OOPS),
            ("general protection fault, probably for non-canonical address 0x1: 0000 [#1]", F::OOPS),
            ("kernel BUG at mm/slub.c:379!", F::OOPS),
            ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]", F::LOCKUP),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", F::RCU | F::LOCKUP),
            ("INFO: rcu_sched detected stalls on CPUs/tasks:", F::RCU | F::LOCKUP),
            ("INFO: trying to register non-static key.", F::LOCKDEP),
            ("WARNING: possible circular locking dependency detected", F::LOCKDEP),
            ("[ INFO: possible recursive locking detected ]", F::LOCKDEP),
            ("WARNING: suspicious RCU usage", F::RCU | F::LOCKDEP),
            ("UBSAN: array-index-out-of-bounds in lib/x.c:3:4", F::UBSAN),
            ("BUG: KASAN: slab-out-of-bounds in f+0x1/0x2", F::KASAN),
            ("BUG: KFENCE: use-after-free read in f+0x1/0x2", F::KFENCE),
            ("refcount_t: underflow; use-after-free.", F::REFCOUNT),
            ("list_add corruption. prev->next should be next", F::LIST),
            ("BUG: sleeping function called from invalid context at x.c:1", F::ATOMIC),
            ("INFO: task sh:77 blocked for more than 120 seconds.", F::HUNG_TASK),
            ("INFO: task accounting is on", F::NONE),
            ("sh invoked oom-killer: gfp_mask=0x0", F::OOM),
            ("Out of memory: Killed process 77 (sh) total-vm:1kB", F::OOM),
            ("kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", F::LEAK),
            ("x: loading out-of-tree module taints kernel.", F::TAINT),
            ("WARNING: CPU: 0 PID: 1 at kernel/x.c:3 f+0x1/0x2", F::WARN),
            ("traps: a.out[77] general protection fault ip:1 sp:2 error:0", F::NONE),
            ("a.out[77]: segfault at 0 ip 1 sp 2 error 4", F::NONE),
            ("BUG kmalloc-64 (Not tainted): Poison overwritten", F::OOPS),
            ("BUG kmalloc-64 (Tainted: G    B  ): Object already free", F::OOPS),
            ("BUG reports are welcome", F::NONE),
            ("debug: BUG: is not at the beginning", F::NONE),
        ] {
            assert_eq!(F::of_message(message), classes, "{message}");
        }
    }

    #[test]
    fn names_add_and_remove_classes() {
        use FaultClasses as F;
        let parse = |list: &str| list.split(',').try_fold(F::DEFAULT, F::change);
        assert_eq!(parse("oops"), Ok(F::OOPS | F::RESET));
        assert_eq!(parse("oops,warn,-reset"), Ok(F::OOPS | F::WARN));
        assert_eq!(parse("all"), Ok(F::ALL));
        assert_eq!(parse("default,oom"), Ok(F::CI | F::OOM));
        assert!(!parse("default,-warn").unwrap().intersects(F::WARN));
        assert_eq!(parse("-reset"), Ok(F::NONE));
        assert_eq!(parse("hung"), Ok(F::HUNG_TASK | F::RESET));
        for wrong in ["", "x", "oops,", "--oops", "OOPS"] {
            assert!(parse(wrong).unwrap_err().starts_with("give one of oops, warn, "), "{wrong}");
        }
        assert_eq!((F::OOPS | F::HUNG_TASK).to_string(), "oops,hung-task");
        for (name, class) in CLASSES {
            assert_eq!((F::NONE.change(name), class.to_string()), (Ok(class), name.to_owned()));
        }
    }
}
