//! A wait ends at its timeout, or when a signal handler has run.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kickvm::event::{Epoll, EpollEvent, EventSet, Poll, SubscriberOps};

use crate::common::*;

#[test]
fn a_timeout_of_zero_does_not_block() {
    let mut manager = manager();
    assert_eq!(manager.run_with_timeout(0), Ok(0));
    let mut poll = Poll::new().unwrap();
    poll.poll(&mut Vec::with_capacity(1), Some(Duration::ZERO)).unwrap();
    let fd = ready_eventfd();
    manager.add_subscriber(Probe::new([input(&fd)]));
    assert_eq!(manager.run_with_timeout(0), Ok(1));
}

#[test]
fn no_wait_ends_early() {
    let mut poll = Poll::new().unwrap();
    let mut events = Vec::with_capacity(1);
    for timeout in [Duration::from_nanos(1), Duration::from_micros(700), Duration::from_micros(2_100)] {
        let start = Instant::now();
        poll.poll(&mut events, Some(timeout)).unwrap();
        assert!(start.elapsed() >= timeout, "{:?} of {timeout:?}", start.elapsed());
    }
    let start = Instant::now();
    assert_eq!(manager().run_with_timeout(2), Ok(0));
    assert!(start.elapsed() >= Duration::from_millis(2));
}

/// Interrupts this thread repeatedly while `body` runs.
fn interrupted<R>(body: impl FnOnce() -> R) -> R {
    extern "C" fn ignore(_: i32) {}
    let ignore: extern "C" fn(i32) = ignore;
    // SAFETY: the handler does nothing, so that it may run at any point. No other test uses this signal.
    unsafe { libc::signal(libc::SIGUSR1, ignore as libc::sighandler_t) };
    // SAFETY: the call takes no argument and always succeeds.
    let this = unsafe { libc::pthread_self() };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                // SAFETY: the thread `this` is alive, because it waits for the end of this scope.
                unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
                thread::sleep(Duration::from_millis(1));
            }
        });
        let result = body();
        done.store(true, Ordering::Release);
        result
    })
}

#[test]
fn a_signal_handler_ends_the_wait_without_an_error() {
    let mut manager = manager();
    let fd = idle_eventfd();
    manager.add_subscriber(Probe::new([input(&fd)]));
    assert_eq!(interrupted(|| manager.run()), Ok(0));
    fd.write(1).unwrap();
    assert_eq!(manager.run(), Ok(1));

    let mut poll = Poll::new().unwrap();
    let mut events = vec![EpollEvent::default()];
    interrupted(|| poll.poll(&mut events, None)).unwrap();
    assert!(events.is_empty());

    // The lowest layer returns the kernel's error.
    let epoll = Epoll::new().unwrap();
    let mut events = [EpollEvent::new(EventSet::IN, fd.as_raw_fd().cast_unsigned().into())];
    assert_eq!(interrupted(|| epoll.wait(-1, &mut events)).unwrap_err().kind(), std::io::ErrorKind::Interrupted);
}
