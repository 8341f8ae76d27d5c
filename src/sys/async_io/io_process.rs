//! A process that executes system calls which may block forever.
//!
//! A thread in uninterruptible sleep (a frozen file system, a FUSE server that stopped answering, a device without its
//! medium) does not react to SIGKILL, and waitpid(2) reports the end of a process only when all its threads have ended.
//! A program that must end at any time can therefore not make such a call on a thread of its own. io_uring alone does
//! not help: its workers are threads of the process that submits, and io_uring_enter(2) itself can wait for a frozen
//! file system.
//!
//! An [`IoProcess`] shares the address space of this process (CLONE_VM), so it reads and writes guest memory without a
//! copy. But it is a thread group of its own, which waitpid(2) of our parent does not wait for. It gets SIGKILL when
//! the thread that started it ends. (One case is left: process 1 of a PID namespace ends after all others of the
//! namespace.)
//!
//! ```text
//!   this process                             I/O process
//!   push(call) ──▶ table ──▶ wake() ─ futex ─▶ executes one call after the other
//!   reap() ◀───── table ◀─────────────────── result, eventfd
//! ```
//!
//! The code that runs in the I/O process has the thread-local storage of the thread that started it. So it uses neither
//! std nor libc, nor anything that may panic or allocate: only atomics and system calls by inline assembly.

use std::arch::asm;
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vmm_sys_util::eventfd::EventFd;

use crate::sys::limited_wait::wait_for;
use crate::sys::mapping::Mapping;

/// The most calls that can be queued or executed at a time.
pub const MAX_CALLS: u32 = 256;

const PAGE: usize = 4 << 10;
const STACK_END: usize = 5 * PAGE; // the first page is a guard
const MAX_KEPT: usize = 4;
const NAME: &CStr = c"kickvm-io";

/// A system call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number (syscall(2)).
    pub number: libc::c_long,
    /// Its arguments.
    pub args: [u64; 6],
    /// Identifies the call when it has ended.
    pub tag: u16,
    /// Whether success is not notified, only an error.
    pub quiet: bool,
}

/// What the two processes share: the table of calls and how far each side is with it. Indices count calls modulo 2^32.
#[repr(C)]
struct Shared {
    doorbell: AtomicU32, // futex that the I/O process waits on
    queued: AtomicU32,
    done: AtomicU32,
    cancelled: AtomicU32,
    exiting: AtomicU32,
    parent: i32,
    event: u64,              // a descriptor
    kept: [RawFd; MAX_KEPT], // ascending; RawFd::MAX after the last
    calls: [UnsafeCell<(Call, i64)>; MAX_CALLS as usize],
}

/// The process, and the table through which it gets its calls. It is requested to exit when dropped.
#[derive(Debug)]
pub struct IoProcess {
    mapping: ManuallyDrop<Mapping>, // guard page, stack, `Shared`
    pid: i32,
    pidfd: Option<OwnedFd>, // until the process has ended
    queued: u32,
    reaped: u32,
    unannounced: bool, // calls were queued since the last `wake`
}

impl IoProcess {
    /// Starts the process with copies of `event`, which it notifies, and of the descriptors `kept`, three at most. All
    /// others it closes. Other threads may run, but once the process executes calls it ends with the calling thread.
    ///
    /// # Errors
    ///
    /// The error of mmap(2), mprotect(2) or clone(2): the host has no memory or too many processes.
    pub fn start(event: &EventFd, kept: &[RawFd]) -> io::Result<Self> {
        let mapping = Mapping::anonymous(STACK_END + size_of::<Shared>())?;
        let mut list = [RawFd::MAX; MAX_KEPT];
        list.iter_mut().zip(kept.iter().copied().chain([event.as_raw_fd()])).for_each(|(to, fd)| *to = fd);
        list.sort_unstable();
        // SAFETY: `Shared` fits after the stack, where the mapping is page-aligned and zero, which is a valid value of
        // all its fields. The mapping has no other user yet. The first page is in it, and is never used.
        let stack_end = unsafe {
            let stack_end = mapping.as_ptr().add(STACK_END);
            let shared: *mut Shared = stack_end.cast();
            (*shared).parent = libc::getpid();
            (*shared).event = event.as_raw_fd().cast_unsigned().into();
            (*shared).kept = list;
            if libc::mprotect(mapping.as_ptr().cast(), PAGE, libc::PROT_NONE) < 0 {
                return Err(io::Error::last_os_error());
            }
            stack_end
        };
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        // SAFETY: `stack_end` is the end of a stack that has no other user and the start of a `Shared`.
        let started = unsafe { clone_process(stack_end.cast()) };
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let (pid, pidfd) = started?;
        let (mapping, pidfd) = (ManuallyDrop::new(mapping), Some(pidfd));
        Ok(Self { mapping, pid, pidfd, queued: 0, reaped: 0, unannounced: false })
    }

    /// Its process ID.
    #[cfg(test)]
    pub fn id(&self) -> i32 {
        self.pid
    }

    #[expect(clippy::cast_ptr_alignment, reason = "the mapping is page-aligned")]
    fn shared(&self) -> &Shared {
        // SAFETY: `start` has put a `Shared` there, and the mapping lives as long as `self`. After `start` its plain
        // fields do not change any more; the others are atomic or in an `UnsafeCell`.
        unsafe { &*self.mapping.as_ptr().add(STACK_END).cast::<Shared>() }
    }

    /// Queues a call, which begins after the next [`wake`](IoProcess::wake) when all calls before it have ended.
    ///
    /// # Errors
    ///
    /// There are [`MAX_CALLS`] calls already.
    ///
    /// # Safety
    ///
    /// The memory and the descriptors that `call` refers to stay valid until the call has been reaped or this process
    /// has ended, even if `self` is dropped. Nothing else accesses memory that the call writes.
    pub unsafe fn push(&mut self, call: Call) -> io::Result<()> {
        if self.queued.wrapping_sub(self.reaped) >= MAX_CALLS {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let entry = &self.shared().calls[(self.queued % MAX_CALLS) as usize];
        // SAFETY: the entry was reaped, so the I/O process does not access it before `queued` includes it.
        unsafe { (*entry.get()).0 = call };
        self.queued = self.queued.wrapping_add(1);
        self.shared().queued.store(self.queued, Ordering::Release);
        self.unannounced = true;
        Ok(())
    }

    /// Lets the process begin with the queued calls.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.unannounced) {
            self.ring_doorbell();
        }
    }

    fn ring_doorbell(&self) {
        let doorbell = &self.shared().doorbell;
        doorbell.fetch_add(1, Ordering::Release);
        // SAFETY: the call takes the address of a live futex word and no other pointer.
        unsafe { libc::syscall(libc::SYS_futex, doorbell.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1) };
    }

    /// Calls that have not ended. If it is two or more, the last of them begins after this and sees all memory written
    /// before this.
    pub fn outstanding(&self) -> u32 {
        fence(Ordering::SeqCst); // pairs with the fence after the store to `done`
        self.queued.wrapping_sub(self.shared().done.load(Ordering::Acquire))
    }

    /// Takes the oldest call that has ended: its tag, and its result or negative error number.
    pub fn reap(&mut self) -> Option<(u16, i64)> {
        if self.reaped == self.shared().done.load(Ordering::Acquire) {
            return None;
        }
        let entry = &self.shared().calls[(self.reaped % MAX_CALLS) as usize];
        // SAFETY: the call has ended, so the I/O process does not access the entry any more.
        let (call, result) = unsafe { *entry.get() };
        self.reaped = self.reaped.wrapping_add(1);
        Some((call.tag, result))
    }

    /// Sets whether calls that have not begun end with ECANCELED.
    pub fn set_cancelled(&self, cancelled: bool) {
        self.shared().cancelled.store(cancelled.into(), Ordering::Relaxed);
    }

    /// Requests the process to exit when the current call has ended.
    pub fn exit(&self) {
        self.shared().exiting.store(1, Ordering::Relaxed);
        self.ring_doorbell();
    }

    /// Waits until the process has ended, at most until `deadline`. Returns whether it has.
    pub fn wait(&mut self, deadline: Instant) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        wait_for(pidfd, libc::POLLIN, deadline);
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        if waitpid(Pid::from_raw(self.pid), Some(flags)) != Ok(WaitStatus::StillAlive) {
            self.pidfd = None; // or an error: something else has reaped it
        }
        self.pidfd.is_none()
    }
}

impl Drop for IoProcess {
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_millis(50);
        if self.pidfd.is_some() {
            self.exit();
        }
        if self.wait(Instant::now() + PATIENCE) {
            // SAFETY: the process has ended, so the mapping has no user, and it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.mapping) };
        }
    }
}

/// Starts a process that shares this one's memory and executes [`run`]. Returns its ID and a descriptor of it.
///
/// # Safety
///
/// `stack_end` is the end of a mapped stack and the start of a [`Shared`]; both live as long as the process. All
/// signals are blocked, as a handler would run with the thread-local storage of the calling thread.
unsafe fn clone_process(stack_end: *mut libc::c_void) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_PIDFD; // and no signal to the parent when it ends
    // SAFETY: the child, on its own stack, does nothing but call `run`. The kernel writes `pidfd` before either goes
    // on.
    match unsafe { libc::clone(run, stack_end, flags, stack_end, &raw mut pidfd) } {
        // SAFETY: the kernel has just made the descriptor for us.
        pid if pid > 0 => Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a system call without libc, which would write the `errno` of another thread.
///
/// # Safety
///
/// As for the call itself.
pub unsafe fn syscall(number: libc::c_long, [a, b, c, d, e, f]: [u64; 6]) -> i64 {
    let result;
    // SAFETY: the kernel changes no register but these, and the caller answers for the memory.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The I/O process. See the module's documentation for what this code must not do.
///
/// # Safety
///
/// `shared` is a [`Shared`] that is valid until the process ends, and only one process runs this with it.
extern "C" fn run(shared: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the calls take no pointers but to statics, to `Shared` and to a live local. Entries of `calls` are ours
    // between `done` and `queued`; the caller of `push` guarantees the validity of their arguments. The index is less
    // than MAX_CALLS.
    unsafe {
        let shared = &*shared.cast::<Shared>();
        syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
        syscall(libc::SYS_prctl, [libc::PR_SET_NAME as u64, NAME.as_ptr() as u64, 0, 0, 0, 0]);
        // The parent may have ended before the signal was set.
        if syscall(libc::SYS_getppid, [0; 6]) != i64::from(shared.parent) {
            exit();
        }
        close_all_but(&shared.kept);
        let mut next = 0u32;
        loop {
            let seen = shared.doorbell.load(Ordering::Acquire);
            while next != shared.queued.load(Ordering::Acquire) && shared.exiting.load(Ordering::Relaxed) == 0 {
                let entry = shared.calls.as_ptr().add((next % MAX_CALLS) as usize);
                let (Call { number, args, quiet, .. }, result) = &mut *(*entry).get();
                *result = match shared.cancelled.load(Ordering::Relaxed) {
                    0 => syscall(*number, *args),
                    _ => -i64::from(libc::ECANCELED),
                };
                let notify = !*quiet || *result < 0;
                next = next.wrapping_add(1);
                shared.done.store(next, Ordering::Release);
                // The next call sees what was written before `outstanding` has read `done`.
                fence(Ordering::SeqCst);
                if notify {
                    let one = 1u64;
                    syscall(libc::SYS_write, [shared.event, (&raw const one) as u64, 8, 0, 0, 0]);
                }
            }
            if shared.exiting.load(Ordering::Relaxed) != 0 {
                exit();
            }
            let wait = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
            syscall(libc::SYS_futex, [shared.doorbell.as_ptr() as u64, wait, seen.into(), 0, 0, 0]);
        }
    }
}

/// Ends the I/O process.
///
/// # Safety
///
/// Only for the I/O process, as it ends without any clean-up.
unsafe fn exit() -> ! {
    loop {
        // SAFETY: the caller's.
        unsafe { syscall(libc::SYS_exit_group, [0; 6]) };
    }
}

/// Closes all descriptors but `kept`, which are in ascending order. Copies would keep files of this program open.
///
/// # Safety
///
/// Only for a process whose descriptors have no other owner.
pub unsafe fn close_all_but(kept: &[RawFd]) {
    const MAX_FD: u64 = 1 << 20; // NR_OPEN's default, for kernels before close_range(2), Linux 5.9
    let mut first = 0;
    for fd in kept.iter().copied().chain([RawFd::MAX]) {
        let end = u64::from(fd.cast_unsigned()); // of the gap before `fd`
        if first < end {
            // SAFETY: the caller's.
            let closed = unsafe { syscall(libc::SYS_close_range, [first, end.wrapping_sub(1), 0, 0, 0, 0]) };
            while closed < 0 && first < end && first < MAX_FD {
                // SAFETY: the caller's.
                unsafe { syscall(libc::SYS_close, [first, 0, 0, 0, 0, 0]) };
                first = first.wrapping_add(1);
            }
        }
        first = end.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::thread;

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap()
    }

    fn call(number: libc::c_long, first: u64, tag: u16) -> Call {
        Call { number, args: [first, libc::F_GETFD as u64, 0, 0, 0, 0], tag, quiet: false }
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// Executes `calls` and returns their tags and results.
    fn execute(process: &mut IoProcess, event: &EventFd, calls: &[Call]) -> Vec<(u16, i64)> {
        // SAFETY: the calls of these tests refer to no memory.
        calls.iter().for_each(|call| unsafe { process.push(*call) }.unwrap());
        process.wake();
        let mut results = Vec::new();
        while results.len() < calls.len() {
            match process.reap() {
                Some(result) => results.push(result),
                None => drop(wait_for(event, libc::POLLIN, deadline())),
            }
        }
        assert_eq!((process.outstanding(), process.reap()), (0, None));
        results
    }

    #[test]
    fn calls_are_executed_in_order_by_a_process_of_its_own() {
        let event = eventfd();
        let mut process = IoProcess::start(&event, &[]).unwrap();
        let id = i64::from(process.id());
        let calls = [call(libc::SYS_getpid, 0, 7), call(libc::SYS_getppid, 0, 8), call(libc::SYS_close, 9999, 9)];
        let results = [(7, id), (8, i64::from(std::process::id())), (9, -i64::from(libc::EBADF))];
        assert_eq!(execute(&mut process, &event, &calls), results);
        process.exit();
        assert!(process.wait(deadline()));
    }

    #[test]
    fn only_descriptors_that_are_kept_are_copied() {
        let event = eventfd();
        let files = [(); 3].map(|()| File::open("/dev/null").unwrap());
        let [kept, closed, also_kept] = files.each_ref().map(AsRawFd::as_raw_fd);
        let mut process = IoProcess::start(&event, &[also_kept, kept]).unwrap();
        let fds = [kept, closed, also_kept, event.as_raw_fd(), 0, 1, 2];
        let calls = fds.map(|fd| call(libc::SYS_fcntl, fd.cast_unsigned().into(), 0));
        let open = execute(&mut process, &event, &calls).into_iter().map(|(_, result)| result >= 0);
        assert_eq!(open.collect::<Vec<_>>(), [true, false, true, true, false, false, false]);
    }

    #[test]
    fn only_errors_of_quiet_calls_are_notified() {
        let event = eventfd();
        let mut process = IoProcess::start(&event, &[]).unwrap();
        let quiet = |number, tag| Call { quiet: true, ..call(number, 9999, tag) };
        execute(&mut process, &event, &[quiet(libc::SYS_getpid, 0), call(libc::SYS_getpid, 0, 0)]);
        execute(&mut process, &event, &[quiet(libc::SYS_close, 0)]);
        assert_eq!(event.read().unwrap(), 2);
    }

    #[test]
    fn a_full_table_takes_no_more_calls() {
        let event = eventfd();
        let mut process = IoProcess::start(&event, &[]).unwrap();
        for round in 0..3 {
            let calls = vec![call(libc::SYS_getpid, 0, 0); MAX_CALLS as usize];
            assert_eq!(execute(&mut process, &event, &calls).len(), MAX_CALLS as usize, "round {round}");
        }
        for _ in 0..MAX_CALLS {
            // SAFETY: the call refers to no memory.
            unsafe { process.push(call(libc::SYS_getpid, 0, 0)) }.unwrap();
        }
        // SAFETY: as above.
        assert!(unsafe { process.push(call(libc::SYS_getpid, 0, 0)) }.is_err());
    }

    #[test]
    fn cancelled_calls_are_not_executed() {
        let event = eventfd();
        let mut process = IoProcess::start(&event, &[]).unwrap();
        process.set_cancelled(true);
        let cancelled = -i64::from(libc::ECANCELED);
        assert_eq!(execute(&mut process, &event, &[call(libc::SYS_getpid, 0, 1)]), [(1, cancelled)]);
        process.set_cancelled(false);
        let id = i64::from(process.id());
        assert_eq!(execute(&mut process, &event, &[call(libc::SYS_getpid, 0, 2)]), [(2, id)]);
    }

    #[test]
    fn the_process_ends_with_the_thread_that_started_it() {
        let event = eventfd();
        let start = || {
            let mut process = IoProcess::start(&event, &[]).unwrap();
            execute(&mut process, &event, &[call(libc::SYS_getpid, 0, 0)]);
            process
        };
        let mut process = thread::scope(|scope| scope.spawn(start).join().unwrap());
        assert!(process.wait(deadline()));
    }
}
