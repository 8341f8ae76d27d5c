//! The channel between a loop and other threads, in every interleaving of two or three threads.
//!
//! loom runs each model repeatedly until it has seen all interleavings (of three threads: all with at most three
//! preemptions), and reports one that deadlocks or fails an assertion. The channel is the real one, compiled here with
//! loom's locks instead of std's. [`ModelEventFd`] models an eventfd that is watched edge-triggered.

#![cfg(feature = "remote_endpoint")]

use std::collections::VecDeque;
use std::io;
use std::process::Command;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use channel::{Channel, SendError, Waker};
use loom::sync::{Arc, Condvar};
use sync::Mutex;

#[path = "../src/event/channel.rs"]
mod channel;

/// Replaces `src/event/sync.rs` for the channel.
mod sync {
    pub use loom::sync::{Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}

/// Writes are not counted: several writes before a wait end one wait.
#[derive(Default)]
struct ModelEventFd {
    written: Mutex<bool>,
    changed: Condvar,
}

impl ModelEventFd {
    /// Models `epoll_wait`.
    fn wait(&self) {
        let mut written = self.written.lock().unwrap();
        while !*written {
            written = self.changed.wait(written).unwrap();
        }
        *written = false;
    }
}

impl Waker for ModelEventFd {
    /// Models a write to the eventfd.
    fn wake(&self) -> io::Result<()> {
        *self.written.lock().unwrap() = true;
        self.changed.notify_one();
        Ok(())
    }
}

/// Checks a model of three threads, which has too many interleavings to check them all.
fn check_three_threads(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// The loop: waits and receives until it has `count` messages.
fn receive<M>(channel: &Channel<M, ModelEventFd>, count: usize) -> Vec<M> {
    let mut batch = VecDeque::new();
    let mut received = Vec::new();
    while received.len() < count {
        channel.waker.wait();
        channel.receive_all(&mut batch);
        received.extend(batch.drain(..));
    }
    received
}

#[test]
fn each_message_arrives_once_and_in_the_order_of_its_sender() {
    check_three_threads(|| {
        let channel = Arc::new(Channel::new(ModelEventFd::default()));
        let senders = [[1, 2].as_slice(), &[10]].map(|messages| {
            let channel = Arc::clone(&channel);
            thread::spawn(move || {
                for message in messages {
                    channel.send(*message).unwrap();
                }
            })
        });
        let received = receive(&channel, 3);
        assert!([[1, 2, 10], [1, 10, 2], [10, 1, 2]].iter().any(|order| received == order), "{received:?}");
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

/// A request. Dropping it ends the wait of its caller, with or without a reply.
struct Request(Arc<ModelEventFd>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.wake().unwrap();
    }
}

#[test]
fn closing_the_channel_ends_the_wait_of_each_caller() {
    loom::model(|| {
        let channel = Arc::new(Channel::new(ModelEventFd::default()));
        let caller = {
            let channel = Arc::clone(&channel);
            thread::spawn(move || {
                let reply = Arc::new(ModelEventFd::default());
                match channel.send(Request(Arc::clone(&reply))) {
                    Ok(()) | Err(SendError::Closed) => reply.wait(),
                    Err(SendError::Wake(error)) => panic!("{error}"),
                }
            })
        };
        drop(channel.close());
        caller.join().unwrap();
    });
}

/// What an exit handler and its loop share.
struct Exit {
    keep_running: AtomicBool,
    exit_event: ModelEventFd,
}

impl Exit {
    fn new() -> Arc<Self> {
        Arc::new(Exit { keep_running: AtomicBool::new(true), exit_event: ModelEventFd::default() })
    }

    /// The loop checks the flag before each wait.
    fn run(&self) {
        while self.keep_running.load(Ordering::Acquire) {
            self.exit_event.wait();
        }
    }

    fn kick(&self) {
        self.keep_running.store(false, Ordering::Release);
        self.exit_event.wake().unwrap();
    }

    /// The wrong order. The loop may wake between the two statements, see the old flag, and wait for ever.
    fn kick_in_wrong_order(&self) {
        self.exit_event.wake().unwrap();
        self.keep_running.store(false, Ordering::Release);
    }
}

#[test]
fn a_kick_from_any_thread_at_any_time_ends_the_loop() {
    check_three_threads(|| {
        let exit = Exit::new();
        let kickers = [(); 2].map(|()| {
            let exit = Arc::clone(&exit);
            thread::spawn(move || exit.kick())
        });
        exit.run();
        for kicker in kickers {
            kicker.join().unwrap();
        }
    });
}

/// Checks that the models detect what they are meant to detect. loom cannot unwind out of a deadlock and aborts, so the
/// model runs in its own process.
#[test]
fn a_kick_that_wakes_before_it_clears_the_flag_is_detected() {
    const ALONE: &str = "KICKVM_TEST_DEADLOCK";
    if std::env::var_os(ALONE).is_some() {
        loom::model(|| {
            let exit = Exit::new();
            let kicker = Arc::clone(&exit);
            let kicker = thread::spawn(move || kicker.kick_in_wrong_order());
            exit.run();
            kicker.join().unwrap();
        });
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = "a_kick_that_wakes_before_it_clears_the_flag_is_detected";
    let output = command.args([test, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("deadlock"));
}
