//! Subscribers have one type or several, and pointers and cells of subscribers are subscribers.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kickvm::event::{
    Callback, Error, EventManager, EventOps, EventSubscriber, Events, MutEventSubscriber, Source, SubscriberOps, Timer,
};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;

struct Counter(EventFd, AtomicUsize);

impl Counter {
    fn new() -> Self {
        Counter(ready_eventfd(), AtomicUsize::new(0))
    }
}

impl EventSubscriber for Counter {
    fn init(&self, ops: &mut EventOps) {
        ops.add(input(&self.0)).unwrap();
    }

    fn process(&self, _: Events, _: &mut EventOps) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

struct MutCounter(EventFd, usize);

impl MutCounter {
    fn new() -> Self {
        MutCounter(ready_eventfd(), 0)
    }
}

impl MutEventSubscriber for MutCounter {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(input(&self.0)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.1 += 1;
    }
}

fn assert_runs<S: MutEventSubscriber>(subscriber: S) {
    let mut manager = EventManager::new().unwrap();
    let id = manager.add_subscriber(subscriber);
    assert_eq!(manager.run(), Ok(1));
    assert!(manager.subscriber_mut(id).is_ok());
    assert!(manager.remove_subscriber(id).is_ok());
}

#[test]
fn every_wrapper_is_a_subscriber() {
    assert_runs(MutCounter::new());
    assert_runs(Box::new(MutCounter::new()));
    assert_runs(Box::new(MutCounter::new()) as Box<dyn MutEventSubscriber>);
    assert_runs(RefCell::new(MutCounter::new()));
    assert_runs(Mutex::new(MutCounter::new()));
    assert_runs(Arc::new(Counter::new()));
    assert_runs(Rc::new(Counter::new()));
    assert_runs(Arc::new(Counter::new()) as Arc<dyn EventSubscriber>);
    assert_runs(Rc::new(Box::new(Counter::new()) as Box<dyn EventSubscriber>));
    assert_runs(Arc::new(Mutex::new(MutCounter::new())) as Arc<Mutex<dyn MutEventSubscriber + Send>>);
    assert_runs(Rc::new(RefCell::new(MutCounter::new())) as Rc<RefCell<dyn MutEventSubscriber>>);
}

#[test]
fn a_removed_subscriber_gets_no_events_and_its_identifier_is_invalid() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let probe = Probe::new([input(&fd)]);
    let id = manager.add_subscriber(probe.clone());
    assert!(manager.remove_subscriber(id).is_ok());
    let next = manager.add_subscriber(Probe::new([]));
    assert_ne!(id, next);
    assert_eq!(manager.event_ops(id).err(), Some(Error::InvalidId));
    assert_eq!(manager.subscriber_mut(id).err(), Some(Error::InvalidId));
    assert_eq!(manager.remove_subscriber(id).err(), Some(Error::InvalidId));
    assert_eq!(manager.run_with_timeout(0), Ok(0));
    assert!(received_fds(&probe).is_empty());
}

#[test]
fn another_manager_rejects_an_identifier() {
    let (mut mine, mut other) = (manager(), manager());
    let id = mine.add_subscriber(Probe::new([]));
    other.add_subscriber(Probe::new([]));
    assert_eq!(other.subscriber_mut(id).err(), Some(Error::InvalidId));
}

#[test]
fn a_manager_may_move_to_another_thread() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    manager.add_subscriber(Probe::new([input(&fd)]));
    assert_eq!(std::thread::spawn(move || manager.run()).join().unwrap(), Ok(1));
}

#[test]
fn a_callback_gets_items_and_errors() {
    struct Failing(EventFd);
    impl AsRawFd for Failing {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }
    impl Source for Failing {
        type Item = ();
        fn read(&self) -> io::Result<Option<()>> {
            Err(io::ErrorKind::Other.into())
        }
    }
    let calls = Arc::new(Mutex::new(Vec::new()));
    let record = |calls: &Arc<Mutex<Vec<String>>>| {
        let calls = Arc::clone(calls);
        move |text: String| calls.lock().unwrap().push(text)
    };
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
    let timer = Timer::new().unwrap();
    timer.arm(Duration::ZERO).unwrap();
    let call = record(&calls);
    manager.add_subscriber(Box::new(Callback::new(timer, move |read, _| call(format!("{:?}", read.ok())))));
    manager.run().unwrap();
    let call = record(&calls);
    let failing =
        Callback::new(Failing(ready_eventfd()), move |read, _| call(format!("{:?}", read.map_err(|e| e.kind()))));
    manager.add_subscriber(Box::new(failing));
    manager.run().unwrap();
    assert_eq!(*calls.lock().unwrap(), ["Some(1)", "Err(Other)"]);
}

#[test]
fn a_callback_gets_the_error_of_its_registration() {
    struct Regular(std::fs::File);
    impl AsRawFd for Regular {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }
    impl Source for Regular {
        type Item = ();
        fn read(&self) -> io::Result<Option<()>> {
            Ok(None)
        }
    }
    let mut errors = Vec::new();
    let file = Regular(std::fs::File::open(std::env::current_exe().unwrap()).unwrap());
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Callback::new(file, |read: io::Result<()>, _: &mut EventOps| {
        errors.push(read.unwrap_err().kind())
    }));
    drop(manager);
    assert_eq!(errors, [io::ErrorKind::PermissionDenied]);
}
