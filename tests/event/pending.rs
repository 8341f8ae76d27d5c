//! A pending event is dropped if its registration changes before it is dispatched.

use std::os::fd::AsRawFd;

use kickvm::event::{EventSet, Events, SubscriberOps};

use crate::common::*;

#[test]
fn a_pending_event_is_dropped_when_its_descriptor_is_removed_or_modified() {
    for modify in [false, true] {
        let mut manager = manager();
        let fds = [ready_eventfd(), ready_eventfd(), ready_eventfd()];
        let interests = [0, 1, 2].map(|i| input(&fds[i]));
        let probe = Probe::reacting(interests, move |events, ops| {
            for other in interests.iter().filter(|other| other.fd() != events.fd()) {
                // In the second run, the removed descriptors are not registered.
                let _ = if modify { ops.modify(*other) } else { ops.remove(*other) };
            }
        });
        manager.add_subscriber(probe.clone());
        assert_eq!(manager.run_with_timeout(0), Ok(1));
        assert_eq!(received_fds(&probe).len(), 1);
        // The modified descriptors are still registered and ready, so that the next run reports one of them.
        assert_eq!(manager.run_with_timeout(0), Ok(1));
    }
}

#[test]
fn a_pending_event_is_dropped_when_its_descriptor_is_removed_and_added_again() {
    let mut manager = manager();
    let fds = [ready_eventfd(), ready_eventfd()];
    let interests = [0u32, 1].map(|i| Events::with_data(&fds[i as usize], i, EventSet::IN));
    let probe = Probe::reacting(interests, move |events, ops| {
        let other = interests[1 - events.data() as usize];
        ops.remove(other).unwrap();
        ops.add(Events::with_data_raw(other.fd(), 7, EventSet::IN)).unwrap();
    });
    manager.add_subscriber(probe.clone());
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(received_fds(&probe), [fds[0].as_raw_fd()]);
}

#[test]
fn modifying_the_descriptor_of_the_current_event_drops_no_later_event() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let probe = Probe::reacting([input(&fd)], |events, ops| {
        ops.modify(Events::with_data_raw(events.fd(), events.data() + 1, EventSet::IN)).unwrap();
    });
    manager.add_subscriber(probe.clone());
    for run in 0..3 {
        assert_eq!(manager.run_with_timeout(0), Ok(1));
        assert_eq!(received(&probe)[0].data(), run);
    }
}

/// Removing a subscriber requires the manager. While it runs, only a request has access to it.
#[cfg(feature = "remote_endpoint")]
#[test]
fn a_request_removes_another_subscriber_between_two_runs() {
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    let (first, second) = (ready_eventfd(), ready_eventfd());
    let target = std::sync::Arc::new(std::sync::Mutex::new(None));
    let shared = target.clone();
    manager.add_subscriber(Probe::reacting([input(&first)], move |events, ops| {
        let id = shared.lock().unwrap().take().unwrap();
        endpoint.fire(move |ops| drop(ops.remove_subscriber(id).unwrap())).unwrap();
        ops.remove(events).unwrap();
    }));
    let probe = Probe::new([input(&second)]);
    *target.lock().unwrap() = Some(manager.add_subscriber(probe.clone()));
    // The wake-up is an event of the second run, and requests run after the events of a run. Both runs therefore
    // deliver all their events, and the third one finds no subscriber.
    assert_eq!(manager.run_with_timeout(0), Ok(2));
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(manager.run_with_timeout(0), Ok(0));
    assert_eq!(received_fds(&probe), [second.as_raw_fd(); 2]);
    assert_eq!(std::sync::Arc::strong_count(&probe), 1);
}
