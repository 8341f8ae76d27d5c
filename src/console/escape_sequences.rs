//! Removes escape sequences (ECMA-48) and control characters from console output.

/// The state of a parser of escape sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum EscapeFilter {
    /// Outside a sequence.
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence, after `ESC [`.
    Control,
    /// In a control string, such as the operating system command after `ESC ]`.
    String,
}

impl EscapeFilter {
    /// Whether `byte`, the next of the output, is text. A tab is, all other control characters are not.
    pub fn is_text(&mut self, byte: u8) -> bool {
        *self = match (*self, byte) {
            (Self::Text, 0x1b) | (Self::String, 0x1b) => Self::Escape,
            (Self::Text, _) => return byte == b'\t' || byte >= b' ' && byte != 0x7f,
            (Self::Escape, b'[') => Self::Control,
            (Self::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Self::String,
            (Self::Escape, b' '..=b'/') => Self::Escape, // intermediate bytes
            (Self::Control, 0x40..=0x7e) | (Self::String, 0x07) | (Self::Escape, _) => Self::Text,
            (sequence, _) => sequence,
        };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_and_tabs_are_left() {
        for (output, text) in [
            ("a\tb\r\0\u{7f}c", "a\tbc"),
            ("\u{1b}[32mPASS\u{1b}[0m all", "PASS all"),
            ("guest# \u{1b}[6n", "guest# "),
            ("\u{1b}]0;title\u{7}x\u{1b}]0;title\u{1b}\\y", "xy"),
            ("\u{1b}(Bz\u{1b}7é", "zé"),
        ] {
            let mut filter = EscapeFilter::default();
            let left: Vec<u8> = output.bytes().filter(|byte| filter.is_text(*byte)).collect();
            assert_eq!(String::from_utf8(left).unwrap(), text, "{output:?}");
        }
    }
}
