//! Signals are read from a descriptor.

use kickvm::event::{EventSet, Poll, Signals};

#[test]
fn a_signal_is_read_once() {
    let signals = Signals::new(&[libc::SIGUSR2, libc::SIGHUP]).unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&signals, 1, EventSet::IN).unwrap();
    assert_eq!(signals.read().unwrap(), None);
    // SAFETY: the calls take no pointer. This thread has blocked both signals.
    let raised = unsafe { (libc::raise(libc::SIGHUP), libc::raise(libc::SIGUSR2)) };
    assert_eq!(raised, (0, 0));
    poll.poll(&mut Vec::with_capacity(1), None).unwrap();
    assert_eq!(signals.read().unwrap(), Some(libc::SIGHUP));
    assert_eq!(signals.read().unwrap(), Some(libc::SIGUSR2));
    assert_eq!(signals.read().unwrap(), None);
}

#[test]
fn an_invalid_signal_number_is_an_error() {
    for number in [0, -1, 4711] {
        assert_eq!(Signals::new(&[number]).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}
