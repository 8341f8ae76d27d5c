//! A closed descriptor blocks nobody: not its number, not its neighbours, not the loop.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use kickvm::event::{Errno, Error, EventSet, Events, SubscriberOps};

use crate::common::*;

#[test]
fn a_closed_number_is_free_again_removed_or_not() {
    let mut manager = manager();
    let (old, new) = (Probe::new([]), Probe::new([]));
    let (old_id, new_id) = (manager.add_subscriber(old.clone()), manager.add_subscriber(new.clone()));
    for removed in [false, true] {
        let number = 700;
        let (fd, keep) = (move_to(ready(), number), ready());
        let mut ops = manager.event_ops(old_id).unwrap();
        ops.add(input(&fd)).unwrap();
        ops.add(input(&keep)).unwrap();
        drop(fd);
        if removed {
            manager.event_ops(old_id).unwrap().remove(Events::empty_raw(number)).unwrap();
        }
        let fd = move_to(ready(), number);
        manager.event_ops(new_id).unwrap().add(input(&fd)).unwrap();
        assert_eq!(manager.run_with_timeout(0), Ok(2));
        assert_eq!(seen(&new), [number]);
        assert_eq!(seen(&old), [keep.as_raw_fd()]);
    }
    manager.remove_subscriber(old_id).unwrap();
    manager.remove_subscriber(new_id).unwrap();
}

#[test]
fn removing_the_old_owner_leaves_the_new_one_alone() {
    let mut manager = manager();
    let number = 710;
    let fd = move_to(ready(), number);
    let old = manager.add_subscriber(Probe::new([input(&fd)]));
    drop(fd);
    let fd = move_to(ready(), number);
    let new = Probe::new([input(&fd)]);
    manager.add_subscriber(new.clone());
    manager.remove_subscriber(old).unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(seen(&new), [number]);
}

#[test]
fn a_number_reused_in_the_same_batch_reaches_only_its_new_owner() {
    let mut manager = manager();
    let number = 720;
    let (first, second) = (ready(), move_to(ready(), number));
    let pending = input(&second);
    let mut held = vec![second];
    // Told of `first`, it closes `second`, whose event waits in the same batch, and opens another under its number.
    let probe = Probe::reacting([input(&first), pending], move |events, ops| {
        if events.fd() != number {
            held.clear();
            held.push(move_to(ready(), number));
            ops.add(Events::with_data(&held[0], 7, EventSet::IN)).unwrap();
            ops.remove(events).unwrap();
        }
    });
    manager.add_subscriber(probe.clone());
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(seen(&probe), [first.as_raw_fd()]);
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(events(&probe), [Events::with_data_raw(number, 7, EventSet::IN)]);
}

/// `dup` keeps the file open, so the kernel keeps the registration; its number is closed, so nobody can delete it.
#[test]
fn a_file_that_outlives_its_number_neither_kills_nor_spins_the_loop() {
    let mut manager = manager();
    let (loud, once, closed) = (quiet(), ready(), move_to(ready(), 730));
    let one_shot = Events::new(&once, EventSet::IN | EventSet::ONE_SHOT);
    let others = Probe::new([input(&loud), one_shot, input(&closed)]);
    manager.add_subscriber(others.clone());
    assert_eq!(manager.run_with_timeout(0), Ok(2));
    assert_eq!(seen(&others).len(), 2);
    drop(closed);

    let fd = move_to(ready(), 731);
    let keeps_it_open = fd.try_clone().unwrap();
    let id = manager.add_subscriber(Probe::new([input(&fd)]));
    drop(fd);
    manager.remove_subscriber(id).unwrap();

    // It is noticed once; then the loop sleeps again, the others are still heard, and what has shot stays spent.
    assert_eq!(manager.run_with_timeout(1000), Ok(0));
    let start = Instant::now();
    assert_eq!(manager.run_with_timeout(30), Ok(0));
    assert!(start.elapsed() >= Duration::from_millis(30));
    loud.write(1).unwrap();
    assert_eq!(manager.run_with_timeout(1000), Ok(1));
    assert_eq!(seen(&others), [loud.as_raw_fd()]);
    loud.read().unwrap();
    drop(keeps_it_open);
}

#[test]
fn a_file_back_under_its_old_number_can_be_added_again() {
    let mut manager = manager();
    let number = 740;
    let fd = move_to(ready(), number);
    let keeps_it_open = fd.try_clone().unwrap();
    let probe = Probe::new([input(&fd)]);
    let id = manager.add_subscriber(probe.clone());
    drop(fd);
    manager.event_ops(id).unwrap().remove(Events::empty_raw(number)).unwrap();
    let fd = move_to(keeps_it_open, number);
    manager.event_ops(id).unwrap().add(Events::with_data(&fd, 1, EventSet::IN)).unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(events(&probe), [Events::with_data(&fd, 1, EventSet::IN)]);
}

/// To get away from it takes a new descriptor. If there is none, `run` says so, and tells nobody anything twice.
#[test]
fn getting_away_from_a_ghost_may_fail_and_be_tried_again() {
    in_own_process("close::getting_away_from_a_ghost_may_fail_and_be_tried_again", || {
        let mut manager = manager();
        let edge = ready();
        let probe = Probe::new([Events::new(&edge, EventSet::IN | EventSet::EDGE_TRIGGERED)]);
        manager.add_subscriber(probe.clone());
        let fd = move_to(ready(), 750);
        let keeps_it_open = fd.try_clone().unwrap();
        let id = manager.add_subscriber(Probe::new([input(&fd)]));
        drop(fd);
        manager.remove_subscriber(id).unwrap();
        assert_eq!(manager.run_with_timeout(0), Ok(1));

        let limit = |soft| {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: 800 };
            // SAFETY: the kernel only reads `limit`, a live local.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        };
        limit(3);
        for _ in 0..2 {
            assert_eq!(manager.run_with_timeout(0), Err(Error::Epoll(Errno::new(libc::EMFILE))));
        }
        assert_eq!(seen(&probe).len(), 1);
        limit(800);
        // The new instance may report an edge once more, but no ghost.
        assert!(manager.run_with_timeout(0).unwrap() <= 1);
        assert_eq!(manager.run_with_timeout(0), Ok(0));
        drop(keeps_it_open);
    });
}
