//! Other threads reach the loop, and the loop reaches itself, and nobody waits for ever.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use kickvm::event::{Error, EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, Result, SubscriberOps};

use crate::common::*;

fn send_sync_clone<T: Send + Sync + Clone>(_: &T) {}

/// A manager's thread, which ends when told so.
fn looping(
    mut manager: Manager,
) -> (RemoteEndpoint<Arc<Mutex<dyn MutEventSubscriber + Send>>>, impl FnOnce() -> usize) {
    let endpoint = manager.remote_endpoint();
    let (stop, stopped) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let mut delivered = 0;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            delivered += manager.run().unwrap();
        }
        delivered
    });
    let kicker = endpoint.clone();
    (endpoint, move || {
        drop(stop);
        kicker.kick().unwrap();
        thread.join().unwrap()
    })
}

#[test]
fn another_thread_adds_changes_and_removes_subscribers() {
    let (endpoint, stop) = looping(manager());
    let fd = quiet();
    let (told, hear) = mpsc::channel();
    let probe = Probe::reacting([input(&fd)], move |events, ops| {
        ops.remove(events).unwrap();
        told.send(thread::current().id()).unwrap();
    });
    let id = endpoint.call_blocking(move |ops| Ok::<_, Error>(ops.add_subscriber(probe))).unwrap();
    fd.write(1).unwrap();
    assert_ne!(hear.recv().unwrap(), thread::current().id());
    let again = input(&fd);
    endpoint.fire(move |ops| ops.event_ops(id).unwrap().add(again).unwrap()).unwrap();
    hear.recv().unwrap();
    endpoint.call_blocking(move |ops| ops.remove_subscriber(id).map(drop)).unwrap();
    let gone: Result<()> = endpoint.call_blocking(move |ops| ops.event_ops(id).map(drop));
    assert_eq!(gone, Err(Error::InvalidId));
    assert_eq!(stop(), 2, "neither requests nor kicks are events");
}

#[test]
fn an_endpoint_goes_to_other_threads_even_if_its_subscribers_cannot() {
    struct Local(Rc<RefCell<u32>>);
    impl MutEventSubscriber for Local {
        fn init(&mut self, _: &mut EventOps) {}
        fn process(&mut self, _: Events, _: &mut EventOps) {}
    }
    let count = Rc::new(RefCell::new(0));
    let mut manager = EventManager::<Local>::new().unwrap();
    let id = manager.add_subscriber(Local(Rc::clone(&count)));
    let endpoint = manager.remote_endpoint();
    send_sync_clone(&endpoint);
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            endpoint.call_blocking(move |ops| -> Result<()> {
                *ops.subscriber_mut(id)?.0.borrow_mut() += 1;
                Ok(())
            })
        });
        manager.run().unwrap();
        assert_eq!(caller.join().unwrap(), Ok(()));
    });
    assert_eq!(*count.borrow(), 1);
}

#[test]
fn many_callers_all_get_their_own_answer() {
    let (endpoint, stop) = looping(manager());
    thread::scope(|scope| {
        for caller in 0..8u64 {
            let endpoint = endpoint.clone();
            scope.spawn(move || {
                for call in 0..200 {
                    let answer = endpoint.call_blocking(move |_| Ok::<_, Error>((caller, call)));
                    assert_eq!(answer, Ok((caller, call)));
                }
            });
        }
    });
    stop();
}

#[test]
fn a_kick_counts_whenever_it_comes_and_once() {
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    for _ in 0..3 {
        endpoint.kick().unwrap();
        endpoint.kick().unwrap();
        assert_eq!(manager.run(), Ok(0));
    }
    let waiting = asleep(move || manager.run());
    assert!(!waiting.is_finished());
    endpoint.kick().unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(0));
}

#[test]
fn a_blocking_call_on_the_loops_own_thread_is_an_error() {
    let (fd, mut manager) = (ready(), manager());
    let endpoint = manager.remote_endpoint();
    let call = move || endpoint.call_blocking(|_| Ok::<_, Error>(()));
    let from_process = call.clone();
    manager.add_subscriber(Probe::reacting([input(&fd)], move |events, ops| {
        assert_eq!(from_process(), Err(Error::WouldDeadlock));
        ops.remove(events).unwrap();
    }));
    assert_eq!(manager.run(), Ok(1));

    // From a request, also after that request has added a subscriber, whose `init` calls too.
    struct Calling(Box<dyn Fn() -> Result<()> + Send>);
    impl MutEventSubscriber for Calling {
        fn init(&mut self, _: &mut EventOps) {
            assert_eq!(self.0(), Err(Error::WouldDeadlock));
        }
        fn process(&mut self, _: Events, _: &mut EventOps) {}
    }
    let (from_init, from_request) = (call.clone(), call.clone());
    let done = Arc::new(AtomicUsize::new(0));
    let reached = Arc::clone(&done);
    manager
        .remote_endpoint()
        .fire(move |ops| {
            ops.add_subscriber(Arc::new(Mutex::new(Calling(Box::new(from_init)))));
            assert_eq!(from_request(), Err(Error::WouldDeadlock));
            reached.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    manager.run().unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 1);

    // A thread that only was the loop's may call.
    let thread = thread::spawn(move || manager.run().unwrap());
    assert_eq!(call(), Ok(()));
    thread.join().unwrap();
}

#[test]
fn a_request_that_fires_itself_runs_once_a_turn() {
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    let count = Arc::new(AtomicUsize::new(0));
    fn again(endpoint: RemoteEndpoint<Arc<Mutex<dyn MutEventSubscriber + Send>>>, count: Arc<AtomicUsize>) {
        let next = endpoint.clone();
        let fired = endpoint.fire(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            again(next, count);
        });
        fired.unwrap();
    }
    again(endpoint, Arc::clone(&count));
    for turn in 1..=5 {
        assert_eq!(manager.run(), Ok(0));
        assert_eq!(count.load(Ordering::Relaxed), turn);
    }
}

#[test]
fn a_panicking_request_strands_nobody() {
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    let (told, hear) = mpsc::channel();
    thread::scope(|scope| {
        let caller = scope.spawn(|| endpoint.call_blocking(|_| -> Result<()> { panic!("as told") }));
        assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
        assert_eq!(caller.join().unwrap(), Err(Error::ChannelRecv));
    });
    for number in 0..5 {
        let told = told.clone();
        endpoint.fire(move |_| if number == 1 { panic!("as told") } else { told.send(number).unwrap() }).unwrap();
    }
    assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
    assert_eq!(hear.try_iter().collect::<Vec<_>>(), [0]);
    // The rest is run without a wake-up of its own, and the thread is no longer taken for the loop's.
    assert_eq!(manager.run(), Ok(0));
    assert_eq!(hear.try_iter().collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

#[test]
fn a_request_survives_a_panic_of_a_subscriber_in_the_same_turn() {
    let (fd, mut manager) = (ready(), manager());
    let endpoint = manager.remote_endpoint();
    let (told, hear) = mpsc::channel();
    endpoint.fire(move |_| told.send(()).unwrap()).unwrap();
    manager.add_subscriber(Probe::reacting([input(&fd)], |events, ops| {
        ops.remove(events).unwrap();
        panic!("as told");
    }));
    assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
    assert_eq!(manager.run(), Ok(0));
    hear.try_recv().unwrap();
}

#[test]
fn a_dropped_manager_answers() {
    let manager = manager();
    let endpoint = manager.remote_endpoint();
    let call = endpoint.clone();
    let waiting = asleep(move || call.call_blocking(|_| Ok::<_, Error>(())));
    let (told, hear) = mpsc::channel::<()>();
    endpoint.fire(move |_| drop(told)).unwrap();
    drop(manager);
    assert_eq!(waiting.join().unwrap(), Err(Error::ChannelRecv));
    assert_eq!(hear.try_recv(), Err(mpsc::TryRecvError::Disconnected), "a request nobody ran is dropped");
    assert_eq!(endpoint.call_blocking(|_| Ok::<_, Error>(())), Err(Error::ChannelSend));
    assert_eq!(endpoint.fire(|_| ()), Err(Error::ChannelSend));
    assert_eq!(endpoint.kick(), Ok(()));
}

/// Its subscribers are dropped after the mailbox is closed, so one that calls the manager as it goes gets an answer.
#[test]
fn a_subscriber_may_call_while_its_manager_is_dropped() {
    struct Leaving(Option<RemoteEndpoint<Leaving>>, mpsc::Sender<Result<()>>);
    impl MutEventSubscriber for Leaving {
        fn init(&mut self, _: &mut EventOps) {}
        fn process(&mut self, _: Events, _: &mut EventOps) {}
    }
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.1.send(self.0.take().unwrap().call_blocking(|_| Ok(()))).unwrap();
        }
    }
    let (told, hear) = mpsc::channel();
    let mut manager = EventManager::new().unwrap();
    let endpoint = manager.remote_endpoint();
    manager.add_subscriber(Leaving(Some(endpoint), told));
    drop(manager);
    assert_eq!(hear.recv().unwrap(), Err(Error::ChannelSend));
}
