//! Chapter 6: an event manager, and two reasons why a descriptor number is not an identity. It needs no KVM.

#[path = "../05-epoll/epoll.rs"]
mod epoll;
mod manager;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use epoll::eventfd;
use manager::{Event, Identity, Manager, Ops, Subscriber};

const IN: u32 = libc::EPOLLIN as u32;

// ANCHOR: server
/// A server whose connections are eventfds. An event on connection 1 makes it replace connection 2 by connection 3.
struct Server(BTreeMap<u32, File>);

impl Subscriber for Server {
    fn init(&mut self, ops: &mut Ops) -> io::Result<()> {
        self.0.iter().try_for_each(|(&number, connection)| ops.add(connection, number, IN))
    }

    fn process(&mut self, event: Event, ops: &mut Ops) -> io::Result<()> {
        let connection = self.0.get_mut(&event.data).expect("only these connections are registered");
        match connection.read(&mut [0; 8]) {
            Ok(_) => println!("  connection {}: data", event.data),
            Err(error) => println!("  connection {}: an event, but no data: {error}", event.data),
        }
        if event.data == 1 {
            let old = self.0.remove(&2).expect("there is a connection 2");
            let number = old.as_raw_fd();
            ops.remove(number)?;
            drop(old); // closes the descriptor
            let new = eventfd()?;
            println!("  connection 3 has the number of connection 2: {}", new.as_raw_fd() == number);
            ops.add(&new, 3, IN)?;
            self.0.insert(3, new);
        }
        Ok(())
    }
}

fn replace(identity: Identity) -> Result<(), Box<dyn Error>> {
    let connections = BTreeMap::from([(1, eventfd()?), (2, eventfd()?)]);
    connections.values().try_for_each(|mut connection| connection.write_all(&1u64.to_ne_bytes()))?;
    let mut manager = Manager::new(identity)?;
    manager.add(Server(connections))?;
    let (events, calls) = manager.run(0)?;
    println!("  {events} events, {calls} calls");
    Ok(())
}
// ANCHOR_END: server

// ANCHOR: stale
/// Closes its descriptor in its first event. The open file stays: there is a duplicate of the descriptor.
struct Closer {
    source: Option<File>,
    remove_first: bool,
}

impl Subscriber for Closer {
    fn init(&mut self, ops: &mut Ops) -> io::Result<()> {
        self.source.iter().try_for_each(|source| ops.add(source, 0, IN))
    }

    fn process(&mut self, event: Event, ops: &mut Ops) -> io::Result<()> {
        let Some(source) = self.source.take() else { return Ok(()) };
        if self.remove_first {
            ops.remove(event.fd)?;
        }
        drop(source);
        Ok(())
    }
}

fn close(remove_first: bool) -> Result<(), Box<dyn Error>> {
    let mut source = eventfd()?;
    source.write_all(&1u64.to_ne_bytes())?;
    let _duplicate = source.try_clone()?;
    let mut manager = Manager::new(Identity::Registration)?;
    manager.add(Closer { source: Some(source), remove_first })?;
    manager.run(0)?;
    let mut woken = 0;
    for _ in 0..5 {
        woken += manager.run(0)?.0;
    }
    println!("  after that, {woken} of 5 turns were woken");
    Ok(())
}
// ANCHOR_END: stale

fn main() -> Result<(), Box<dyn Error>> {
    println!("the number is the identity:");
    replace(Identity::Number)?;
    println!("the registration is the identity:");
    replace(Identity::Registration)?;
    println!("closed:");
    close(false)?;
    println!("removed, then closed:");
    close(true)
}
