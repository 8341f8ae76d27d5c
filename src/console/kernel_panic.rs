//! Detects the two lines that a panicking Linux prints.
//!
//! Stock kernels have no panic device built in, and with `panic=-1` their panic looks like any reset. The console
//! distinguishes them: a panic begins with [`BEGIN`], and when it does not reboot it closes with [`END`]
//! (kernel/panic.c).

const BEGIN: &str = "Kernel panic - not syncing";
const END: &str = "---[ end Kernel panic";

/// The progress of a panic, as far as the console shows it.
#[derive(Debug, Default)]
pub struct PanicDetector {
    /// The kernel has announced a panic.
    pub began: bool,
    /// The kernel has printed the last line of a panic, and nothing since.
    pub ended: bool,
}

impl PanicDetector {
    /// Examines a line without its printk prefix. `complete` is false for one without its line feed.
    pub fn check_line(&mut self, line: &str, complete: bool) {
        self.began |= line.starts_with(BEGIN);
        // More output means that the kernel is alive.
        self.ended = complete && line.starts_with(END);
    }
}

/// Strips printk's `[    1.234567] ` from a line, or the `[    1.234567][    T1] ` of a kernel with
/// CONFIG_PRINTK_CALLER (T for a task, C for a CPU).
pub fn strip_printk_prefix(line: &str) -> &str {
    let mut rest = line;
    while let Some((stamp, behind)) = rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        let stamp = stamp.trim_start();
        let number = stamp.strip_prefix(['T', 'C']).unwrap_or(stamp);
        if number.is_empty() || !number.bytes().all(|byte| matches!(byte, b'.' | b'0'..=b'9')) {
            return line;
        }
        rest = behind;
    }
    if rest.len() == line.len() { line } else { rest.strip_prefix(' ').unwrap_or(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(line: &str) -> (bool, bool) {
        let mut detector = PanicDetector::default();
        detector.check_line(strip_printk_prefix(line), true);
        (detector.began, detector.ended)
    }

    #[test]
    fn both_lines_are_detected_with_and_without_a_timestamp() {
        assert_eq!(detect("Kernel panic - not syncing: VFS"), (true, false));
        assert_eq!(detect("[    1.5] Kernel panic - not syncing: VFS"), (true, false));
        assert_eq!(detect("[    1.234567][    T1] Kernel panic - not syncing: VFS"), (true, false));
        assert_eq!(detect("[    1.234567][   C12] ---[ end Kernel panic - not syncing: VFS ]---"), (false, true));
        assert_eq!(detect("[12345.678901] ---[ end Kernel panic - not syncing: VFS ]---"), (false, true));
        let mut detector = PanicDetector::default();
        detector.check_line("---[ end Kernel panic - not syncing: VFS ]---", false);
        assert!(!detector.ended);
    }

    #[test]
    fn a_mention_in_the_middle_of_a_line_is_not_a_panic() {
        assert_eq!(detect("grep Kernel panic - not syncing"), (false, false));
        assert_eq!(detect("[oops] Kernel panic - not syncing"), (false, false));
        assert_eq!(detect(" - not syncing"), (false, false));
        assert_eq!(detect(&"x".repeat(10_000)), (false, false));
    }
}
