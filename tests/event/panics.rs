//! A panic propagates through the manager and loses no event.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;

/// Registers a descriptor, then panics if the flag is set.
struct PanickingInit<'a>(&'a EventFd, bool);

impl MutEventSubscriber for PanickingInit<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(input(self.0)).unwrap();
        assert!(!self.1, "intended by the test");
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {}
}

#[test]
fn a_panicking_init_leaves_no_registration() {
    let fd = ready_eventfd();
    let mut manager = EventManager::<PanickingInit>::new().unwrap();
    for _ in 0..3 {
        assert!(catch_unwind(AssertUnwindSafe(|| manager.add_subscriber(PanickingInit(&fd, true)))).is_err());
        assert_eq!(manager.run_with_timeout(0), Ok(0));
    }
    manager.add_subscriber(PanickingInit(&fd, false));
    assert_eq!(manager.run_with_timeout(0), Ok(1));
}

/// The events after the panic are edges, which the kernel does not report again.
#[test]
fn a_panicking_process_loses_no_later_event() {
    let mut manager = manager();
    let fds = [ready_eventfd(), ready_eventfd(), ready_eventfd()];
    let interests = fds.each_ref().map(|fd| Events::new(fd, EventSet::IN | EventSet::EDGE_TRIGGERED));
    let first = fds[0].as_raw_fd();
    let panicking = Probe::reacting(interests[..1].to_vec(), move |_, _| panic!("intended by the test"));
    let others = Probe::new(interests[1..].to_vec());
    manager.add_subscriber(panicking.clone());
    manager.add_subscriber(others.clone());
    assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
    assert_eq!((received_fds(&panicking), received_fds(&others)), (vec![first], vec![]));
    assert_eq!(manager.run(), Ok(2));
    assert_eq!(received_fds(&others), [fds[1].as_raw_fd(), fds[2].as_raw_fd()]);
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

#[test]
fn a_poisoned_subscriber_is_still_called() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let probe = Probe::new([input(&fd)]);
    let guard = Arc::clone(&probe);
    let _ = std::thread::spawn(move || {
        let _guard = guard.lock().unwrap();
        panic!("intended by the test");
    })
    .join();
    assert!(probe.is_poisoned());
    manager.add_subscriber(probe.clone());
    assert_eq!(manager.run(), Ok(1));
    assert_eq!(received_fds(&probe), [fd.as_raw_fd()]);
}
