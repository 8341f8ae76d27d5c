//! The kernel's messages on the console: where each begins in a line, and how they show a panic.
//!
//! Every line of a kernel with CONFIG_PRINTK_TIME begins with `[    1.234567] `, or with CONFIG_PRINTK_CALLER with
//! `[    1.234567][    T1] ` (T for a task, C for a CPU; kernel/printk/printk.c). The kernel writes its lines behind
//! whatever is on the console already, such as a prompt or a progress bar. The prefix shows where its message begins,
//! and distinguishes it from the text of programs.

use std::time::Instant;

/// How far a kernel's time may be before the latest one. CPUs may print slightly out of order. An earlier time is that
/// of a copy, such as the output of dmesg(1).
const DISORDER: u64 = 1_000_000;
/// How far the kernel's time may be ahead of the time since its banner, by its rate and in microseconds. The clock of
/// an emulated machine may be wrong.
const MAX_CLOCK_RATE: u64 = 10;
const MAX_LEAD: u64 = 60_000_000;

/// Whether this kernel's messages have a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Prefixes {
    /// No banner was seen, so each line may be the kernel's.
    #[default]
    Unknown,
    /// They have one; the time of the latest, in microseconds, and when the banner was seen.
    Always(u64, Instant),
    /// They have none.
    Never,
}

/// Where a part of a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The kernel: it has a prefix.
    Kernel,
    /// The kernel or a program: this kernel's messages may have no prefix.
    Unknown,
    /// A program: it has no prefix, but this kernel's messages have one.
    Program,
}

/// A part of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// Without the prefix.
    pub text: &'a str,
    pub origin: Origin,
    /// The task or CPU in the prefix, such as `T1`; empty without one.
    pub caller: &'a str,
    /// The time in the prefix, in microseconds; 0 without one.
    pub time: u64,
}

/// Distinguishes the messages of a kernel from other text.
#[derive(Debug, Default)]
pub(super) struct Printk(Prefixes);

impl Printk {
    /// Calls `take` with each part of a console line. A part ends where a message of the kernel begins.
    pub fn split(&mut self, line: &str, mut take: impl FnMut(&Part<'_>)) {
        if self.0 == Prefixes::Unknown && line.starts_with(BANNER) {
            self.0 = Prefixes::Never;
        }
        let origin = if matches!(self.0, Prefixes::Always(..)) { Origin::Program } else { Origin::Unknown };
        let mut part = Part { text: line, origin, caller: "", time: 0 };
        let mut at = 0;
        while let Some(offset) = line[at..].find('[') {
            at += offset;
            match parse_prefix(&line[at..], at > 0).filter(|prefix| self.accept(prefix)) {
                Some(prefix) => {
                    part.text = &part.text[..part.text.len() - (line.len() - at)];
                    if !part.text.is_empty() {
                        take(&part);
                    }
                    part = prefix;
                    at = line.len() - prefix.text.len();
                }
                None => at += 1,
            }
        }
        take(&part);
    }

    /// Whether the kernel has printed its banner.
    pub fn was_seen(&self) -> bool {
        self.0 != Prefixes::Unknown
    }

    /// Whether this is the prefix of a message of this kernel.
    fn accept(&mut self, prefix: &Part<'_>) -> bool {
        if prefix.text.starts_with(BANNER) {
            self.0 = Prefixes::Always(prefix.time, Instant::now()); // a new kernel, perhaps one that kexec has started
            return true;
        }
        let Prefixes::Always(latest, since) = &mut self.0 else { return true };
        let accepted = prefix.time.saturating_add(DISORDER) >= *latest;
        // A program's text with a later time must not make the kernel's messages those of a program.
        let elapsed = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        if accepted && prefix.time <= elapsed.saturating_mul(MAX_CLOCK_RATE).saturating_add(MAX_LEAD) {
            *latest = prefix.time.max(*latest);
        }
        accepted
    }
}

/// How a kernel's banner begins (init/version.c).
pub(super) const BANNER: &str = "Linux version ";

/// Parses a prefix and the text after it. One in the `middle` of a line has the exact width of the kernel's,
/// `[%5lu.%06lu]`.
fn parse_prefix(line: &str, middle: bool) -> Option<Part<'_>> {
    let (stamp, mut text) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, fraction) = stamp.trim_start_matches(' ').split_once('.')?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exact = stamp.len() >= 5 + 1 + 6 && fraction.len() == 6;
    if middle && !exact || !is_number(fraction) || !is_number(seconds) {
        return None;
    }
    let microseconds = fraction.get(..6).unwrap_or(fraction).parse::<u64>().ok()?;
    let time = seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(microseconds)?;
    let in_brackets = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let mut caller = "";
    if let Some((id, rest)) = in_brackets.map(|(id, rest)| (id.trim_start_matches(' '), rest))
        && id.strip_prefix(['T', 'C']).is_some_and(|number| !number.is_empty() && is_number(number))
    {
        (caller, text) = (id, rest);
    }
    Some(Part { text: text.strip_prefix(' ').unwrap_or(text), origin: Origin::Kernel, caller, time })
}

pub(super) const PANIC_BEGIN: &str = "Kernel panic - not syncing";
const PANIC_END: &str = "---[ end Kernel panic";
/// What the kernel prints before an orderly end (kernel/reboot.c), and never after a panic.
const ORDERLY_END: [&str; 3] = ["reboot: Restarting system", "reboot: Power down", "reboot: System halted"];
/// What Debian's initramfs prints before it restarts because it cannot continue.
const INITRAMFS_FAILED: &str = "Rebooting automatically due to panic= boot argument";

/// What the console shows about the kernel's end.
///
/// Stock kernels have no panic device built in, and with `panic=-1` their panic looks like any reset. The console
/// distinguishes them: a panic begins with [`PANIC_BEGIN`], and when it does not reboot it closes with [`PANIC_END`]
/// (kernel/panic.c).
#[derive(Debug, Default)]
pub(super) struct KernelEnd {
    /// The kernel has announced a panic.
    pub panicked: bool,
    /// The kernel has printed the last line of a panic, and nothing since.
    pub stopped: bool,
    /// The kernel has announced an orderly end, which a program had requested.
    orderly: bool,
    /// The initramfs could not continue.
    initramfs_failed: bool,
}

impl KernelEnd {
    /// Examines a part of a line. `complete` is false for a line without its end.
    pub fn check(&mut self, &Part { text, origin, .. }: &Part<'_>, complete: bool) {
        // A kernel without prefixes may write into the middle of a line.
        let prints = |message: &str| match origin {
            Origin::Kernel => text.starts_with(message),
            Origin::Unknown => text.contains(message),
            Origin::Program => false,
        };
        self.stopped = complete && prints(PANIC_END); // more output means that the kernel has not stopped
        self.panicked |= prints(PANIC_BEGIN) && !prints(PANIC_END);
        if ORDERLY_END.iter().any(|end| prints(end)) {
            (self.orderly, self.panicked) = (true, false);
        }
        self.initramfs_failed |= text.starts_with(INITRAMFS_FAILED);
    }

    /// Whether a reset was not requested by a program that had completed its work.
    pub fn reset_is_unrequested(&self) -> bool {
        !self.orderly || self.initramfs_failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(printk: &mut Printk, line: &str) -> Vec<(String, Origin)> {
        let mut parts = Vec::new();
        printk.split(line, |part| parts.push((part.text.to_owned(), part.origin)));
        parts
    }

    #[test]
    fn a_message_begins_at_its_prefix_wherever_that_is() {
        let mut printk = Printk::default();
        let kernel = |text: &str| (text.to_owned(), Origin::Kernel);
        for (line, expected) in [
            ("[    0.000000] Linux version 6.1", vec![kernel("Linux version 6.1")]),
            ("# [    1.500000][    T1] Oops: 0", vec![("# ".to_owned(), Origin::Program), kernel("Oops: 0")]),
            ("10%[12345.678901][   C12] a[0]", vec![("10%".to_owned(), Origin::Program), kernel("a[0]")]),
            ("[12345.000000] [1] x", vec![kernel("[1] x")]),
            ("Oops: 0", vec![("Oops: 0".to_owned(), Origin::Program)]),
            ("[oops] [    1.5] x[", vec![("[oops] [    1.5] x[".to_owned(), Origin::Program)]),
            ("", vec![(String::new(), Origin::Program)]),
        ] {
            assert_eq!(parts(&mut printk, line), expected, "{line}");
        }
    }

    #[test]
    fn a_copy_of_old_messages_is_the_text_of_a_program() {
        let mut printk = Printk::default();
        parts(&mut printk, "[    0.000000] Linux version 6.1");
        parts(&mut printk, "[    9.000000] done");
        let copied = "[    5.000000] WARNING: CPU: 0";
        assert_eq!(parts(&mut printk, copied), [(copied.to_owned(), Origin::Program)]);
        assert_eq!(parts(&mut printk, "[    8.500000] late"), [("late".to_owned(), Origin::Kernel)]);
        parts(&mut printk, "[99999.000000] of an old log");
        assert_eq!(parts(&mut printk, "[    9.500000] x"), [("x".to_owned(), Origin::Kernel)]);
        parts(&mut printk, "[    0.000000] Linux version 6.1"); // started by kexec
        assert_eq!(parts(&mut printk, "[    0.100000] x"), [("x".to_owned(), Origin::Kernel)]);
    }

    #[test]
    fn without_prefixes_or_a_banner_each_line_may_be_the_kernels() {
        let mut printk = Printk::default();
        assert_eq!(parts(&mut printk, "Oops: 0"), [("Oops: 0".to_owned(), Origin::Unknown)]);
        assert_eq!(parts(&mut printk, "[    1.000000] x"), [("x".to_owned(), Origin::Kernel)]);
        parts(&mut printk, "Linux version 6.1");
        assert!(printk.was_seen());
        let line = "[    1.000000] x";
        assert_eq!(parts(&mut printk, line), [("x".to_owned(), Origin::Kernel)]);
        assert_eq!(parts(&mut printk, "x"), [("x".to_owned(), Origin::Unknown)]);
    }

    fn end_after(lines: &[&str]) -> KernelEnd {
        let (mut printk, mut end) = (Printk::default(), KernelEnd::default());
        lines.iter().for_each(|line| printk.split(line, |part| end.check(part, true)));
        end
    }

    #[test]
    fn a_panic_is_recognised_behind_other_text() {
        const BANNER: &str = "[    0.000000] Linux version 6.1";
        for lines in [
            &["Kernel panic - not syncing: VFS"][..],
            &["login: Kernel panic - not syncing: VFS"],
            &["[    1.500000] Kernel panic - not syncing: VFS"],
            &[BANNER, "# [    1.500000][    T1] Kernel panic - not syncing: VFS"],
        ] {
            assert!(end_after(lines).panicked, "{lines:?}");
        }
        let end =
            end_after(&[BANNER, "[    1.5] x", "abc[    2.000000] ---[ end Kernel panic - not syncing: VFS ]---"]);
        assert_eq!((end.panicked, end.stopped), (false, true));
    }

    #[test]
    fn the_text_of_a_program_is_not_a_panic() {
        const BANNER: &str = "[    0.000000] Linux version 6.1";
        for lines in [
            &[BANNER, "Kernel panic - not syncing: in a program"][..],
            &[BANNER, "[    1.000000] expected: Kernel panic - not syncing"],
            &["Kernel panic - not syncing: in a program", "reboot: Restarting system"],
            &["Kernel panic - not syncing: in a program", "# [    7.000000] reboot: Power down"],
        ] {
            assert!(!end_after(lines).panicked, "{lines:?}");
        }
    }

    #[test]
    fn a_reset_is_requested_by_an_orderly_end() {
        assert!(end_after(&["[    1.000000] x"]).reset_is_unrequested());
        assert!(!end_after(&["[    1.000000] reboot: Restarting system"]).reset_is_unrequested());
        assert!(end_after(&[INITRAMFS_FAILED, "[    1.000000] reboot: Restarting system"]).reset_is_unrequested());
    }
}
