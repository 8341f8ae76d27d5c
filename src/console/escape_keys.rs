//! The escape keys: what Ctrl-A and the next key do. [`ConsoleIo`](super::ConsoleIo) and `exec` act on them.

use super::input::InputSink;

const CTRL_A: u8 = 0x01;

/// The keys after Ctrl-A, as `Ctrl-A h` lists them.
const KEY_HELP: [&str; 4] =
    ["Ctrl-A x  leave", "Ctrl-A p  press the power button", "Ctrl-A h  this help", "Ctrl-A Ctrl-A  send Ctrl-A"];

/// A key after Ctrl-A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// x: end the run.
    Quit,
    /// p: press the guest's power button.
    PowerButton,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    Idle,
    AfterCtrlA,
}

/// Decides whether `byte` is input or part of an escape key.
pub(super) fn filter(state: KeyState, byte: u8, sink: &mut dyn InputSink, on_key: &mut impl FnMut(Key)) -> KeyState {
    match (state, byte) {
        (KeyState::Idle, CTRL_A) => return KeyState::AfterCtrlA,
        (KeyState::Idle, _) => sink.push(&[byte]),
        (KeyState::AfterCtrlA, CTRL_A) => sink.push(&[CTRL_A]),
        (KeyState::AfterCtrlA, b'x') => on_key(Key::Quit),
        (KeyState::AfterCtrlA, b'h' | b'?') => KEY_HELP.iter().for_each(|line| log::warn!("{line}")),
        (KeyState::AfterCtrlA, b'p') => on_key(Key::PowerButton),
        (KeyState::AfterCtrlA, _) => sink.push(&[CTRL_A, byte]), // not an escape key, so nothing is swallowed
    }
    KeyState::Idle
}

#[cfg(test)]
mod tests {
    use super::*;

    impl InputSink for Vec<u8> {
        fn room(&mut self) -> usize {
            usize::MAX
        }
        fn push(&mut self, bytes: &[u8]) {
            self.extend_from_slice(bytes);
        }
    }

    fn filtered(input: &[u8]) -> (Vec<u8>, Vec<Key>) {
        let (mut guest, mut keys, mut state) = (Vec::new(), Vec::new(), KeyState::Idle);
        for &byte in input {
            state = filter(state, byte, &mut guest, &mut |key| keys.push(key));
        }
        (guest, keys)
    }

    #[test]
    fn keys_after_ctrl_a_are_escape_keys_and_everything_else_is_input() {
        assert_eq!(filtered(b"ab\x01x"), (b"ab".to_vec(), vec![Key::Quit]));
        assert_eq!(filtered(b"\x01h\x01p"), (vec![], vec![Key::PowerButton]));
        assert_eq!(filtered(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(filtered(b"\x01e"), (b"\x01e".to_vec(), vec![]));
    }
}
