//! A process that shares this one's memory and executes ordinary Rust code: [`SharedProcess`].
//!
//! `async_io/io_process.rs` explains why calls that may block forever are made in another process. The code there is
//! restricted, because it runs with the thread-local storage of a thread that continues. Here that thread waits:
//!
//! ```text
//!   this process                                          new process (CLONE_VM)
//!   start() ─▶ thread: clone(2) ───────────────────────▶  run(), with the thread's TLS, on a stack of its own;
//!              wait4(2), without std and libc                it may start threads, which belong to this process
//!              … the process has ended ◀────────────────  exit_group(2) when `run` has returned
//!              ends
//! ```
//!
//! So at any time one of the two uses the thread-local storage, and the new process may use std, libc, locks and the
//! allocator: their futexes and tables are in the shared memory. posix_spawn(3) relies on the same, with CLONE_VFORK
//! instead of wait4(2); then the thread would count as load of the host.
//!
//! The new process has its own descriptor table, working directory, umask and limits. It gets SIGKILL when the waiting
//! thread ends, so at the latest with this process, whose end does not wait for it. If it gets SIGKILL alone, it may
//! hold a lock, such as the allocator's, that this process then waits for; only another program does that.

use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::async_io::{close_all_but, syscall};
use super::limited_wait::receive;
use super::mapping::Mapping;

const PAGE: usize = 4 << 10;
const STACK: usize = 256 << 10;

/// A process that shares this one's memory.
#[derive(Debug)]
pub(crate) struct SharedProcess {
    ended: Receiver<()>, // disconnected when the process has ended
}

/// What the new process gets. It is on the stack of the waiting thread.
struct Start {
    parent: libc::pid_t,
    kept: Vec<RawFd>,
    run: Option<Box<dyn FnOnce() + Send>>,
    started: Sender<io::Result<()>>,
}

impl SharedProcess {
    /// Starts a process that executes `run` and ends. It has copies of the descriptors `kept` under the same numbers,
    /// and no others. A descriptor that `run` opens has no meaning in this process, so its owner must not leave `run`.
    /// Threads that `run` starts must be joined, as one that is killed while it exits may hold a lock of the allocator.
    ///
    /// # Errors
    ///
    /// The host has no more memory, threads or processes.
    pub fn start(mut kept: Vec<RawFd>, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        kept.sort_unstable();
        let ((started, is_started), (end, ended)) = (channel(), channel());
        let parent = std::process::id().cast_signed();
        let start = Start { parent, kept, run: Some(Box::new(run)), started };
        thread::Builder::new().name("shared_process".to_owned()).spawn(move || host(start, end))?;
        is_started.recv().map_err(io::Error::other)??;
        Ok(Self { ended })
    }

    /// Waits until the process has ended, at most until `deadline`. Returns whether it has.
    pub fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        receive(&self.ended, left) == Err(RecvTimeoutError::Disconnected)
    }
}

/// The waiting thread. It drops `_end` when the process has ended.
fn host(mut start: Start, _end: Sender<()>) {
    let failed = |error| drop(start.started.send(Err(error)));
    let stack = match Mapping::anonymous(PAGE + STACK) {
        Ok(stack) => stack,
        Err(error) => return failed(error),
    };
    // SAFETY: the mapping has no user yet. Its first page becomes a guard.
    if unsafe { libc::mprotect(stack.as_ptr().cast(), PAGE, libc::PROT_NONE) } < 0 {
        return failed(io::Error::last_os_error());
    }
    // A handler would run with the thread-local storage that the other process uses.
    if let Err(error) = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None) {
        return failed(error.into());
    }
    // SAFETY: the stack is mapped until the process has ended, and so is `start`, which only the process accesses in
    // between. From clone(2), which does not write `errno` if it succeeds, to the end of the process this thread
    // makes only system calls that need no thread-local storage.
    let error = unsafe {
        let stack_end = stack.as_ptr().add(PAGE + STACK).cast();
        match libc::clone(enter, stack_end, libc::CLONE_VM, (&raw mut start).cast()) {
            -1 => Some(io::Error::last_os_error()),
            pid => {
                let (pid, options) = (pid.unsigned_abs().into(), libc::__WALL.unsigned_abs().into());
                while syscall(libc::SYS_wait4, [pid, 0, options, 0, 0, 0]) == -i64::from(libc::EINTR) {}
                None
            }
        }
    };
    if let Some(error) = error {
        let _ = start.started.send(Err(error));
    }
}

/// The new process.
extern "C" fn enter(start: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `host` passes its `Start`, and does not access it while this process exists. The descriptors of this
    // process have no other owner. Ending it runs no handlers and destructors of the other process.
    unsafe {
        let start = &mut *start.cast::<Start>();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NAME, c"kickvm-fs".as_ptr());
        if libc::getppid() == start.parent {
            close_all_but(&start.kept);
            let _ = start.started.send(Ok(()));
            if let Some(run) = start.run.take() {
                let _ = catch_unwind(AssertUnwindSafe(run)); // the hook has printed the message
            }
        }
        loop {
            syscall(libc::SYS_exit_group, [0; 6]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::sync::{Arc, Condvar, Mutex};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn ordinary_code_runs_in_another_process_with_the_same_memory() {
        let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let copy = shared.clone();
        let process = SharedProcess::start(Vec::new(), move || {
            let work = |n: u32| {
                let text: String = (0..1000).map(|_| char::from(b'a' + n.to_le_bytes()[0])).collect();
                copy.0.lock().unwrap().push((std::process::id(), text));
                copy.1.notify_all();
            };
            thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || work(n))).collect();
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            });
        });
        let process = process.unwrap();
        // Both processes allocate and lock at the same time.
        let mut list = shared.0.lock().unwrap();
        while list.len() < 8 {
            assert!(Instant::now() < soon());
            drop(vec![0u8; 100_000]);
            list = shared.1.wait_timeout(list, Duration::from_millis(1)).unwrap().0;
        }
        let other = list[0].0;
        assert!(other != std::process::id() && list.iter().all(|(id, text)| *id == other && text.len() == 1000));
        drop(list);
        assert!(process.wait(soon()));
    }

    #[test]
    fn the_process_has_only_copies_of_the_descriptors_that_are_kept() {
        let (kept, closed) = (File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap());
        let (mut reader, mut writer) = io::pipe().unwrap();
        let fds = [kept.as_raw_fd(), closed.as_raw_fd()];
        let process = SharedProcess::start(vec![writer.as_raw_fd(), fds[0]], move || {
            // SAFETY: the call has no pointers.
            let open = fds.map(|fd| u8::from(unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0));
            writer.write_all(&open).unwrap();
            std::mem::forget(writer); // the number may have another meaning here
        });
        assert!(process.unwrap().wait(soon()));
        let mut open = [9; 2];
        reader.read_exact(&mut open).unwrap();
        assert_eq!(open, [1, 0]);
    }

    #[test]
    fn a_panic_ends_the_process_only() {
        let process = SharedProcess::start(Vec::new(), || panic!("expected")).unwrap();
        assert!(process.wait(soon()));
    }

    #[test]
    fn waiting_for_a_process_that_does_not_end_has_a_limit() {
        let (end, ended) = channel::<()>();
        let process = SharedProcess::start(Vec::new(), move || {
            let _ = ended.recv();
        });
        let process = process.unwrap();
        assert!(!process.wait(Instant::now() + Duration::from_millis(50)));
        drop(end);
        assert!(process.wait(soon()));
    }
}
