//! In the host's own root, a command runs as the process that has started kickvm.

use super::kernels::package;
use super::run::Exec;
use crate::common::process::default_signals;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Command;

on_both_kernels!(an_ordinary_user, another_user_has_its_own_home);

/// A user who is not in /etc/passwd, in a directory of its own, with a kernel and a kickvm that it can read.
fn an_ordinary_user(exec: Exec) {
    let has_modules = exec.assets.kernel.with_file_name("modules").exists();
    let exec = if has_modules {
        package(exec).0
    } else {
        let kernel = exec.scratch.path().join("kernel");
        fs::copy(&exec.assets.kernel, &kernel).unwrap();
        exec.with_kernel(&kernel)
    };
    let [program, home] = ["kickvm", "home"].map(|name| exec.scratch.path().join(name));
    fs::copy(env!("CARGO_BIN_EXE_kickvm"), &program).unwrap();
    fs::create_dir(&home).unwrap();
    chown(&home, Some(1234), Some(1235)).unwrap();
    fs::write(home.join("mine"), "of the host\n").unwrap();
    chown(home.join("mine"), Some(1234), Some(1235)).unwrap();
    let script = "id -u; id -g; id -G; umask; pwd; echo $A $HOME $DISPLAY $PATH; tty; cat mine && echo changed >mine
        touch new && stat -c '%a %u %g' new; cat mine; cat /etc/shadow 2>/dev/null || echo no shadow
        touch /etc/new 2>/dev/null || echo no change; readlink -f /proc/self/exe";
    let (command, _scratch) = exec.command(&["sh", "-c", script]);
    let mut user = Command::new(program);
    default_signals(&mut user);
    user.args(command.get_args()).current_dir(&home).env_clear();
    user.envs([("PATH", "/usr/bin:/bin"), ("HOME", "/nowhere"), ("A", "b c"), ("DISPLAY", ":0")]);
    // SAFETY: the functions only make a system call.
    unsafe {
        user.pre_exec(|| {
            umask(Mode::from_bits_truncate(0o027));
            setgroups(&[Gid::from_raw(1235), Gid::from_raw(100)])?;
            setgid(Gid::from_raw(1235))?;
            Ok(setuid(Uid::from_raw(1234))?)
        });
    }
    let ended = user.output().unwrap();
    let [out, err] = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let here = home.display();
    let expected = format!(
        "1234\n1235\n1235 100\n0027\n{here}\nb c /nowhere /usr/bin:/bin\nnot a tty\nof the host\n640 1234 1235\n\
         changed\nno shadow\nno change\n/usr/bin/readlink\n"
    );
    assert_eq!((ended.status.code(), out, err), (Some(0), expected, String::new()));
    assert_eq!(fs::read_to_string(home.join("mine")).unwrap(), "of the host\n");
    assert!(!home.join("new").exists());
}

fn another_user_has_its_own_home(exec: Exec) {
    let exec = if exec.assets.kernel.with_file_name("modules").exists() { package(exec).0 } else { exec };
    let script = "id -un; echo $HOME; [ -e /run/systemd ] || echo no services";
    exec.options(&["--root", "/", "--user", "daemon"]).run(&["sh", "-c", script]).assert(
        0,
        "daemon\n/usr/sbin\nno services\n",
        "",
    );
}
