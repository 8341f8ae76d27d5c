//! A closed descriptor does not block its number, other descriptors, or the loop.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use kickvm::event::{Errno, Error, EventSet, Events, SubscriberOps};

use crate::common::*;

#[test]
fn a_closed_number_can_be_added_again_with_or_without_remove() {
    let mut manager = manager();
    let (old, new) = (Probe::new([]), Probe::new([]));
    let (old_id, new_id) = (manager.add_subscriber(old.clone()), manager.add_subscriber(new.clone()));
    for removed in [false, true] {
        let number = 700;
        let (fd, keep) = (with_number(ready_eventfd(), number), ready_eventfd());
        let mut ops = manager.event_ops(old_id).unwrap();
        ops.add(input(&fd)).unwrap();
        ops.add(input(&keep)).unwrap();
        drop(fd);
        if removed {
            manager.event_ops(old_id).unwrap().remove(Events::empty_raw(number)).unwrap();
        }
        let fd = with_number(ready_eventfd(), number);
        manager.event_ops(new_id).unwrap().add(input(&fd)).unwrap();
        assert_eq!(manager.run_with_timeout(0), Ok(2));
        assert_eq!(received_fds(&new), [number]);
        assert_eq!(received_fds(&old), [keep.as_raw_fd()]);
    }
    manager.remove_subscriber(old_id).unwrap();
    manager.remove_subscriber(new_id).unwrap();
}

#[test]
fn removing_the_old_owner_keeps_the_registration_of_the_new_one() {
    let mut manager = manager();
    let number = 710;
    let fd = with_number(ready_eventfd(), number);
    let old = manager.add_subscriber(Probe::new([input(&fd)]));
    drop(fd);
    let fd = with_number(ready_eventfd(), number);
    let new = Probe::new([input(&fd)]);
    manager.add_subscriber(new.clone());
    manager.remove_subscriber(old).unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(received_fds(&new), [number]);
}

#[test]
fn a_number_reused_in_the_same_batch_reaches_only_its_new_owner() {
    let mut manager = manager();
    let number = 720;
    let (first, second) = (ready_eventfd(), with_number(ready_eventfd(), number));
    let pending = input(&second);
    let mut held = vec![second];
    // On the event of `first`, it closes `second`, whose event is pending in the same batch, and reuses its number.
    let probe = Probe::reacting([input(&first), pending], move |events, ops| {
        if events.fd() != number {
            held.clear();
            held.push(with_number(ready_eventfd(), number));
            ops.add(Events::with_data(&held[0], 7, EventSet::IN)).unwrap();
            ops.remove(events).unwrap();
        }
    });
    manager.add_subscriber(probe.clone());
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(received_fds(&probe), [first.as_raw_fd()]);
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(received(&probe), [Events::with_data_raw(number, 7, EventSet::IN)]);
}

/// `dup` keeps the file open, so that the kernel keeps the registration. The number is closed, so that the registration
/// cannot be deleted.
#[test]
fn a_stale_registration_neither_ends_nor_spins_the_loop() {
    let mut manager = manager();
    let (active, once, closed) = (idle_eventfd(), ready_eventfd(), with_number(ready_eventfd(), 730));
    let one_shot = Events::new(&once, EventSet::IN | EventSet::ONE_SHOT);
    let others = Probe::new([input(&active), one_shot, input(&closed)]);
    manager.add_subscriber(others.clone());
    assert_eq!(manager.run_with_timeout(0), Ok(2));
    assert_eq!(received_fds(&others).len(), 2);
    drop(closed);

    let fd = with_number(ready_eventfd(), 731);
    let keeps_it_open = fd.try_clone().unwrap();
    let id = manager.add_subscriber(Probe::new([input(&fd)]));
    drop(fd);
    manager.remove_subscriber(id).unwrap();

    // It ends one wait. Then the loop sleeps again, the others are still watched, and the one-shot stays disarmed.
    assert_eq!(manager.run_with_timeout(1000), Ok(0));
    let start = Instant::now();
    assert_eq!(manager.run_with_timeout(30), Ok(0));
    assert!(start.elapsed() >= Duration::from_millis(30));
    active.write(1).unwrap();
    assert_eq!(manager.run_with_timeout(1000), Ok(1));
    assert_eq!(received_fds(&others), [active.as_raw_fd()]);
    active.read().unwrap();
    drop(keeps_it_open);
}

#[test]
fn a_file_that_gets_its_old_number_back_can_be_added_again() {
    let mut manager = manager();
    let number = 740;
    let fd = with_number(ready_eventfd(), number);
    let keeps_it_open = fd.try_clone().unwrap();
    let probe = Probe::new([input(&fd)]);
    let id = manager.add_subscriber(probe.clone());
    drop(fd);
    manager.event_ops(id).unwrap().remove(Events::empty_raw(number)).unwrap();
    let fd = with_number(keeps_it_open, number);
    manager.event_ops(id).unwrap().add(Events::with_data(&fd, 1, EventSet::IN)).unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(received(&probe), [Events::with_data(&fd, 1, EventSet::IN)]);
}

/// A stale registration is removed with a new epoll instance. If that cannot be created, `run` returns the error and
/// delivers no event twice.
#[test]
fn a_failed_rebuild_of_the_epoll_instance_is_retried() {
    in_own_process("close::a_failed_rebuild_of_the_epoll_instance_is_retried", || {
        let mut manager = manager();
        let edge = ready_eventfd();
        let probe = Probe::new([Events::new(&edge, EventSet::IN | EventSet::EDGE_TRIGGERED)]);
        manager.add_subscriber(probe.clone());
        let fd = with_number(ready_eventfd(), 750);
        let keeps_it_open = fd.try_clone().unwrap();
        let id = manager.add_subscriber(Probe::new([input(&fd)]));
        drop(fd);
        manager.remove_subscriber(id).unwrap();
        assert_eq!(manager.run_with_timeout(0), Ok(1));

        let limit = |soft| {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: 800 };
            // SAFETY: `limit` is a live local that the kernel only reads.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        };
        limit(3);
        for _ in 0..2 {
            assert_eq!(manager.run_with_timeout(0), Err(Error::Epoll(Errno::new(libc::EMFILE))));
        }
        assert_eq!(received_fds(&probe).len(), 1);
        limit(800);
        // The new instance may report the edge once more, but not the stale registration.
        assert!(manager.run_with_timeout(0).unwrap() <= 1);
        assert_eq!(manager.run_with_timeout(0), Ok(0));
        drop(keeps_it_open);
    });
}
