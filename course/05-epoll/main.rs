//! Chapter 5: one thread that waits for many descriptors. It needs no KVM.

mod epoll;
mod poll;

use std::error::Error;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::thread;

use epoll::{Epoll, eventfd};
use libc::{EPOLL_CTL_ADD, EPOLLET, EPOLLIN, epoll_event};
use poll::{Poll, Token};

const IN: u32 = EPOLLIN as u32;
const EDGE_TRIGGERED: u32 = EPOLLET.cast_unsigned();

// ANCHOR: triggers
/// Signals an eventfd once, waits three times, and returns how many waits reported it.
fn reports(events: u32, read: bool) -> Result<usize, Box<dyn Error>> {
    let (epoll, mut kick) = (Epoll::new()?, eventfd()?);
    epoll.ctl(EPOLL_CTL_ADD, kick.as_raw_fd(), events, 0)?;
    kick.write_all(&1u64.to_ne_bytes())?;
    let mut reports = 0;
    for _ in 0..3 {
        let count = epoll.wait(0, &mut [epoll_event { events: 0, u64: 0 }])?;
        reports += count;
        if count > 0 && read {
            kick.read_exact(&mut [0; 8])?; // sets the counter to 0
        }
    }
    Ok(reports)
}
// ANCHOR_END: triggers

// ANCHOR: tokens
const KEYBOARD: Token = Token(0);
const NETWORK: Token = Token(1);
const KICK: Token = Token(2);

fn text(mut source: &PipeReader) -> Result<String, Box<dyn Error>> {
    let mut bytes = [0; 64];
    let len = source.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
}
// ANCHOR_END: tokens

fn main() -> Result<(), Box<dyn Error>> {
    println!("level-triggered, not read: {} of 3 waits", reports(IN, false)?);
    println!("level-triggered, read: {} of 3 waits", reports(IN, true)?);
    println!("edge-triggered, not read: {} of 3 waits", reports(IN | EDGE_TRIGGERED, false)?);

    // ANCHOR: loop
    let (keyboard, mut keys) = pipe()?;
    let (network, packets) = pipe()?;
    let mut kick = eventfd()?;
    let mut poll = Poll::new()?;
    poll.registry().register(&keyboard, KEYBOARD, IN)?;
    poll.registry().register(&kick, KICK, IN | EDGE_TRIGGERED)?;
    keys.write_all(b"key")?;

    let registry = poll.registry().clone();
    thread::scope(|scope| {
        // The main thread may wait in `poll` when this thread registers a source.
        scope.spawn(|| registry.register(&network, NETWORK, IN).and_then(|()| (&packets).write_all(b"packet")));
        loop {
            for token in poll.poll()? {
                match token {
                    KEYBOARD => println!("keyboard: {}", text(&keyboard)?),
                    NETWORK => {
                        println!("network: {}", text(&network)?);
                        kick.write_all(&1u64.to_ne_bytes())?;
                    }
                    KICK => {
                        println!("kick");
                        return Ok(());
                    }
                    other => return Err(format!("unexpected {other:?}").into()),
                }
            }
        }
    })
    // ANCHOR_END: loop
}
