//! What init in the guest is to do. It travels as a file of the initramfs, not on the kernel's command line, so that words may
//! hold anything but a NUL.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::sys::winsize::WinSize;

/// Where the file is in the guest.
pub const JOB_PATH: &str = "/.kickvm/job";
/// Where kickvm itself is in the guest.
pub const INIT_PATH: &str = "/.kickvm/init";
/// Where the dynamic linker is in the guest, if kickvm needs one.
pub const LINKER_PATH: &str = "/.kickvm/ld.so";
/// Where the libraries that kickvm needs are then.
pub const LIBRARIES_PATH: &str = "/.kickvm/lib";

/// One command, and what it finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Where it starts.
    pub cwd: Option<OsString>,
    /// Its environment, as NAME=VALUE.
    pub env: Vec<OsString>,
    /// Kernel modules to load before, in order.
    pub modules: Vec<OsString>,
    /// The size of its terminal, if it gets one: lines and characters a line.
    pub terminal: Option<WinSize>,
    /// Whether its errors do not go to that terminal.
    pub errors_apart: bool,
    /// Whether kickvm is started through a dynamic linker.
    pub linked: bool,
}

const COMMAND: u8 = b'c';
const CWD: u8 = b'd';
const ENV: u8 = b'e';
const MODULE: u8 = b'm';
const TERMINAL: u8 = b't';
const ERRORS_APART: u8 = b'r';
const LINKED: u8 = b'l';

impl Job {
    /// The file: for each word a letter that says what it is, the word, and a NUL.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |kind: u8, word: &OsStr| {
            bytes.push(kind);
            bytes.extend(word.as_bytes());
            bytes.push(0);
        };
        self.command.iter().for_each(|word| put(COMMAND, word));
        self.cwd.iter().for_each(|word| put(CWD, word));
        self.env.iter().for_each(|word| put(ENV, word));
        self.modules.iter().for_each(|word| put(MODULE, word));
        if let Some(WinSize { rows, cols }) = self.terminal {
            put(TERMINAL, OsStr::new(&format!("{rows} {cols}")));
        }
        if self.errors_apart {
            put(ERRORS_APART, OsStr::new(""));
        }
        if self.linked {
            put(LINKED, OsStr::new(""));
        }
        bytes
    }

    /// Reads the file. What it does not know it skips.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut job = Self::default();
        for record in bytes.split(|byte| *byte == 0) {
            let Some((kind, word)) = record.split_first() else { continue };
            let word = OsString::from_vec(word.to_vec());
            match *kind {
                COMMAND => job.command.push(word),
                CWD => job.cwd = Some(word),
                ENV => job.env.push(word),
                MODULE => job.modules.push(word),
                TERMINAL => {
                    let size = word.to_str().and_then(|text| text.split_once(' '));
                    job.terminal = size
                        .and_then(|(rows, cols)| Some(WinSize { rows: rows.parse().ok()?, cols: cols.parse().ok()? }));
                }
                ERRORS_APART => job.errors_apart = true,
                LINKED => job.linked = true,
                _ => {}
            }
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_but_nul_arrives() {
        let odd = OsString::from_vec((1..=255).collect());
        let job = Job {
            command: vec!["sh".into(), odd.clone(), "".into(), "two\nlines".into()],
            cwd: Some(odd.clone()),
            env: vec!["A=1\n2".into(), odd.clone(), "B=".into()],
            modules: vec!["virtio_net".into()],
            terminal: Some(WinSize { rows: 24, cols: 80 }),
            errors_apart: true,
            linked: true,
        };
        assert_eq!(Job::decode(&job.encode()), job);
        assert_eq!(Job::decode(&Job::default().encode()), Job::default());
        assert_eq!(Job::decode(b"tx\0zz\0\0t1 70000\0c"), Job { command: vec!["".into()], ..Job::default() });
    }
}
