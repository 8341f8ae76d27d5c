//! `Registry` registers while `Poll` waits.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kickvm::event::{EventSet, Poll, Registry, Token};

use crate::common::*;

fn assert_send_and_sync<T: Send + Sync>() {}

#[test]
fn another_thread_registers_while_poll_blocks() {
    assert_send_and_sync::<Registry>();
    let mut poll = Poll::new().unwrap();
    let registry = poll.registry().try_clone().unwrap();
    let waiting = spawn_until_blocked(move || {
        let mut events = Vec::with_capacity(4);
        poll.poll(&mut events, None).unwrap();
        events[0].token()
    });
    assert!(!waiting.is_finished());
    let fd = ready_eventfd();
    registry.register(&fd, Token(usize::MAX), EventSet::IN).unwrap();
    assert_eq!(waiting.join().unwrap(), Token(usize::MAX));
}

#[test]
fn a_registry_may_outlive_its_poll() {
    let registry = Poll::new().unwrap().registry().try_clone().unwrap();
    registry.register(&ready_eventfd(), 1, EventSet::IN).unwrap();
}

#[test]
fn tokens_identify_sources() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut poll = Poll::new().unwrap();
    let mut streams = Vec::new();
    for token in 0..3 {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        poll.registry().register(&near, token, EventSet::IN).unwrap();
        streams.push((near, far));
    }
    let mut events = Vec::with_capacity(8);
    for token in [2, 0, 1] {
        streams[token].1.write_all(b"x").unwrap();
        poll.poll(&mut events, None).unwrap();
        assert_eq!(events.iter().map(|event| event.token()).collect::<Vec<_>>(), [Token(token)]);
        poll.registry().deregister(&streams[token].0).unwrap();
    }
}

#[test]
fn a_source_is_registered_reregistered_and_deregistered_once() {
    let (fd, mut poll) = (ready_eventfd(), Poll::new().unwrap());
    let registry = poll.registry();
    assert_eq!(registry.reregister(&fd, 1, EventSet::IN).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    registry.register(&fd, 1, EventSet::IN).unwrap();
    assert_eq!(registry.register(&fd, 1, EventSet::IN).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    registry.reregister(&fd, 2, EventSet::OUT).unwrap();
    let mut events = Vec::with_capacity(8);
    poll.poll(&mut events, None).unwrap();
    assert_eq!((events[0].token(), events[0].event_set()), (Token(2), EventSet::OUT));
    poll.registry().deregister(&fd).unwrap();
    assert_eq!(poll.registry().deregister(&fd).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty());
}

#[test]
fn a_list_without_capacity_is_an_error() {
    let mut poll = Poll::new().unwrap();
    let error = poll.poll(&mut Vec::new(), None).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn poll_returns_at_most_as_many_events_as_the_capacity() {
    let mut poll = Poll::new().unwrap();
    let pairs: Vec<_> = (0..5).map(|_| UnixStream::pair().unwrap()).collect();
    for (token, (near, _)) in pairs.iter().enumerate() {
        poll.registry().register(near, token, EventSet::OUT).unwrap();
    }
    let mut events = Vec::with_capacity(2);
    poll.poll(&mut events, None).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events.capacity(), 2);
}
