//! One run of the loop with a number of ready descriptors: the wait, and a call for each descriptor.
//!
//! There are three kinds: `level` (always ready), `read` (level-triggered, each call reads) and `edge` (written before
//! each run, not read). The time excludes the writes that make the descriptors ready again. The baseline is an
//! `epoll_wait` and a loop that does the work of the subscribers, found through an index.

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Bare, Event, Sample, compare, print, timed};

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Level,
    Read,
    Edge,
}

/// What each contender does with an event: it counts the event, and reads it if `read` is set.
struct Target {
    event: Event,
    count: u64,
    read: bool,
}

impl Target {
    fn new(kind: Kind) -> Self {
        let event = Event::new(libc::EFD_NONBLOCK);
        event.write();
        Target { event, count: 0, read: kind == Kind::Read }
    }

    #[inline(always)]
    fn hit(&mut self) {
        self.count += 1;
        if self.read {
            self.event.read();
        }
    }
}

impl Kind {
    fn bits(self) -> u32 {
        (libc::EPOLLIN | if self == Kind::Edge { libc::EPOLLET } else { 0 }).cast_unsigned()
    }

    /// Times the runs, and makes all descriptors ready between them.
    fn sample(self, runs: u32, mut run: impl FnMut(), fds: &[i32]) -> Duration {
        if self == Kind::Level {
            return timed(runs, run);
        }
        let mut total = Duration::ZERO;
        for _ in 0..runs {
            for &fd in fds {
                // SAFETY: the kernel reads eight bytes of a static variable.
                unsafe { libc::write(fd, (&raw const ONE).cast(), 8) };
            }
            let start = Instant::now();
            run();
            total += start.elapsed();
        }
        total
    }
}

static ONE: u64 = 1;
const CAPACITY: usize = 1024;

fn bare(kind: Kind, count: usize) -> Sample<'static> {
    let mut epoll = Bare::new(CAPACITY);
    let mut targets: Vec<_> = (0..count).map(|_| Target::new(kind)).collect();
    for (index, target) in targets.iter().enumerate() {
        epoll.ctl(libc::EPOLL_CTL_ADD, target.event.as_raw_fd(), kind.bits(), index as u64);
    }
    let fds: Vec<_> = targets.iter().map(|target| target.event.as_raw_fd()).collect();
    Box::new(move |runs| {
        let run = || {
            for event in epoll.wait() {
                #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits")]
                targets[event.u64 as usize].hit();
            }
        };
        kind.sample(runs, run, &fds)
    })
}

/// The same subscriber and the same three managers for two crates, which use the same names.
macro_rules! managers {
    ($module:ident, $($path:tt)*) => {
        mod $module {
            use super::*;
            use $($path)*::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

            impl MutEventSubscriber for Target {
                fn init(&mut self, ops: &mut EventOps) {
                    let edge = if self.count == 1 { EventSet::EDGE_TRIGGERED } else { EventSet::empty() };
                    ops.add(Events::new(&self.event, EventSet::IN | edge)).unwrap();
                }

                #[inline]
                fn process(&mut self, _: Events, _: &mut EventOps) {
                    self.hit();
                }
            }

            fn run<S>(kind: Kind, count: usize, wrap: fn(Target) -> S) -> Sample<'static>
            where
                S: MutEventSubscriber + 'static,
            {
                let mut manager = EventManager::<S>::new_with_capacity(CAPACITY).unwrap();
                let mut fds = Vec::new();
                for _ in 0..count {
                    let mut target = Target::new(kind);
                    // `init` reads the kind from the counter.
                    target.count = u64::from(kind == Kind::Edge);
                    fds.push(target.event.as_raw_fd());
                    manager.add_subscriber(wrap(target));
                }
                Box::new(move |runs| {
                    kind.sample(runs, || { manager.run().unwrap(); }, &fds)
                })
            }

            pub fn fixed(kind: Kind, count: usize) -> Sample<'static> {
                run::<Target>(kind, count, |target| target)
            }

            pub fn boxed(kind: Kind, count: usize) -> Sample<'static> {
                run::<Box<dyn MutEventSubscriber>>(kind, count, |target| Box::new(target))
            }

            pub fn locked(kind: Kind, count: usize) -> Sample<'static> {
                run::<Arc<Mutex<dyn MutEventSubscriber + Send>>>(kind, count, |target| Arc::new(Mutex::new(target)))
            }
        }
    };
}

managers!(this_crate, kickvm::event);
managers!(upstream, event_manager);

/// kickvm's `Poll`, with the token as an index.
fn poll(kind: Kind, count: usize) -> Sample<'static> {
    let mut poll = kickvm::event::Poll::new().unwrap();
    let mut targets: Vec<_> = (0..count).map(|_| Target::new(kind)).collect();
    for (index, target) in targets.iter().enumerate() {
        let set = kickvm::event::EventSet::from_bits_retain(kind.bits());
        poll.registry().register(&target.event, index, set).unwrap();
    }
    let fds: Vec<_> = targets.iter().map(|target| target.event.as_raw_fd()).collect();
    let mut events = Vec::with_capacity(CAPACITY);
    Box::new(move |runs| {
        let run = || {
            poll.poll(&mut events, None).unwrap();
            for event in &events {
                targets[event.token().0].hit();
            }
        };
        kind.sample(runs, run, &fds)
    })
}

/// mio is always edge-triggered.
fn mio(kind: Kind, count: usize) -> Sample<'static> {
    let mut poll = mio::Poll::new().unwrap();
    let mut targets: Vec<_> = (0..count).map(|_| Target::new(kind)).collect();
    let fds: Vec<_> = targets.iter().map(|target| target.event.as_raw_fd()).collect();
    for (index, fd) in fds.iter().enumerate() {
        let mut source = mio::unix::SourceFd(fd);
        poll.registry().register(&mut source, mio::Token(index), mio::Interest::READABLE).unwrap();
    }
    let mut events = mio::Events::with_capacity(CAPACITY);
    Box::new(move |runs| {
        let run = || {
            poll.poll(&mut events, None).unwrap();
            for event in &events {
                targets[event.token().0].hit();
            }
        };
        kind.sample(runs, run, &fds)
    })
}

fn polling(kind: Kind, count: usize) -> Sample<'static> {
    use polling::{Event as Interest, Events, PollMode, Poller};
    let poller = Poller::new().unwrap();
    let mut targets: Vec<_> = (0..count).map(|_| Target::new(kind)).collect();
    let fds: Vec<_> = targets.iter().map(|target| target.event.as_raw_fd()).collect();
    let mode = if kind == Kind::Edge { PollMode::Edge } else { PollMode::Level };
    for (index, target) in targets.iter().enumerate() {
        // SAFETY: the closure owns the target and the poller, so that the target outlives its registration.
        unsafe { poller.add_with_mode(&target.event, Interest::readable(index), mode).unwrap() };
    }
    let mut events = Events::with_capacity(CAPACITY.try_into().unwrap());
    Box::new(move |runs| {
        let run = || {
            events.clear();
            poller.wait(&mut events, None).unwrap();
            for event in events.iter() {
                targets[event.key].hit();
            }
        };
        kind.sample(runs, run, &fds)
    })
}

fn calloop(kind: Kind, count: usize) -> Sample<'static> {
    use calloop::generic::Generic;
    use calloop::{EventLoop, Interest, Mode, PostAction};
    let mut event_loop = EventLoop::<()>::try_new().unwrap();
    let mode = if kind == Kind::Edge { Mode::Edge } else { Mode::Level };
    let mut fds = Vec::new();
    for _ in 0..count {
        let target = Target::new(kind);
        let fd = target.event.as_raw_fd();
        fds.push(fd);
        let target = Rc::new(Cell::new(Some(target)));
        // SAFETY: the callback owns the target, and the loop drops the callback together with the source.
        let source = Generic::new(unsafe { BorrowedFd::borrow_raw(fd) }, Interest::READ, mode);
        let callback = move |_, _: &mut _, _: &mut ()| {
            let mut inner = target.take().unwrap();
            inner.hit();
            target.set(Some(inner));
            Ok(PostAction::Continue)
        };
        event_loop.handle().insert_source(source, callback).unwrap();
    }
    Box::new(move |runs| kind.sample(runs, || event_loop.dispatch(None, &mut ()).unwrap(), &fds))
}

pub fn bench() {
    println!("One run, as a multiple of bare epoll_wait (goal: static 1.05, box 1.08, lock 1.20)");
    for (kind, name) in [(Kind::Level, "level"), (Kind::Read, "read"), (Kind::Edge, "edge")] {
        for count in [1, 10, 100, 1000] {
            let mut contenders = vec![
                ("static", this_crate::fixed(kind, count)),
                ("box", this_crate::boxed(kind, count)),
                ("lock", this_crate::locked(kind, count)),
                ("poll", poll(kind, count)),
                ("| event-manager static", upstream::fixed(kind, count)),
                ("box", upstream::boxed(kind, count)),
                ("lock", upstream::locked(kind, count)),
                ("| polling", polling(kind, count)),
                ("calloop", calloop(kind, count)),
            ];
            if kind != Kind::Level {
                contenders.push(("mio", mio(kind, count)));
            }
            let (time, ratios) = compare(&mut bare(kind, count), &mut contenders);
            print(&format!("{name}, {count} ready"), time, &contenders, &ratios);
        }
    }
}
