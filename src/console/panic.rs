//! Reads along with the console for the two lines that a panicking Linux prints.
//!
//! Stock kernels have no panic device built in, and with `panic=-1` their panic looks like any reset. The console
//! tells them apart: a panic begins with [`BEGIN`], and when it does not reboot it closes with [`END`].

const BEGIN: &[u8] = b"Kernel panic - not syncing";
const END: &[u8] = b"---[ end Kernel panic";

/// How far a panic has come, as far as the console shows.
#[derive(Debug)]
pub struct PanicDetector {
    line: [u8; 64],
    len: usize,
    began: bool,
    ending: bool,
    ended: bool,
}

impl Default for PanicDetector {
    fn default() -> Self {
        Self { line: [0; 64], len: 0, began: false, ending: false, ended: false }
    }
}

impl PanicDetector {
    /// Takes the next byte of the console.
    pub fn push(&mut self, byte: u8) {
        self.ended = byte == b'\n' && self.ending; // and whoever prints more has not ended
        match byte {
            b'\n' => (self.len, self.ending) = (0, false),
            b'\r' => self.len = 0,
            _ if self.len < self.line.len() => {
                self.line[self.len] = byte;
                self.len += 1;
                // A match is complete only with its last byte, and both have one that the other has not.
                if matches!(byte, b'g' | b'c') {
                    self.inspect();
                }
            }
            _ => {}
        }
    }

    fn inspect(&mut self) {
        let text = strip_printk_prefix(&self.line[..self.len]);
        self.began |= text == BEGIN;
        self.ending |= text == END;
    }

    /// The kernel said that it panics.
    pub fn began(&self) -> bool {
        self.began
    }

    /// The kernel said its last line, and nothing since.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

/// The line behind printk's `[    1.234567] `, or `[    1.234567][    T1] ` of a kernel that names who speaks
/// (CONFIG_PRINTK_CALLER: T for a task, C for a CPU), if it has one.
pub fn strip_printk_prefix(line: &[u8]) -> &[u8] {
    let mut rest = line;
    while let Some((stamp, behind)) = rest
        .strip_prefix(b"[")
        .and_then(|inner| inner.iter().position(|&byte| byte == b']').map(|end| (&inner[..end], &inner[end + 1..])))
    {
        let stamp = stamp.trim_ascii_start();
        let caller = stamp.strip_prefix(b"T").or_else(|| stamp.strip_prefix(b"C"));
        let number = caller.unwrap_or(stamp);
        if number.is_empty() || !number.iter().all(|byte| matches!(byte, b'.' | b'0'..=b'9')) {
            return line;
        }
        rest = behind;
    }
    if rest.len() == line.len() { line } else { rest.strip_prefix(b" ").unwrap_or(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(text: &str) -> (bool, bool) {
        let mut watch = PanicDetector::default();
        text.bytes().for_each(|byte| watch.push(byte));
        (watch.began(), watch.ended())
    }

    #[test]
    fn both_lines_are_seen_with_and_without_a_timestamp() {
        assert_eq!(watch("ok\r\nKernel panic - not syncing: VFS"), (true, false));
        assert_eq!(watch("[    1.5] Kernel panic - not syncing: VFS\r\n"), (true, false));
        assert_eq!(watch("[    1.234567][    T1] Kernel panic - not syncing: VFS\r\n"), (true, false));
        assert_eq!(watch("[    1.234567][   C12] ---[ end Kernel panic - not syncing: VFS ]---\r\n"), (false, true));
        assert_eq!(watch("[12345.678901] ---[ end Kernel panic - not syncing: VFS ]---"), (false, false));
        assert_eq!(watch("[12345.678901] ---[ end Kernel panic - not syncing: VFS ]---\r"), (false, false));
        assert_eq!(watch("[12345.678901] ---[ end Kernel panic - not syncing: VFS ]---\r\n"), (false, true));
    }

    #[test]
    fn a_mention_in_the_middle_of_a_line_is_no_panic() {
        assert_eq!(watch("grep Kernel panic - not syncing\n"), (false, false));
        assert_eq!(watch("[oops] Kernel panic - not syncing\n"), (false, false));
        assert_eq!(watch("Kernel panic\n - not syncing\n"), (false, false));
        assert_eq!(watch(&"x".repeat(10_000)), (false, false));
    }
}
