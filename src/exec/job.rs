//! The description of the command for init. It is a file of the initramfs rather than part of the kernel command line,
//! so that arguments may contain any byte but NUL.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::sys::winsize::WinSize;

/// The path of this file in the guest.
pub const JOB_PATH: &str = "/.kickvm/job";
/// The path of kickvm in the guest.
pub const INIT_PATH: &str = "/.kickvm/init";
/// The path of the dynamic linker in the guest. It exists if kickvm is dynamically linked.
pub const LINKER_PATH: &str = "/.kickvm/ld.so";
/// The directory of the shared libraries that kickvm needs then.
pub const LIBRARIES_PATH: &str = "/.kickvm/lib";

/// A command and its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// The working directory.
    pub cwd: Option<OsString>,
    /// Environment variables, as NAME=VALUE.
    pub env: Vec<OsString>,
    /// Kernel modules to load before the command starts, in this order.
    pub modules: Vec<OsString>,
    /// The size of the command's terminal; `None` if the command gets pipes.
    pub terminal: Option<WinSize>,
    /// Whether standard error is a pipe even if the command gets a terminal.
    pub separate_stderr: bool,
}

// The kinds of records in the file.
const COMMAND: u8 = b'c';
const CWD: u8 = b'd';
const ENV: u8 = b'e';
const MODULE: u8 = b'm';
const TERMINAL: u8 = b't';
const SEPARATE_STDERR: u8 = b'r';

impl Job {
    /// The content of the file: one record per value, which is the kind (one byte), the value, and a NUL.
    pub fn encode(&self) -> Vec<u8> {
        let terminal = self.terminal.map(|WinSize { rows, cols }| OsString::from(format!("{rows} {cols}")));
        let separate_stderr = self.separate_stderr.then(OsString::new);
        let fields = [
            (COMMAND, &self.command[..]),
            (CWD, self.cwd.as_slice()),
            (ENV, &self.env),
            (MODULE, &self.modules),
            (TERMINAL, terminal.as_slice()),
            (SEPARATE_STDERR, separate_stderr.as_slice()),
        ];
        let record = |kind: u8, value: &OsString| [&[kind], value.as_bytes(), &[0]].concat();
        fields.iter().flat_map(|(kind, values)| values.iter().flat_map(|value| record(*kind, value))).collect()
    }

    /// Decodes the content of the file. Records of an unknown kind are ignored.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut job = Self::default();
        for record in bytes.split(|byte| *byte == 0) {
            let Some((kind, value)) = record.split_first() else { continue };
            let value = OsString::from_vec(value.to_vec());
            match *kind {
                COMMAND => job.command.push(value),
                CWD => job.cwd = Some(value),
                ENV => job.env.push(value),
                MODULE => job.modules.push(value),
                TERMINAL => {
                    let size = value.to_str().and_then(|text| text.split_once(' '));
                    job.terminal = size
                        .and_then(|(rows, cols)| Some(WinSize { rows: rows.parse().ok()?, cols: cols.parse().ok()? }));
                }
                SEPARATE_STDERR => job.separate_stderr = true,
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
    fn decoding_restores_values_of_any_byte_but_nul() {
        let odd = OsString::from_vec((1..=255).collect());
        let job = Job {
            command: vec!["sh".into(), odd.clone(), "".into(), "two\nlines".into()],
            cwd: Some(odd.clone()),
            env: vec!["A=1\n2".into(), odd.clone(), "B=".into()],
            modules: vec!["virtio_net".into()],
            terminal: Some(WinSize { rows: 24, cols: 80 }),
            separate_stderr: true,
        };
        assert_eq!(Job::decode(&job.encode()), job);
        assert_eq!(Job::decode(&Job::default().encode()), Job::default());
        assert_eq!(Job::decode(b"tx\0zz\0\0t1 70000\0c"), Job { command: vec!["".into()], ..Job::default() });
    }
}
