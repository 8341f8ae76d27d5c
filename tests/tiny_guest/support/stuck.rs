//! File systems that stop answering, and how a run ends then.

use super::has_kvm;
use crate::common::TempDir;
use crate::common::fuse::Fuse;
use crate::common::process::eventually;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use std::fmt::Display;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a run may last after the kick.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Ends the test that contains this if it cannot mount file systems.
macro_rules! need_mounts {
    () => {{
        fn here() {}
        if !$crate::common::can_run(std::any::type_name_of_val(&here), $crate::support::stuck::can_mount()) {
            return;
        }
    }};
}
pub(crate) use need_mounts;

pub fn can_mount() -> Result<(), String> {
    has_kvm()?;
    for device in ["/dev/fuse", "/dev/loop-control"] {
        File::open(device).map_err(|error| format!("{device}: {error}"))?;
    }
    let namespace = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS)).join().unwrap();
    namespace.map_err(|error| format!("cannot create a mount namespace: {error}"))
}

/// Runs `test` on a thread with a mount namespace of its own, so that no mount outlives it.
pub fn in_mount_namespace(test: impl FnOnce() + Send) {
    // One test at a time: mounts and the ends of VMs wait for grace periods, and these tests measure time.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let test = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            test();
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A file system whose server can stop answering.
pub trait Stuck {
    fn file(&self) -> PathBuf;
    /// Stops answering.
    fn stop(&self);
    /// Whether `process`, which does the I/O, waits for the file system.
    fn has_stopped(&self, process: Pid) -> bool;
    /// Lets all that waits for the file system continue.
    fn release(&self);
}

impl Stuck for Fuse {
    fn file(&self) -> PathBuf {
        Fuse::file(self)
    }

    fn stop(&self) {
        self.stop_answering();
    }

    fn has_stopped(&self, _process: Pid) -> bool {
        self.unanswered() > 0
    }

    fn release(&self) {
        self.abort();
    }
}

/// A loop-mounted ext4 file system, which can be frozen, or whose device can stop answering.
pub struct Ext4 {
    directory: PathBuf,
    device: Option<Fuse>,
}

impl Ext4 {
    fn mount(directory: PathBuf, image: &Path, device: Option<Fuse>) -> Self {
        fs::create_dir(&directory).unwrap();
        command(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image));
        let mount = || command(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&directory));
        mount();
        fs::write(directory.join("disk"), vec![1; 1 << 20]).unwrap();
        // Once more, so that nothing of it is in the page cache.
        eventually("the file system to be unused", || umount2(&directory, MntFlags::empty()).ok());
        mount();
        Self { directory, device }
    }
}

impl Stuck for Ext4 {
    fn file(&self) -> PathBuf {
        self.directory.join("disk")
    }

    fn stop(&self) {
        match &self.device {
            Some(device) => device.stop_answering(),
            None => command(Command::new("fsfreeze").arg("--freeze").arg(&self.directory)),
        }
    }

    fn has_stopped(&self, process: Pid) -> bool {
        // The file system itself uses the device, too. io_uring waits for reads without a thread.
        let used = self.device.as_ref().is_some_and(|device| device.unanswered() > 0);
        used && has_io_uring(process) || sleeps_uninterruptibly(process)
    }

    fn release(&self) {
        match &self.device {
            Some(device) => device.abort(),
            // It may not be frozen.
            None => drop(Command::new("fsfreeze").arg("--unfreeze").arg(&self.directory).output()),
        }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        self.release();
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

pub fn command(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn sleeps_uninterruptibly(process: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    { threads }.any(|thread| thread.file_name().to_str().and_then(state) == Some('D'))
}

/// The state of a process or thread; `None` if it is gone (proc_pid_stat(5)).
pub fn state(id: impl Display) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Lets `fs` answer when dropped, before anything waits for what it blocks.
pub struct Release<'a>(pub &'a dyn Stuck);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

pub fn silent_fuse(dir: &TempDir) -> Fuse {
    let directory = dir.path().join("mounted");
    fs::create_dir(&directory).unwrap();
    Fuse::mount(&directory).unwrap()
}

pub fn frozen_ext4(dir: &TempDir) -> Ext4 {
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    Ext4::mount(dir.path().join("mounted"), &image, None)
}

/// ext4 on a loop device whose file's server stops answering: like a disk or a network disk that is gone.
pub fn dead_device(dir: &TempDir) -> Ext4 {
    let device = silent_fuse(dir);
    let image = Fuse::file(&device);
    Ext4::mount(dir.path().join("ext4"), &image, Some(device))
}

/// Waits until a process that kickvm has left behind ends.
#[track_caller]
pub fn wait_for_end(process: Pid) {
    eventually("the process to end", || matches!(state(process), None | Some('Z')).then_some(()));
}

/// The child of `parent` with this name.
pub fn child_named(parent: Pid, child: &str) -> Option<Pid> {
    let children = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, fields) = (stat.split(['(', ')']).nth(1)?, stat.rsplit(')').next()?);
        let id = entry.file_name().to_str()?.parse().ok()?;
        (name == child && fields.split_whitespace().nth(1)? == parent.to_string()).then(|| Pid::from_raw(id))
    });
    { children }.next()
}

/// The process with this name that has `file` open.
pub fn process_of(name: &str, file: &Path) -> Option<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let found = fs::read_to_string(entry.path().join("comm")).ok()?;
        let mut files = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        let has_file = files.any(|open| fs::read_link(open.path()).is_ok_and(|target| target == file));
        (found.trim_end() == name && has_file).then(|| Pid::from_raw(id))
    });
    { processes }.next()
}

/// Whether `process` uses io_uring.
pub fn has_io_uring(process: Pid) -> bool {
    let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    { files }.any(|file| fs::read_link(file.path()).is_ok_and(|target| target.ends_with("anon_inode:[io_uring]")))
}
