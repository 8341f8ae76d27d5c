//! The ready list has the requested capacity, and no descriptor starves.

use std::collections::HashSet;

use kickvm::event::{Error, EventManager, MAX_READY_EVENTS_CAPACITY, SubscriberOps};

use crate::common::*;

#[test]
fn a_capacity_of_zero_or_above_the_maximum_is_rejected() {
    for capacity in [0, MAX_READY_EVENTS_CAPACITY + 1, usize::MAX] {
        assert_eq!(Manager::new_with_capacity(capacity).err(), Some(Error::InvalidCapacity));
    }
}

#[test]
fn the_maximum_capacity_works_and_costs_no_memory() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    in_own_process("capacity::the_maximum_capacity_works_and_costs_no_memory", || {
        let before = resident();
        let mut manager = EventManager::new_with_capacity(MAX_READY_EVENTS_CAPACITY).unwrap();
        let fd = ready_eventfd();
        manager.add_subscriber(Probe::new([input(&fd)]));
        assert_eq!(manager.run(), Ok(1));
        assert!(resident() - before < 1 << 20, "{} more bytes are resident", resident() - before);
    });
}

#[test]
fn a_capacity_of_one_reaches_a_hundred_descriptors() {
    let mut manager = Manager::new_with_capacity(1).unwrap();
    let fds: Vec<_> = (0..100).map(|_| ready_eventfd()).collect();
    let probe = Probe::new(fds.iter().map(input));
    manager.add_subscriber(probe.clone());
    for _ in &fds {
        assert_eq!(manager.run_with_timeout(0), Ok(1));
    }
    assert_eq!(received_fds(&probe).into_iter().collect::<HashSet<_>>().len(), fds.len());
}
