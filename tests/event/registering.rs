//! A registration belongs to the subscriber that made it.

use std::os::fd::AsRawFd;

use kickvm::event::{Errno, Error, EventSet, Events, SubscriberOps};

use crate::common::*;

#[test]
fn a_second_add_is_rejected() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let first = manager.add_subscriber(Probe::new([input(&fd)]));
    let second = manager.add_subscriber(Probe::new([]));
    for id in [first, second] {
        assert_eq!(manager.event_ops(id).unwrap().add(input(&fd)), Err(Error::FdAlreadyRegistered));
    }
    assert_eq!(manager.run_with_timeout(0), Ok(1));
}

#[test]
fn the_descriptor_of_another_subscriber_cannot_be_changed() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let probe = Probe::new([input(&fd)]);
    let owner = manager.add_subscriber(probe.clone());
    let other = manager.add_subscriber(Probe::new([]));

    let mut ops = manager.event_ops(other).unwrap();
    assert_eq!(ops.modify(Events::empty(&fd)), Err(Error::NotOwner));
    assert_eq!(ops.remove(input(&fd)), Err(Error::NotOwner));
    manager.remove_subscriber(other).unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(received_fds(&probe), [fd.as_raw_fd()]);

    manager.event_ops(owner).unwrap().remove(input(&fd)).unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

#[test]
fn a_descriptor_that_is_not_registered_cannot_be_changed() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let id = manager.add_subscriber(Probe::new([]));
    let mut ops = manager.event_ops(id).unwrap();
    for (number, errno) in [(fd.as_raw_fd(), libc::ENOENT), (i32::MAX, libc::ENOENT), (-1, libc::EBADF)] {
        let events = Events::new_raw(number, EventSet::IN);
        assert_eq!(ops.modify(events), Err(Error::Epoll(Errno::new(errno))));
        assert_eq!(ops.remove(events), Err(Error::Epoll(Errno::new(errno))));
    }
}

#[test]
fn closed_descriptors_and_regular_files_cannot_be_added() {
    let mut manager = manager();
    let id = manager.add_subscriber(Probe::new([]));
    let mut ops = manager.event_ops(id).unwrap();
    for number in [-1, i32::MIN, i32::MAX] {
        let events = Events::with_data_raw(number, u32::MAX, EventSet::IN);
        assert_eq!(ops.add(events), Err(Error::Epoll(Errno::new(libc::EBADF))));
    }
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(ops.add(input(&file)), Err(Error::Epoll(Errno::new(libc::EPERM))));
}

#[test]
fn all_bits_of_the_user_data_are_returned() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let registered = Events::with_data(&fd, u32::MAX, EventSet::IN);
    let probe = Probe::new([registered]);
    let id = manager.add_subscriber(probe.clone());
    manager.run().unwrap();
    assert_eq!(received(&probe), [registered]);

    let registered = Events::with_data(&fd, 0x8000_0001, EventSet::OUT);
    manager.event_ops(id).unwrap().modify(registered).unwrap();
    manager.run().unwrap();
    assert_eq!(received(&probe), [registered]);
}

/// Removes four descriptors in every order, one by one or together with their subscriber.
#[test]
fn descriptors_are_removed_in_any_order() {
    let fds = [(); 4].map(|()| ready_eventfd());
    for order in 0..256 {
        let mut manager = manager();
        let id = manager.add_subscriber(Probe::new(fds.iter().map(input)));
        let mut removed = std::collections::HashSet::new();
        for step in 0..4 {
            let fd = order >> (2 * step) & 3;
            let result = manager.event_ops(id).unwrap().remove(input(&fds[fd]));
            assert_eq!(result.is_ok(), removed.insert(fd));
            assert_eq!(manager.run_with_timeout(0), Ok(4 - removed.len()));
        }
        // Adding them again changes their order in the subscriber's list.
        for &fd in &removed {
            manager.event_ops(id).unwrap().add(input(&fds[fd])).unwrap();
        }
        assert_eq!(manager.run_with_timeout(0), Ok(4));
        manager.remove_subscriber(id).unwrap();
        assert_eq!(manager.run_with_timeout(0), Ok(0));
        manager.add_subscriber(Probe::new(fds.iter().map(input)));
    }
}
