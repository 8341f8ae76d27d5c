//! What a command in the host's own root has from the process that started kickvm, as if it ran on the host.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use nix::unistd::{getegid, geteuid, getgroups};

/// Variables that refer to processes, descriptors and devices of the host. Those that end with `*` are prefixes.
const LEFT_OUT: [&str; 30] = [
    // The window system (X(7), Wayland), the session of the desktop (D-Bus, pam_systemd(8)).
    "DISPLAY",
    "WAYLAND_*",
    "XAUTHORITY",
    "WINDOWID",
    "SESSION_MANAGER",
    "DBUS_*",
    "XDG_RUNTIME_DIR",
    "XDG_SEAT*",
    "XDG_SESSION_*",
    "XDG_VTNR",
    "PULSE_*",
    // Agents, and the connection of ssh(1).
    "SSH_A*",
    "SSH_C*",
    "SSH_TTY",
    "GPG_*",
    // Terminal multiplexers.
    "TMUX*",
    "STY",
    "WINDOW",
    // systemd.exec(5), sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_*",
    "MANAGERPID",
    "MEMORY_PRESSURE_*",
    "LISTEN_*",
    "NOTIFY_SOCKET",
    "WATCHDOG_*",
    // The jobserver of make(1) has descriptors.
    "MAKEFLAGS",
    "MFLAGS",
    "CARGO_MAKEFLAGS",
    // A shell sets it to the program that it starts.
    "_",
];

/// The identity of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Its environment, as NAME=VALUE.
    pub env: Vec<OsString>,
    /// Its user, its group and its supplementary groups.
    pub ids: Vec<u32>,
    /// Its file mode creation mask.
    pub umask: u32,
}

impl Caller {
    /// The identity of this process, without the variables that have no meaning in a guest.
    pub fn current() -> Self {
        let groups = getgroups().unwrap_or_default(); // fails only with a buffer that is too small
        let ids = [geteuid().as_raw(), getegid().as_raw()].into_iter().chain(groups.iter().map(|gid| gid.as_raw()));
        let env = std::env::vars_os().filter(|(name, _)| is_passed_on(name.as_bytes()));
        Self {
            env: env.map(|(name, value)| [name, value].join("=".as_ref())).collect(),
            ids: ids.collect(),
            umask: umask().unwrap_or(0o022),
        }
    }
}

/// `None` before Linux 4.7. umask(2) can read it only by changing it.
fn umask() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

fn is_passed_on(name: &[u8]) -> bool {
    !LEFT_OUT.iter().any(|left_out| match left_out.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix.as_bytes()),
        None => name == left_out.as_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_host_itself_are_left_out() {
        for name in ["PATH", "HOME", "LANG", "CI", "SSH", "XDG_CONFIG_HOME", "XDG_DATA_DIRS", "MAKE", "CARGO_HOME"] {
            assert!(is_passed_on(name.as_bytes()), "{name}");
        }
        for name in ["DISPLAY", "SSH_AUTH_SOCK", "SSH_CLIENT", "XDG_SESSION_ID", "LISTEN_FDS", "TMUX_PANE", "_"] {
            assert!(!is_passed_on(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn the_identity_is_that_of_this_process() {
        let caller = Caller::current();
        let path = [OsString::from("PATH"), std::env::var_os("PATH").unwrap()].join("=".as_ref());
        assert!(caller.env.contains(&path));
        assert_eq!(caller.ids[..2], [geteuid().as_raw(), getegid().as_raw()]);
        assert!(umask().is_some_and(|umask| umask <= 0o777));
    }
}
