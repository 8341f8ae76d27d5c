//! From one thread to another and back. Both are on one CPU, so that the time excludes the wake-up of an idle core.
//!
//! `call` is `RemoteEndpoint::call_blocking`; its baseline is a ping-pong of two blocking eventfds. `kick` is a write
//! to an eventfd, to which a callback replies with a write to another one; its baseline is a loop of bare `epoll_wait`.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::harness::{Bare, Event, Sample, compare, pin, print, timed};

fn spawn_on_this_cpu(body: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        pin();
        body();
    });
}

fn ping_pong() -> Sample<'static> {
    let (ping, pong) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
    let (there, back) = (Arc::clone(&ping), Arc::clone(&pong));
    spawn_on_this_cpu(move || {
        loop {
            there.read();
            back.write();
        }
    });
    Box::new(move |runs| {
        timed(runs, || {
            ping.write();
            pong.read();
        })
    })
}

/// Samples kicks, each with a reply by the callback.
fn kicks(kick: Arc<Event>, reply: Arc<Event>) -> Sample<'static> {
    Box::new(move |runs| {
        let start = Instant::now();
        for _ in 0..runs {
            kick.write();
            reply.read();
        }
        start.elapsed()
    })
}

fn bare() -> Sample<'static> {
    let (kick, reply) = (Arc::new(Event::new(libc::EFD_NONBLOCK)), Arc::new(Event::new(0)));
    let (source, back) = (Arc::clone(&kick), Arc::clone(&reply));
    spawn_on_this_cpu(move || {
        use std::os::fd::AsRawFd;
        let mut epoll = Bare::new(256);
        epoll.ctl(libc::EPOLL_CTL_ADD, source.as_raw_fd(), (libc::EPOLLIN | libc::EPOLLET).cast_unsigned(), 0);
        loop {
            for _ in epoll.wait() {
                back.write();
            }
        }
    });
    kicks(kick, reply)
}

macro_rules! managers {
    ($module:ident, $($path:tt)*) => {
        mod $module {
            use super::*;
            use $($path)*::{Error, EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

            struct Replying(Arc<Event>, Arc<Event>);

            impl MutEventSubscriber for Replying {
                fn init(&mut self, ops: &mut EventOps) {
                    ops.add(Events::new(&*self.0, EventSet::IN | EventSet::EDGE_TRIGGERED)).unwrap();
                }

                fn process(&mut self, _: Events, _: &mut EventOps) {
                    self.1.write();
                }
            }

            pub fn call() -> Sample<'static> {
                let mut manager = EventManager::<Replying>::new().unwrap();
                let endpoint = manager.remote_endpoint();
                spawn_on_this_cpu(move || loop { manager.run().unwrap(); });
                Box::new(move |runs| {
                    timed(runs, || {
                        endpoint.call_blocking(|_| Ok::<_, Error>(1u64)).unwrap();
                    })
                })
            }

            pub fn kick() -> Sample<'static> {
                let (kick, reply) = (Arc::new(Event::new(libc::EFD_NONBLOCK)), Arc::new(Event::new(0)));
                let subscriber = Replying(Arc::clone(&kick), Arc::clone(&reply));
                spawn_on_this_cpu(move || {
                    let mut manager = EventManager::<Replying>::new().unwrap();
                    manager.add_subscriber(subscriber);
                    loop {
                        manager.run().unwrap();
                    }
                });
                kicks(kick, reply)
            }
        }
    };
}

managers!(this_crate, kickvm::event);
managers!(upstream, event_manager);

pub fn bench() {
    pin();
    println!("Between threads, as a multiple of bare eventfds (goal: call 1.15, kick 1.02)");
    let mut contenders = [("call_blocking", this_crate::call()), ("| event-manager", upstream::call())];
    let (time, ratios) = compare(&mut ping_pong(), &mut contenders);
    print("call", time, &contenders, &ratios);
    let mut contenders = [("callback", this_crate::kick()), ("| event-manager", upstream::kick())];
    let (time, ratios) = compare(&mut bare(), &mut contenders);
    print("kick", time, &contenders, &ratios);
}
