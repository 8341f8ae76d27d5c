//! Hang-ups and errors are reported without being registered.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use kickvm::event::{EventSet, Events, SubscriberOps};

use crate::common::*;

#[test]
fn a_hang_up_is_reported_until_the_descriptor_is_removed() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut manager = manager();
    let probe = Probe::new([Events::empty(&near)]);
    let id = manager.add_subscriber(probe.clone());
    assert_eq!(manager.run_with_timeout(0), Ok(0));
    drop(far);
    for _ in 0..3 {
        assert_eq!(manager.run_with_timeout(0), Ok(1));
        assert_eq!(received(&probe), [Events::new(&near, EventSet::HANG_UP)]);
    }
    manager.event_ops(id).unwrap().remove(Events::empty(&near)).unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

#[test]
fn a_half_closed_peer_is_reported_if_registered() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut manager = manager();
    let probe = Probe::new([Events::new(&near, EventSet::READ_HANG_UP)]);
    manager.add_subscriber(probe.clone());
    far.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(manager.run(), Ok(1));
    assert_eq!(received(&probe), [Events::new(&near, EventSet::READ_HANG_UP)]);
}

#[test]
fn an_error_is_reported_without_being_registered() {
    // A pipe without a reader has an error at its writing end.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut manager = manager();
    let probe = Probe::new([Events::empty(&writer)]);
    manager.add_subscriber(probe.clone());
    writer.write_all(b"x").unwrap();
    assert_eq!(manager.run_with_timeout(0), Ok(0));
    drop(reader);
    assert_eq!(manager.run_with_timeout(0), Ok(1));
    assert_eq!(received(&probe), [Events::new_raw(writer.as_raw_fd(), EventSet::ERROR)]);
}
