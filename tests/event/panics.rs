//! A panic passes through the manager, and loses nothing on its way.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;

/// Registers a descriptor, then panics if told so.
struct Clumsy<'a>(&'a EventFd, bool);

impl MutEventSubscriber for Clumsy<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(input(self.0)).unwrap();
        assert!(!self.1, "as told");
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {}
}

#[test]
fn a_panicking_init_leaves_nothing_behind() {
    let fd = ready();
    let mut manager = EventManager::<Clumsy>::new().unwrap();
    for _ in 0..3 {
        assert!(catch_unwind(AssertUnwindSafe(|| manager.add_subscriber(Clumsy(&fd, true)))).is_err());
        assert_eq!(manager.run_with_timeout(0), Ok(0));
    }
    manager.add_subscriber(Clumsy(&fd, false));
    assert_eq!(manager.run_with_timeout(0), Ok(1));
}

/// The events behind the panic are edges: nobody would ever report them again.
#[test]
fn a_panicking_process_loses_no_event_behind_it() {
    let mut manager = manager();
    let fds = [ready(), ready(), ready()];
    let interests = fds.each_ref().map(|fd| Events::new(fd, EventSet::IN | EventSet::EDGE_TRIGGERED));
    let first = fds[0].as_raw_fd();
    let clumsy = Probe::reacting(interests[..1].to_vec(), move |_, _| panic!("as told"));
    let others = Probe::new(interests[1..].to_vec());
    manager.add_subscriber(clumsy.clone());
    manager.add_subscriber(others.clone());
    assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
    assert_eq!((seen(&clumsy), seen(&others)), (vec![first], vec![]));
    assert_eq!(manager.run(), Ok(2));
    assert_eq!(seen(&others), [fds[1].as_raw_fd(), fds[2].as_raw_fd()]);
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

#[test]
fn a_poisoned_subscriber_is_still_called() {
    let (fd, mut manager) = (ready(), manager());
    let probe = Probe::new([input(&fd)]);
    let guard = Arc::clone(&probe);
    let _ = std::thread::spawn(move || {
        let _guard = guard.lock().unwrap();
        panic!("as told");
    })
    .join();
    assert!(probe.is_poisoned());
    manager.add_subscriber(probe.clone());
    assert_eq!(manager.run(), Ok(1));
    assert_eq!(seen(&probe), [fd.as_raw_fd()]);
}
