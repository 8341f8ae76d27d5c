//! The lowest layer returns what the kernel returns.

use std::os::fd::{AsFd, AsRawFd};

use kickvm::event::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::common::*;

#[test]
fn a_clone_is_the_same_instance() {
    let (fd, epoll) = (ready_eventfd(), Epoll::new().unwrap());
    let clone = epoll.try_clone().unwrap();
    assert_ne!(epoll.as_fd().as_raw_fd(), clone.as_raw_fd());
    clone.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, u64::MAX)).unwrap();
    let mut events = [EpollEvent::default(); 2];
    assert_eq!(epoll.wait(0, &mut events).unwrap(), 1);
    assert_eq!((events[0].data(), events[0].event_set()), (u64::MAX, EventSet::IN));
}

#[test]
fn errors_are_those_of_the_kernel() {
    let (fd, epoll) = (ready_eventfd(), Epoll::new().unwrap());
    let ctl = |operation, fd, set| epoll.ctl(operation, fd, EpollEvent::new(set, 0)).map_err(|e| e.raw_os_error());
    let number = fd.as_raw_fd();
    assert_eq!(ctl(ControlOperation::Modify, number, EventSet::IN), Err(Some(libc::ENOENT)));
    assert_eq!(ctl(ControlOperation::Delete, number, EventSet::IN), Err(Some(libc::ENOENT)));
    assert_eq!(ctl(ControlOperation::Add, -1, EventSet::IN), Err(Some(libc::EBADF)));
    assert_eq!(ctl(ControlOperation::Add, epoll.as_raw_fd(), EventSet::IN), Err(Some(libc::EINVAL)));
    assert_eq!(ctl(ControlOperation::Add, number, EventSet::IN | EventSet::EXCLUSIVE), Ok(()));
    assert_eq!(ctl(ControlOperation::Add, number, EventSet::IN), Err(Some(libc::EEXIST)));
    assert_eq!(ctl(ControlOperation::Modify, number, EventSet::EXCLUSIVE), Err(Some(libc::EINVAL)));
    assert_eq!(epoll.wait(0, &mut []).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn fill_returns_as_many_events_as_the_capacity() {
    let epoll = Epoll::new().unwrap();
    let fds = [ready_eventfd(), ready_eventfd(), ready_eventfd()];
    for (data, fd) in (0..).zip(&fds) {
        epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, data)).unwrap();
    }
    let mut events = Vec::with_capacity(2);
    assert_eq!(epoll.fill(0, &mut events).unwrap(), 2);
    assert_eq!(events.iter().map(EpollEvent::data).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(epoll.fill(0, &mut events).unwrap(), 2);
    assert_eq!(events.iter().map(EpollEvent::data).collect::<Vec<_>>(), [2, 0]);
}

/// Event sets can be matched against constants, and unknown bits cause no panic.
#[test]
fn event_sets_can_be_matched_and_preserve_unknown_bits() {
    let name = |set| match set {
        EventSet::IN => "in",
        EventSet::OUT => "out",
        _ => "other",
    };
    assert_eq!([EventSet::IN, EventSet::OUT, EventSet::all()].map(name), ["in", "out", "other"]);
    assert_eq!(EventSet::from_bits(1 << 20).map(|set| set.bits()), Some(1 << 20));
    assert!((EventSet::all() - EventSet::IN).contains(EventSet::WAKE_UP | EventSet::EXCLUSIVE));
    let all_named = EventSet::IN | EventSet::OUT | EventSet::ERROR | EventSet::READ_HANG_UP;
    let all_named = all_named | EventSet::EDGE_TRIGGERED | EventSet::HANG_UP | EventSet::PRIORITY;
    let all_named = all_named | EventSet::WAKE_UP | EventSet::ONE_SHOT | EventSet::EXCLUSIVE;
    assert_eq!(all_named.iter_names().count(), 10);
}
