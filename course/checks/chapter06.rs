use std::os::fd::AsRawFd;

use super::check;
use super::epoll::{Epoll, eventfd};
use crate::work::{e06a, e06b};

check!(e06a, {
    let mut registrations = e06a::Registrations::default();
    let (five, six) = (registrations.add(5, "five"), registrations.add(6, "six"));
    assert_eq!((registrations.resolve(five), registrations.resolve(six)), (Some("five"), Some("six")));
    registrations.remove(6);
    assert_eq!(registrations.resolve(six), None, "a removed registration");
    let new = registrations.add(6, "new six");
    assert_eq!(registrations.resolve(six), None, "an event of the closed descriptor");
    assert_eq!(registrations.resolve(new), Some("new six"));
    let newer = registrations.add(6, "newer six");
    assert_eq!((registrations.resolve(new), registrations.resolve(newer)), (None, Some("newer six")));
    assert_eq!(registrations.resolve(five), Some("five"));
    assert_eq!(registrations.resolve(7), None);
});

check!(e06b, {
    let epoll = Epoll::new().unwrap();
    let add = |fd| move |epoll: &Epoll| epoll.ctl(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, 0);
    let mut owners = e06b::Owners::default();
    let (old, other) = (eventfd().unwrap(), eventfd().unwrap());
    let fd = other.as_raw_fd();
    owners.add(fd, 1, || add(fd)(&epoll)).unwrap();
    let again = owners.add(fd, 2, || add(fd)(&epoll)).map_err(|error| error.kind());
    assert_eq!(again, Err(std::io::ErrorKind::AlreadyExists), "the descriptor is open and registered");
    assert_eq!(owners.owner(fd), Some(1));
    // Closes `other` and gives its number to the file of `old`, in one step: other tests open descriptors, too.
    // SAFETY: both descriptors are open, and `other` stays the owner of its number.
    assert_eq!(unsafe { libc::dup2(old.as_raw_fd(), fd) }, fd);
    owners.add(fd, 2, || add(fd)(&epoll)).expect("the number belongs to another file now");
    assert_eq!(owners.owner(fd), Some(2));
});
