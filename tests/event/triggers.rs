//! Level-triggered, edge-triggered and one-shot registrations.

use kickvm::event::{EventSet, Events, SubscriberOps};

use crate::common::*;

#[test]
fn a_level_is_reported_as_long_as_it_lasts() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    manager.add_subscriber(Probe::new([input(&fd)]));
    for _ in 0..3 {
        assert_eq!(manager.run_with_timeout(0), Ok(1));
    }
    fd.read().unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

/// A kick works this way: the eventfd is written and never read, and the loop does not spin.
#[test]
fn an_edge_is_reported_once_for_each_write() {
    let (fd, mut manager) = (idle_eventfd(), manager());
    manager.add_subscriber(Probe::new([Events::new(&fd, EventSet::IN | EventSet::EDGE_TRIGGERED)]));
    for _ in 0..3 {
        assert_eq!(manager.run_with_timeout(0), Ok(0));
        fd.write(1).unwrap();
        assert_eq!(manager.run_with_timeout(0), Ok(1));
    }
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

#[test]
fn a_one_shot_is_reported_once_until_it_is_rearmed() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let once = Events::new(&fd, EventSet::IN | EventSet::ONE_SHOT);
    let id = manager.add_subscriber(Probe::new([once]));
    for _ in 0..2 {
        assert_eq!(manager.run_with_timeout(0), Ok(1));
        assert_eq!(manager.run_with_timeout(0), Ok(0));
        manager.event_ops(id).unwrap().modify(once).unwrap();
    }
}
