//! Adding and removing, with few and many other descriptors, and with a short and a long ready list.
//!
//! `fd` is `EventOps::add` and `remove`; `subscriber` adds and removes a subscriber with one descriptor. The baseline
//! is two `epoll_ctl` calls, an addition and a deletion, on an instance with the same number of other descriptors.

use std::os::fd::AsRawFd;
use std::rc::Rc;

use crate::harness::{Bare, Event, Sample, compare, print, timed};

fn bare(others: &[Rc<Event>]) -> Sample<'static> {
    let epoll = Bare::new(1);
    for other in others {
        let fd = other.as_raw_fd();
        epoll.ctl(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, fd.cast_unsigned().into());
    }
    let event = Event::new(0);
    Box::new(move |runs| {
        timed(runs, || {
            epoll.ctl(libc::EPOLL_CTL_ADD, event.as_raw_fd(), libc::EPOLLIN as u32, 1);
            epoll.ctl(libc::EPOLL_CTL_DEL, event.as_raw_fd(), 0, 0);
        })
    })
}

macro_rules! managers {
    ($module:ident, $($path:tt)*) => {
        mod $module {
            use super::*;
            use $($path)*::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

            struct OneFd(Rc<Event>);

            impl MutEventSubscriber for OneFd {
                fn init(&mut self, ops: &mut EventOps) {
                    ops.add(Events::new(&*self.0, EventSet::IN)).unwrap();
                }

                fn process(&mut self, _: Events, _: &mut EventOps) {}
            }

            fn manager(others: &[Rc<Event>], capacity: usize) -> EventManager<OneFd> {
                let mut manager = EventManager::new_with_capacity(capacity).unwrap();
                for other in others {
                    manager.add_subscriber(OneFd(Rc::clone(other)));
                }
                manager
            }

            pub fn descriptor(others: &[Rc<Event>], capacity: usize) -> Sample<'static> {
                let mut manager = manager(others, capacity);
                let id = manager.add_subscriber(OneFd(Rc::new(Event::new(0))));
                let event = Event::new(0);
                Box::new(move |runs| {
                    timed(runs, || {
                        let mut ops = manager.event_ops(id).unwrap();
                        ops.add(Events::new(&event, EventSet::IN)).unwrap();
                        ops.remove(Events::new(&event, EventSet::IN)).unwrap();
                    })
                })
            }

            pub fn subscriber(others: &[Rc<Event>], capacity: usize) -> Sample<'static> {
                let mut manager = manager(others, capacity);
                let event = Rc::new(Event::new(0));
                Box::new(move |runs| {
                    timed(runs, || {
                        let id = manager.add_subscriber(OneFd(Rc::clone(&event)));
                        manager.remove_subscriber(id).unwrap();
                    })
                })
            }
        }
    };
}

managers!(this_crate, kickvm::event);
managers!(upstream, event_manager);

pub fn bench() {
    println!("Adding and removing, as a multiple of bare epoll_ctl (goal: 1.15)");
    for (count, capacity) in [(1, 256), (100, 256), (10_000, 256), (1, 65_536), (10_000, 65_536)] {
        let others: Vec<_> = (0..count).map(|_| Rc::new(Event::new(0))).collect();
        let mut contenders = [
            ("fd", this_crate::descriptor(&others, capacity)),
            ("subscriber", this_crate::subscriber(&others, capacity)),
            ("| event-manager fd", upstream::descriptor(&others, capacity)),
            ("subscriber", upstream::subscriber(&others, capacity)),
        ];
        let (time, ratios) = compare(&mut bare(&others), &mut contenders);
        print(&format!("{count} others, capacity {capacity}"), time, &contenders, &ratios);
    }
}
