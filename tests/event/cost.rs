//! A turn costs one system call and no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;

/// Counts the allocations of each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

// SAFETY: passes everything on to the system's allocator; the counter has no destructor and allocates nothing.
unsafe impl GlobalAlloc for Counting {
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

struct Reader(EventFd);

impl MutEventSubscriber for Reader {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // What a subscriber may do in a turn without paying.
        ops.modify(events).unwrap();
        ops.remove(events).unwrap();
        ops.add(events).unwrap();
    }
}

#[test]
fn a_turn_allocates_nothing() {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
    for _ in 0..100 {
        manager.add_subscriber(Box::new(Reader(ready())));
    }
    let before = allocations();
    for _ in 0..10 {
        assert_eq!(manager.run(), Ok(100));
    }
    assert_eq!(allocations() - before, 0);
}

#[cfg(feature = "remote_endpoint")]
#[test]
fn a_blocking_call_allocates_four_times_at_most() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const CALLS: usize = 100;
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    let at_loop = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&at_loop);
    let call = move || endpoint.call_blocking(move |_| Ok::<_, kickvm::event::Error>(7u64)).unwrap();
    let thread = std::thread::spawn(move || {
        // Warm up first: the queues grow to the size they need.
        let mut start = 0;
        for turn in 0..CALLS + 10 {
            if turn == 10 {
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
    assert!(each <= 4.0, "{each} allocations a call");
    println!("{each} allocations a call");
}

/// Traces a forked child through `turns`, which says whether all went well, and returns the numbers of the system
/// calls it makes.
fn system_calls(turns: impl FnOnce() -> bool) -> Vec<i64> {
    const MARK: i64 = libc::SYS_getppid;
    // SAFETY: the child has one thread, this one; it takes no lock another thread could have held, and leaves
    // without unwinding.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "cannot fork");
    if child == 0 {
        // SAFETY: plain system calls; the stop is for the parent to take over.
        unsafe {
            if libc::ptrace(libc::PTRACE_TRACEME) != 0 {
                libc::_exit(2);
            }
            libc::raise(libc::SIGSTOP);
            libc::syscall(MARK);
            let well = turns();
            libc::syscall(MARK);
            libc::_exit(i32::from(!well))
        }
    }
    let mut calls = Vec::new();
    let mut entering = true;
    loop {
        let mut status = 0;
        // SAFETY: waits for our own child, and writes to a live local.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            assert_ne!(libc::WEXITSTATUS(status), 2, "this test needs ptrace, which is not permitted here");
            assert_eq!(status, 0);
            break;
        }
        // SAFETY: the child is stopped and traced by this thread. `PEEKUSER` returns the word at this offset.
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
    inner.expect("the child marks the begin and the end").to_vec()
}

#[test]
fn a_turn_is_one_system_call() {
    struct Idle(EventFd);
    impl MutEventSubscriber for Idle {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(input(&self.0)).unwrap();
        }
        fn process(&mut self, _: Events, _: &mut EventOps) {}
    }
    let mut manager = EventManager::<Idle>::new().unwrap();
    for _ in 0..100 {
        manager.add_subscriber(Idle(ready()));
    }
    let calls = system_calls(|| (0..10).all(|_| manager.run() == Ok(100)));
    assert_eq!(calls, [libc::SYS_epoll_wait; 10]);
}
