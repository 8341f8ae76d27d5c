//! Other threads and the loop's own thread send requests to the loop, and no caller waits for ever.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use kickvm::event::{Error, EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, Result, SubscriberOps};

use crate::common::*;

fn send_sync_clone<T: Send + Sync + Clone>(_: &T) {}

/// Runs a manager on a new thread. Returns an endpoint and a closure that ends the thread and returns the number of
/// delivered events.
fn run_on_thread(
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
    let (endpoint, stop) = run_on_thread(manager());
    let fd = idle_eventfd();
    let (sender, receiver) = mpsc::channel();
    let probe = Probe::reacting([input(&fd)], move |events, ops| {
        ops.remove(events).unwrap();
        sender.send(thread::current().id()).unwrap();
    });
    let id = endpoint.call_blocking(move |ops| Ok::<_, Error>(ops.add_subscriber(probe))).unwrap();
    fd.write(1).unwrap();
    assert_ne!(receiver.recv().unwrap(), thread::current().id());
    let again = input(&fd);
    endpoint.fire(move |ops| ops.event_ops(id).unwrap().add(again).unwrap()).unwrap();
    receiver.recv().unwrap();
    endpoint.call_blocking(move |ops| ops.remove_subscriber(id).map(drop)).unwrap();
    let gone: Result<()> = endpoint.call_blocking(move |ops| ops.event_ops(id).map(drop));
    assert_eq!(gone, Err(Error::InvalidId));
    assert_eq!(stop(), 2, "requests and kicks are not counted as events");
}

#[test]
fn an_endpoint_is_send_even_if_the_subscribers_are_not() {
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
fn each_of_many_callers_gets_its_own_reply() {
    let (endpoint, stop) = run_on_thread(manager());
    thread::scope(|scope| {
        for caller in 0..8u64 {
            let endpoint = endpoint.clone();
            scope.spawn(move || {
                for call in 0..200 {
                    let reply = endpoint.call_blocking(move |_| Ok::<_, Error>((caller, call)));
                    assert_eq!(reply, Ok((caller, call)));
                }
            });
        }
    });
    stop();
}

#[test]
fn kicks_before_or_during_a_wait_end_it_once() {
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    for _ in 0..3 {
        endpoint.kick().unwrap();
        endpoint.kick().unwrap();
        assert_eq!(manager.run(), Ok(0));
    }
    let waiting = spawn_until_blocked(move || manager.run());
    assert!(!waiting.is_finished());
    endpoint.kick().unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(0));
}

#[test]
fn a_blocking_call_on_the_loops_own_thread_is_an_error() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let endpoint = manager.remote_endpoint();
    let call = move || endpoint.call_blocking(|_| Ok::<_, Error>(()));
    let from_process = call.clone();
    manager.add_subscriber(Probe::reacting([input(&fd)], move |events, ops| {
        assert_eq!(from_process(), Err(Error::WouldDeadlock));
        ops.remove(events).unwrap();
    }));
    assert_eq!(manager.run(), Ok(1));

    // From a request, also after that request has added a subscriber whose `init` makes a call.
    struct CallingInInit(Box<dyn Fn() -> Result<()> + Send>);
    impl MutEventSubscriber for CallingInInit {
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
            ops.add_subscriber(Arc::new(Mutex::new(CallingInInit(Box::new(from_init)))));
            assert_eq!(from_request(), Err(Error::WouldDeadlock));
            reached.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    manager.run().unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 1);

    // A thread that ran the loop before may make a call.
    let thread = thread::spawn(move || manager.run().unwrap());
    assert_eq!(call(), Ok(()));
    thread.join().unwrap();
}

#[test]
fn a_request_that_fires_itself_runs_once_in_each_run() {
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
    for run in 1..=5 {
        assert_eq!(manager.run(), Ok(0));
        assert_eq!(count.load(Ordering::Relaxed), run);
    }
}

#[test]
fn a_panicking_request_blocks_no_caller_and_no_later_request() {
    let mut manager = manager();
    let endpoint = manager.remote_endpoint();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let caller = scope.spawn(|| endpoint.call_blocking(|_| -> Result<()> { panic!("intended by the test") }));
        assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
        assert_eq!(caller.join().unwrap(), Err(Error::ChannelRecv));
    });
    for number in 0..5 {
        let sender = sender.clone();
        endpoint
            .fire(move |_| if number == 1 { panic!("intended by the test") } else { sender.send(number).unwrap() })
            .unwrap();
    }
    assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0]);
    // The remaining requests run without another wake-up.
    assert_eq!(manager.run(), Ok(0));
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(manager.run_with_timeout(0), Ok(0));
}

#[test]
fn a_request_survives_a_panic_of_a_subscriber_in_the_same_run() {
    let (fd, mut manager) = (ready_eventfd(), manager());
    let endpoint = manager.remote_endpoint();
    let (sender, receiver) = mpsc::channel();
    endpoint.fire(move |_| sender.send(()).unwrap()).unwrap();
    manager.add_subscriber(Probe::reacting([input(&fd)], |events, ops| {
        ops.remove(events).unwrap();
        panic!("intended by the test");
    }));
    assert!(catch_unwind(AssertUnwindSafe(|| manager.run())).is_err());
    assert_eq!(manager.run(), Ok(0));
    receiver.try_recv().unwrap();
}

#[test]
fn dropping_the_manager_ends_all_calls_with_an_error() {
    let manager = manager();
    let endpoint = manager.remote_endpoint();
    let call = endpoint.clone();
    let waiting = spawn_until_blocked(move || call.call_blocking(|_| Ok::<_, Error>(())));
    let (sender, receiver) = mpsc::channel::<()>();
    endpoint.fire(move |_| drop(sender)).unwrap();
    drop(manager);
    assert_eq!(waiting.join().unwrap(), Err(Error::ChannelRecv));
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected), "a request that did not run is dropped");
    assert_eq!(endpoint.call_blocking(|_| Ok::<_, Error>(())), Err(Error::ChannelSend));
    assert_eq!(endpoint.fire(|_| ()), Err(Error::ChannelSend));
    assert_eq!(endpoint.kick(), Ok(()));
}

/// The channel is closed before the subscribers are dropped, so that a subscriber that calls the manager in `drop` gets
/// an error.
#[test]
fn a_subscriber_may_call_the_manager_while_both_are_dropped() {
    struct CallingInDrop(Option<RemoteEndpoint<CallingInDrop>>, mpsc::Sender<Result<()>>);
    impl MutEventSubscriber for CallingInDrop {
        fn init(&mut self, _: &mut EventOps) {}
        fn process(&mut self, _: Events, _: &mut EventOps) {}
    }
    impl Drop for CallingInDrop {
        fn drop(&mut self) {
            self.1.send(self.0.take().unwrap().call_blocking(|_| Ok(()))).unwrap();
        }
    }
    let (sender, receiver) = mpsc::channel();
    let mut manager = EventManager::new().unwrap();
    let endpoint = manager.remote_endpoint();
    manager.add_subscriber(CallingInDrop(Some(endpoint), sender));
    drop(manager);
    assert_eq!(receiver.recv().unwrap(), Err(Error::ChannelSend));
}
