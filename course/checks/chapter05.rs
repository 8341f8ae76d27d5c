use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::epoll_event;

use super::check;
use super::epoll::{Epoll, eventfd};
use crate::work::{e05a, e05b, e05c};

check!(e05a, {
    let (epoll, mut kick) = (Epoll::new().unwrap(), eventfd().unwrap());
    epoll.ctl(libc::EPOLL_CTL_ADD, kick.as_raw_fd(), e05a::interest(), 0).unwrap();
    let reports = || epoll.wait(0, &mut [epoll_event { events: 0, u64: 0 }]).unwrap();
    assert_eq!(reports(), 0, "before the kick");
    for kicks in 1..=2 {
        kick.write_all(&1u64.to_ne_bytes()).unwrap();
        assert_eq!([reports(), reports(), reports()], [1, 0, 0], "three waits after kick {kicks}");
    }
});

check!(e05b, {
    for (timeout, milliseconds) in [
        (None, -1),
        (Some(Duration::ZERO), 0),
        (Some(Duration::from_nanos(1)), 1),
        (Some(Duration::from_micros(1_500)), 2),
        (Some(Duration::from_millis(3)), 3),
        (Some(Duration::from_secs(1 << 32)), i32::MAX),
        (Some(Duration::MAX), i32::MAX),
    ] {
        assert_eq!(e05b::milliseconds(timeout), milliseconds, "{timeout:?}");
    }
});

/// Returns these results, one for each read.
struct Source(Vec<Result<&'static [u8]>>);

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let bytes = self.0.remove(0)?;
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }
}

check!(e05c, {
    let error = |kind| Err(Error::from(kind));
    let mut source = Source(vec![
        Ok(b"one "),
        error(ErrorKind::Interrupted),
        Ok(b"two "),
        error(ErrorKind::WouldBlock),
        Ok(b"three"),
        Ok(b""),
        error(ErrorKind::ConnectionReset),
    ]);
    let mut buffer = Vec::new();
    assert!(!e05c::receive(&mut source, &mut buffer).unwrap());
    assert_eq!(String::from_utf8_lossy(&buffer), "one two ");
    assert!(e05c::receive(&mut source, &mut buffer).unwrap());
    assert_eq!(String::from_utf8_lossy(&buffer), "one two three");
    let kind = e05c::receive(&mut source, &mut buffer).map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::ConnectionReset));
});
