//! Adding and removing, with few and many others there, and with a short and a long ready list.
//!
//! `fd` is EventOps::add and remove, `subscriber` is a whole subscriber with one descriptor; the baseline is
//! `epoll_ctl`, one addition and one deletion, on an instance that watches as many.

use std::os::fd::AsRawFd;
use std::rc::Rc;

use crate::harness::{Bare, Event, Sample, compare, print, timed};

fn bare(others: &[Rc<Event>]) -> Sample<'static> {
    let epoll = Bare::new(1);
    for other in others {
        epoll.ctl(libc::EPOLL_CTL_ADD, other.as_raw_fd(), libc::EPOLLIN as u32, other.as_raw_fd() as u64);
    }
    let event = Event::new(0);
    Box::new(move |turns| {
        timed(turns, || {
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

            struct One(Rc<Event>);

            impl MutEventSubscriber for One {
                fn init(&mut self, ops: &mut EventOps) {
                    ops.add(Events::new(&*self.0, EventSet::IN)).unwrap();
                }

                fn process(&mut self, _: Events, _: &mut EventOps) {}
            }

            fn manager(others: &[Rc<Event>], slots: usize) -> EventManager<One> {
                let mut manager = EventManager::new_with_capacity(slots).unwrap();
                for other in others {
                    manager.add_subscriber(One(Rc::clone(other)));
                }
                manager
            }

            pub fn descriptor(others: &[Rc<Event>], slots: usize) -> Sample<'static> {
                let mut manager = manager(others, slots);
                let id = manager.add_subscriber(One(Rc::new(Event::new(0))));
                let event = Event::new(0);
                Box::new(move |turns| {
                    timed(turns, || {
                        let mut ops = manager.event_ops(id).unwrap();
                        ops.add(Events::new(&event, EventSet::IN)).unwrap();
                        ops.remove(Events::new(&event, EventSet::IN)).unwrap();
                    })
                })
            }

            pub fn subscriber(others: &[Rc<Event>], slots: usize) -> Sample<'static> {
                let mut manager = manager(others, slots);
                let event = Rc::new(Event::new(0));
                Box::new(move |turns| {
                    timed(turns, || {
                        let id = manager.add_subscriber(One(Rc::clone(&event)));
                        manager.remove_subscriber(id).unwrap();
                    })
                })
            }
        }
    };
}

managers!(kick, kickvm::event);
managers!(upstream, event_manager);

pub fn bench() {
    println!("Adding and removing one, as a multiple of bare epoll_ctl (to reach: 1.15)");
    for (count, slots) in [(1, 256), (100, 256), (10_000, 256), (1, 65_536), (10_000, 65_536)] {
        let others: Vec<_> = (0..count).map(|_| Rc::new(Event::new(0))).collect();
        let mut contenders = [
            ("fd", kick::descriptor(&others, slots)),
            ("subscriber", kick::subscriber(&others, slots)),
            ("| event-manager fd", upstream::descriptor(&others, slots)),
            ("subscriber", upstream::subscriber(&others, slots)),
        ];
        let (time, ratios) = compare(&mut bare(&others), &mut contenders);
        print(&format!("{count} others, {slots} slots"), time, &contenders, &ratios);
    }
}
