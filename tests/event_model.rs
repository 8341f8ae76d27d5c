//! The hand-offs between a loop and other threads, in every order two or three threads can take.
//!
//! loom runs each model again and again until it has seen all interleavings (of three threads, all with at most
//! three preemptions), and reports one that deadlocks or breaks an assertion. The mailbox is the real one, compiled here with loom's locks in place of std's; an eventfd
//! that is watched edge-triggered is modelled by [`Bell`].

#![cfg(feature = "remote_endpoint")]

use std::collections::VecDeque;
use std::io;
use std::process::Command;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use mailbox::{Doorbell, Mailbox, SendError, answer};
use sync::{Arc, Condvar, Mutex};

#[path = "../src/event/mailbox.rs"]
mod mailbox;

/// What the mailbox finds in place of `src/event/sync.rs`.
mod sync {
    pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}

/// Rings are not counted: many before a wait end one wait.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    /// `epoll_wait`.
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

impl Doorbell for Bell {
    /// A write to the eventfd.
    fn ring(&self) -> io::Result<()> {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
        Ok(())
    }
}

/// Checks a model of three threads, which have too many interleavings to see them all.
fn three_threads(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// The loop: waits, collects, runs what it has collected; until it has got `count` messages.
fn receive<M>(mailbox: &Mailbox<M, Bell>, count: usize) -> Vec<M> {
    let mut batch = VecDeque::new();
    let mut got = Vec::new();
    while got.len() < count {
        mailbox.doorbell.wait();
        mailbox.collect(&mut batch);
        got.extend(batch.drain(..));
    }
    got
}

#[test]
fn every_message_arrives_once_and_in_its_senders_order() {
    three_threads(|| {
        let mailbox = Arc::new(Mailbox::new(Bell::default()));
        let senders = [[1, 2].as_slice(), &[10]].map(|messages| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                for message in messages {
                    mailbox.send(*message).unwrap();
                }
            })
        });
        let got = receive(&mailbox, 3);
        assert!([[1, 2, 10], [1, 10, 2], [10, 1, 2]].iter().any(|order| got == order), "{got:?}");
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn every_call_gets_its_answer() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(Bell::default()));
        let caller = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                let (answer, answerer) = answer();
                mailbox.send(answerer).unwrap();
                assert_eq!(answer.wait(), Some(7));
            })
        };
        for answerer in receive(&mailbox, 1) {
            answerer.give(7);
        }
        caller.join().unwrap();
    });
}

/// The request panics, or is never run.
#[test]
fn a_request_that_is_dropped_frees_its_caller() {
    loom::model(|| {
        let (answer, answerer) = answer::<u8>();
        let caller = thread::spawn(move || assert_eq!(answer.wait(), None));
        drop(answerer);
        caller.join().unwrap();
    });
}

#[test]
fn a_mailbox_that_closes_strands_no_caller() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(Bell::default()));
        let caller = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                let (answer, answerer) = answer::<u8>();
                match mailbox.send(answerer) {
                    Ok(()) => assert_eq!(answer.wait(), None),
                    Err(SendError::Closed) => {}
                    Err(SendError::Doorbell(error)) => panic!("{error}"),
                }
            })
        };
        drop(mailbox.close());
        caller.join().unwrap();
    });
}

/// What an exit handler and its loop share.
struct Exit {
    running: AtomicBool,
    bell: Bell,
}

impl Exit {
    fn new() -> Arc<Self> {
        Arc::new(Exit { running: AtomicBool::new(true), bell: Bell::default() })
    }

    /// The loop looks each time it wakes.
    fn run(&self) {
        while self.running.load(Ordering::Acquire) {
            self.bell.wait();
        }
    }

    fn kick(&self) {
        self.running.store(false, Ordering::Release);
        self.bell.ring().unwrap();
    }

    /// The other way round. The loop may wake between the two, see nothing, and sleep for ever.
    fn kick_wrongly(&self) {
        self.bell.ring().unwrap();
        self.running.store(false, Ordering::Release);
    }
}

#[test]
fn a_kick_ends_the_loop_whenever_it_comes_and_from_whom() {
    three_threads(|| {
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

/// That the models find what they are there to find. loom cannot unwind out of a deadlock, so it aborts a process of
/// its own.
#[test]
fn a_kick_that_rings_too_early_is_found_out() {
    const ALONE: &str = "KICKVM_TEST_DEADLOCK";
    if std::env::var_os(ALONE).is_some() {
        loom::model(|| {
            let exit = Exit::new();
            let kicker = Arc::clone(&exit);
            let kicker = thread::spawn(move || kicker.kick_wrongly());
            exit.run();
            kicker.join().unwrap();
        });
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["a_kick_that_rings_too_early_is_found_out", "--exact", "--nocapture"]).env(ALONE, "1");
    let output = again.output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("deadlock"));
}
