//! The process that serves a share, and its threads.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::super::{Chain, Virtio};
use super::session::{Scratch, Session};
use super::{Fs, Share};
use crate::event::{ControlOperation, Epoll, EpollEvent, EventSet};
use crate::sys::shared_process::SharedProcess;

/// Requests that can be executed at a time. With one in flight, one thread works.
const WORKERS: usize = 4;
const STACK: usize = 256 << 10;

/// A process that executes the requests for one device. It ends when this is dropped, or with kickvm.
#[derive(Debug)]
pub struct Server {
    process: SharedProcess,
    // Both own descriptors of kickvm, so the last to drop them must not be the process.
    _share: Arc<Share>,
    device: Arc<Mutex<Virtio<Fs>>>,
    stop: EventFd,
}

impl Server {
    /// Serves `share` by `device`, whose buffers are in `memory`.
    ///
    /// # Errors
    ///
    /// The host has no more processes or descriptors.
    pub fn start(share: Share, device: Arc<Mutex<Virtio<Fs>>>, memory: &GuestMemoryMmap) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let mut kept = device.lock().unwrap_or_else(PoisonError::into_inner).descriptors();
        let bells = kept[..kept.len() - 1].to_vec();
        kept.extend([stop.as_raw_fd(), share.root.as_raw_fd()]);
        let share = Arc::new(share);
        let (served, copy, memory, stop_fd) = (share.clone(), device.clone(), memory.clone(), stop.as_raw_fd());
        let process = SharedProcess::start(kept, move || serve(&served, &copy, &memory, &bells, stop_fd))?;
        Ok(Self { process, _share: share, device, stop })
    }

    /// Ends the process. Returns the number of requests that it has not finished by `deadline`.
    pub fn stop(&self, deadline: Instant) -> u32 {
        let _ = self.stop.write(1); // a full counter is readable
        if self.process.wait(deadline) {
            return 0;
        }
        self.device.lock().unwrap_or_else(PoisonError::into_inner).device.in_flight
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
    }
}

/// The process. An error ends it, and the guest gets no more replies.
fn serve(share: &Share, device: &Mutex<Virtio<Fs>>, memory: &GuestMemoryMmap, bells: &[RawFd], stop: RawFd) {
    let Ok(session) = Session::new(share, memory) else { return };
    let Ok(epoll) = Epoll::new() else { return };
    // Each notification wakes one thread; the end wakes all.
    let bells = bells.iter().map(|bell| (*bell, EventSet::IN | EventSet::EDGE_TRIGGERED, 0));
    for (fd, events, data) in bells.chain([(stop, EventSet::IN, 1)]) {
        if epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data)).is_err() {
            return;
        }
    }
    thread::scope(|scope| {
        let work = || work(&session, device, memory, &epoll);
        let start = |number| {
            let builder = thread::Builder::new().name(format!("kickvm-fs{number}")).stack_size(STACK);
            builder.spawn_scoped(scope, work).ok() // fewer threads suffice
        };
        let threads: Vec<_> = (1..WORKERS).map_while(start).collect();
        work();
        threads.into_iter().for_each(|thread| drop(thread.join())); // the end of the scope does not wait for their exit
    });
}

fn work(session: &Session<'_>, device: &Mutex<Virtio<Fs>>, memory: &GuestMemoryMmap, epoll: &Epoll) {
    let (mut chain, mut scratch) = (Chain::default(), Scratch::default());
    let (mut done, mut waited) = (None, false);
    loop {
        let mut next = None;
        device.lock().unwrap_or_else(PoisonError::into_inner).work(|fs, queues| {
            fs.idle -= u32::from(std::mem::take(&mut waited));
            if let Some((queue, head, written)) = done.take() {
                fs.in_flight -= 1;
                // After a reset the driver expects no reply.
                if let Some(queue) = queues.get_mut::<usize>(queue) {
                    queue.push(head, written);
                }
            }
            next = (0..).zip(queues).find_map(|(index, queue)| {
                let popped = queue.pop(&mut chain);
                if popped && fs.idle > 0 {
                    queue.rearm(); // another worker takes the next request
                }
                popped.then_some(index)
            });
            match next {
                Some(_) => fs.in_flight += 1,
                None => {
                    fs.idle += 1;
                    waited = true;
                }
            }
        });
        match next {
            Some(queue) => done = Some((queue, chain.head, session.handle(memory, &mut chain, &mut scratch))),
            None => {
                let mut events = [EpollEvent::default()];
                match epoll.wait(-1, &mut events) {
                    Ok(_) if events[0].data() == 1 => return,
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                    _ => {} // SIGSTOP and SIGCONT interrupt it
                }
            }
        }
    }
}
