//! The description of the command for init. It is a file of the initramfs rather than part of the kernel command line,
//! so that arguments may contain any byte but NUL.

use std::ffi::OsString;

use super::caller::Caller;
use super::shares::{Mount, ShareMode};
use crate::sys::winsize::WinSize;

/// The directory of kickvm's files in the guest.
pub const DIRECTORY: &str = "/.kickvm";
/// The path of this file in the guest.
pub const JOB_PATH: &str = "/.kickvm/job";
/// The kernel's log in the guest.
pub const KERNEL_LOG: &str = "/dev/kmsg";
/// The path of kickvm in the guest.
pub const INIT_PATH: &str = "/.kickvm/init";
/// The directory of the kernel modules in the guest. Their names, `NUMBER-NAME.ko`, have the order of loading.
pub const MODULES_PATH: &str = "/.kickvm/modules";
/// The directory of what is below the overlays of shares.
pub const SHARES_PATH: &str = "/.kickvm/shares";
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
    /// Kernel modules of the guest's root to load before the command starts, in this order.
    pub modules: Vec<OsString>,
    /// The size of the command's terminal; `None` if the command gets pipes.
    pub terminal: Option<WinSize>,
    /// Whether standard error is a pipe even if the command gets a terminal.
    pub separate_stderr: bool,
    /// Whether the kernel's log is sent after the command has ended.
    pub kernel_log: bool,
    /// A file whose content is sent after that.
    pub file: Option<OsString>,
    /// The soft and the hard limit of open files.
    pub open_files: (u64, u64),
    /// Drivers that devices need, by the names of their modules, each with the option that requests the device.
    pub drivers: Vec<(String, String)>,
    /// The user that the command runs as; `None` for the caller, or else root.
    pub user: Option<String>,
    /// Whose environment and file mode creation mask the command has. `env` has precedence.
    pub caller: Option<Caller>,
    /// Directories of the host to mount.
    pub mounts: Vec<Mount>,
}

impl Job {
    /// The content of the file: a JSON list of the fields. Names are not necessary, as both sides are the same program.
    pub fn encode(&self) -> Vec<u8> {
        let Self { command, cwd, env, user, open_files, terminal, separate_stderr, .. } = self;
        let terminal = terminal.map(|size| (size.rows, size.cols));
        let process = (command, cwd, env, user, open_files, terminal, separate_stderr);
        let caller = self.caller.as_ref().map(|Caller { env, ids, umask }| (env, ids, umask));
        let Self { modules, drivers, mounts, kernel_log, file, .. } = self;
        let mounts: Vec<_> = mounts.iter().map(|Mount { tag, guest, mode }| (tag, guest, mode.name())).collect();
        let guest = (modules, drivers, mounts, kernel_log, file);
        serde_json::to_vec(&(process, caller, guest)).expect("lists, strings and numbers have a form in JSON")
    }

    /// Decodes the content of the file.
    ///
    /// # Errors
    ///
    /// The content is not that of a job.
    pub fn decode(content: &[u8]) -> serde_json::Result<Self> {
        let (process, caller, guest) = serde_json::from_slice(content)?;
        let (command, cwd, env, user, open_files, terminal, separate_stderr) = process;
        let terminal = Option::map(terminal, |(rows, cols)| WinSize { rows, cols });
        let caller = Option::map(caller, |(env, ids, umask)| Caller { env, ids, umask });
        let (modules, drivers, mounts, kernel_log, file) = guest;
        let mount = |(tag, guest, mode): (String, OsString, String)| {
            let mode = ShareMode::parse(&mode).unwrap_or(ShareMode::ReadOnly);
            Mount { tag, guest, mode }
        };
        let mounts = Vec::into_iter(mounts).map(mount).collect();
        Ok(Self {
            command,
            cwd,
            env,
            modules,
            terminal,
            separate_stderr,
            kernel_log,
            file,
            open_files,
            drivers,
            user,
            caller,
            mounts,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

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
            kernel_log: true,
            file: Some(odd.clone()),
            open_files: (1024, u64::MAX),
            drivers: vec![("virtio_blk".into(), "--disk".into())],
            user: Some("builder".into()),
            caller: Some(Caller { env: vec![odd.clone()], ids: vec![1000, 100, 27], umask: 0o027 }),
            mounts: vec![Mount { tag: "kickvm0".into(), guest: odd.clone(), mode: ShareMode::Overlay }],
        };
        assert_eq!(Job::decode(&job.encode()).unwrap(), job);
        assert_eq!(Job::decode(&Job::default().encode()).unwrap(), Job::default());
    }

    #[test]
    fn incomplete_or_invalid_content_is_an_error() {
        let content = Job { terminal: Some(WinSize { rows: 1, cols: 65535 }), ..Job::default() }.encode();
        assert!((0..content.len()).all(|len| Job::decode(&content[..len]).is_err()));
        let larger = String::from_utf8(content).unwrap().replace("65535", "65536");
        assert!(Job::decode(larger.as_bytes()).is_err());
    }
}
