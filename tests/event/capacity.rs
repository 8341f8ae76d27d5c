//! The ready list holds what it is asked to, and nobody starves behind it.

use std::collections::HashSet;

use kickvm::event::{Error, EventManager, MAX_READY_EVENTS_CAPACITY, SubscriberOps};

use crate::common::*;

#[test]
fn zero_and_too_much_are_refused() {
    for capacity in [0, MAX_READY_EVENTS_CAPACITY + 1, usize::MAX] {
        assert_eq!(Manager::new_with_capacity(capacity).err(), Some(Error::InvalidCapacity));
    }
}

#[test]
fn the_maximum_works_and_costs_no_memory() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    in_own_process("capacity::the_maximum_works_and_costs_no_memory", || {
        let before = resident();
        let mut manager = EventManager::new_with_capacity(MAX_READY_EVENTS_CAPACITY).unwrap();
        let fd = ready();
        manager.add_subscriber(Probe::new([input(&fd)]));
        assert_eq!(manager.run(), Ok(1));
        assert!(resident() - before < 1 << 20, "{} bytes", resident() - before);
    });
}

#[test]
fn one_slot_reaches_a_hundred() {
    let mut manager = Manager::new_with_capacity(1).unwrap();
    let fds: Vec<_> = (0..100).map(|_| ready()).collect();
    let probe = Probe::new(fds.iter().map(input));
    manager.add_subscriber(probe.clone());
    for _ in &fds {
        assert_eq!(manager.run_with_timeout(0), Ok(1));
    }
    assert_eq!(seen(&probe).into_iter().collect::<HashSet<_>>().len(), fds.len());
}
