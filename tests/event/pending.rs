//! An event that waits for its turn is dropped if its registration changes meanwhile.

use std::os::fd::AsRawFd;

use kickvm::event::{EventSet, Events, SubscriberOps};

use crate::common::*;

#[test]
fn removed_or_modified() {
    for modify in [false, true] {
        let mut manager = manager();
        let fds = [ready(), ready(), ready()];
        let interests = [0, 1, 2].map(|i| input(&fds[i]));
        let probe = Probe::reacting(interests, move |events, ops| {
            for other in interests.iter().filter(|other| other.fd() != events.fd()) {
                // The second time, what was removed is not there any more.
                let _ = if modify { ops.modify(*other) } else { ops.remove(*other) };
            }
        });
        manager.add_subscriber(probe.clone());
        assert_eq!(manager.run_with_timeout(0), Ok(1));
        assert_eq!(seen(&probe).len(), 1);
        // Modified is not removed: the others are still ready, under their new terms.
        assert_eq!(manager.run_with_timeout(0), Ok(1));
    }
}

#[test]
fn removed_and_added_again() {
    let mut manager = manager();
    let fds = [ready(), ready()];
    let interests = [0, 1].map(|i| Events::with_data(&fds[i], i as u32, EventSet::IN));
    let probe = Probe::reacting(interests, move |events, ops| {
        let other = interests[1 - events.data() as usize];
        ops.remove(other).unwrap();
        ops.add(Events::with_data_raw(other.fd(), 7, EventSet::IN)).unwrap();
    });
    manager.add_subscriber(probe.clone());
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(seen(&probe), [fds[0].as_raw_fd()]);
}

#[test]
fn modifying_the_event_at_hand_keeps_nothing_back() {
    let (fd, mut manager) = (ready(), manager());
    let probe = Probe::reacting([input(&fd)], |events, ops| {
        ops.modify(Events::with_data_raw(events.fd(), events.data() + 1, EventSet::IN)).unwrap();
    });
    manager.add_subscriber(probe.clone());
    for turn in 0..3 {
        assert_eq!(manager.run_with_timeout(0), Ok(1));
        assert_eq!(events(&probe)[0].data(), turn);
    }
}

/// Nobody but the manager's holder can remove a subscriber, and while the manager runs only a request can.
#[cfg(feature = "remote_endpoint")]
#[test]
fn removing_another_subscriber_while_dispatching() {
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    let (first, second) = (ready(), ready());
    let victim = std::sync::Arc::new(std::sync::Mutex::new(None));
    let shared = victim.clone();
    manager.add_subscriber(Probe::reacting([input(&first)], move |events, ops| {
        let id = shared.lock().unwrap().take().unwrap();
        endpoint.fire(move |ops| drop(ops.remove_subscriber(id).unwrap())).unwrap();
        ops.remove(events).unwrap();
    }));
    let probe = Probe::new([input(&second)]);
    *victim.lock().unwrap() = Some(manager.add_subscriber(probe.clone()));
    // The doorbell is an event of the next turn, and requests run after a turn's events: both turns are delivered
    // whole, and the third finds nobody.
    assert_eq!(manager.run_with_timeout(0), Ok(2));
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(manager.run_with_timeout(0), Ok(0));
    assert_eq!(seen(&probe), [second.as_raw_fd(); 2]);
    assert_eq!(std::sync::Arc::strong_count(&probe), 1);
}
