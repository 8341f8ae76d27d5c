//! A run costs one system call and no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;

/// Counts the allocations of each thread.
struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

// SAFETY: both methods forward to the system allocator. The counter has no destructor and does not allocate.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and the block came from `System`.
        unsafe { System.dealloc(block, layout) }
    }
}

fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

struct Reregistering(EventFd);

impl MutEventSubscriber for Reregistering {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // None of these may allocate.
        ops.modify(events).unwrap();
        ops.remove(events).unwrap();
        ops.add(events).unwrap();
    }
}

#[test]
fn a_run_allocates_nothing() {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
    for _ in 0..100 {
        manager.add_subscriber(Box::new(Reregistering(ready_eventfd())));
    }
    let before = allocations();
    for _ in 0..10 {
        assert_eq!(manager.run(), Ok(100));
    }
    assert_eq!(allocations() - before, 0);
}

#[cfg(feature = "remote_endpoint")]
#[test]
fn a_blocking_call_allocates_at_most_four_times() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const CALLS: usize = 100;
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    let at_loop = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&at_loop);
    let call = move || endpoint.call_blocking(move |_| Ok::<_, kickvm::event::Error>(7u64)).unwrap();
    let thread = std::thread::spawn(move || {
        // The first calls are not counted: the queues grow to the size that they need.
        let mut start = 0;
        for run in 0..CALLS + 10 {
            if run == 10 {
                start = allocations();
            }
            manager.run().unwrap();
        }
        counted.store(allocations() - start, Ordering::Release);
    });
    for _ in 0..10 {
        call();
    }
    let start = allocations();
    for _ in 0..CALLS {
        assert_eq!(call(), 7);
    }
    let here = allocations() - start;
    thread.join().unwrap();
    let each = (here + at_loop.load(Ordering::Acquire)) as f64 / CALLS as f64;
    assert!(each <= 4.0, "{each} allocations per call");
    println!("{each} allocations per call");
}

/// Runs `body` in a traced child process and returns the numbers of the system calls that it makes. `body` returns
/// whether it succeeded.
fn system_calls(body: impl FnOnce() -> bool) -> Vec<i64> {
    const MARK: i64 = libc::SYS_getppid;
    // SAFETY: the child has this thread only. It takes no lock that another thread may have held, and exits without
    // unwinding.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "cannot fork");
    if child == 0 {
        // SAFETY: these are system calls without pointers. The parent starts to trace at the stop.
        unsafe {
            if libc::ptrace(libc::PTRACE_TRACEME) != 0 {
                libc::_exit(2);
            }
            libc::raise(libc::SIGSTOP);
            libc::syscall(MARK);
            let succeeded = body();
            libc::syscall(MARK);
            libc::_exit(i32::from(!succeeded))
        }
    }
    let mut calls = Vec::new();
    let mut entering = true;
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live local; the child is one of this process.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            assert_ne!(libc::WEXITSTATUS(status), 2, "ptrace is not permitted on this machine, but this test needs it");
            assert_eq!(status, 0);
            break;
        }
        // SAFETY: this thread traces the child, which is stopped. `PEEKUSER` returns the word at the offset.
        unsafe {
            if libc::WSTOPSIG(status) == libc::SIGSTOP {
                libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, libc::PTRACE_O_TRACESYSGOOD);
            } else if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 {
                if entering {
                    let number = std::mem::offset_of!(libc::user_regs_struct, orig_rax);
                    calls.push(libc::ptrace(libc::PTRACE_PEEKUSER, child, number, 0));
                }
                entering = !entering;
            }
            libc::ptrace(libc::PTRACE_SYSCALL, child, 0, 0);
        }
    }
    let inner = calls.split(|&call| call == MARK).nth(1);
    inner.expect("the child makes the marking call before and after `body`").to_vec()
}

#[test]
fn a_run_is_one_system_call() {
    struct Idle(EventFd);
    impl MutEventSubscriber for Idle {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(input(&self.0)).unwrap();
        }
        fn process(&mut self, _: Events, _: &mut EventOps) {}
    }
    let mut manager = EventManager::<Idle>::new().unwrap();
    for _ in 0..100 {
        manager.add_subscriber(Idle(ready_eventfd()));
    }
    let calls = system_calls(|| (0..10).all(|_| manager.run() == Ok(100)));
    assert_eq!(calls, [libc::SYS_epoll_wait; 10]);
}
