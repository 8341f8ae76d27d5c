//! The exit handler: the one exit path out of the event loop.
//!
//! ```text
//!   vCPU thread                         event loop (main thread)
//!   ───────────                         ────────────────────────
//!   guest powers off                    event_mgr.run() waits in epoll
//!   exit_handler.set_reason(reason)       │
//!   exit_handler.kick()                   │
//!        └─ exit_event.write(1) ────────► process(): keep_running = false
//!                                         !keep_running() → break
//!   kicked out of KVM_RUN ◄────────────── vm.shutdown(), join
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::outcome::ExitReason;
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber};

/// The handle by which a VM ends the event loop. Clones share one state; each vCPU thread has one.
pub trait ExitHandler: Clone {
    /// Ends the event loop. May be called at any time, any number of times, from any thread.
    ///
    /// # Errors
    ///
    /// The loop cannot be woken.
    fn kick(&self) -> io::Result<()>;

    /// Stores the reason of the kick that follows. The first reason counts; later ones are ignored.
    fn set_reason(&self, reason: ExitReason);

    /// Ends the event loop because of `reason`.
    fn exit(&self, reason: ExitReason) {
        self.set_reason(reason);
        if let Err(error) = self.kick() {
            log::error!("cannot kick the event loop: {error}");
        }
    }
}

/// The event manager's first subscriber: waits for the kick.
#[derive(Debug)]
pub struct VmmExitHandler {
    exit_event: EventFd,
    /// Whether the loop should take another turn. Every access holds the mutex of [`WrappedExitHandler`], which orders
    /// it, so `Relaxed` suffices. It is an atomic because the loop reads it through a shared reference: of the two
    /// parties only the event manager, in `process`, has a `&mut`.
    keep_running: AtomicBool,
    reason: Option<ExitReason>,
}

impl MutEventSubscriber for VmmExitHandler {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // This applies to an error of the event, too: the loop must not continue without a way to end it.
        self.keep_running.store(false, Ordering::Relaxed);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Edge-triggered, so an event that is never read wakes the loop once a kick and no more.
        let events = Events::new(&self.exit_event, EventSet::IN | EventSet::EDGE_TRIGGERED);
        if let Err(error) = ops.add(events) {
            self.reason.get_or_insert(ExitReason::Failed(format!("cannot wait for the exit event: {error}")));
            self.keep_running.store(false, Ordering::Relaxed);
        }
    }
}

/// The exit handler as the VM and the event manager share it.
#[derive(Clone, Debug)]
pub struct WrappedExitHandler(pub(super) Arc<Mutex<VmmExitHandler>>);

impl WrappedExitHandler {
    /// An exit handler that has not been kicked.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(VmmExitHandler {
            exit_event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            keep_running: AtomicBool::new(true),
            reason: None,
        }))))
    }

    /// Whether the event loop should take another turn.
    pub fn keep_running(&self) -> bool {
        self.lock().keep_running.load(Ordering::Relaxed)
    }

    /// The first reason.
    pub fn reason(&self) -> Option<ExitReason> {
        self.lock().reason.clone()
    }

    /// The subscriber, to be added to an event manager.
    pub fn subscriber(&self) -> Arc<Mutex<VmmExitHandler>> {
        self.0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, VmmExitHandler> {
        // No method panics between two changes, so the state behind a poisoned lock is consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExitHandler for WrappedExitHandler {
    fn kick(&self) -> io::Result<()> {
        match self.lock().exit_event.write(1) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()), // a full counter is readable already
            result => result,
        }
    }

    fn set_reason(&self, reason: ExitReason) {
        self.lock().reason.get_or_insert(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventManager, SubscriberOps};

    type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

    fn looped() -> (Manager, WrappedExitHandler) {
        let handler = WrappedExitHandler::new().unwrap();
        let mut manager = Manager::new().unwrap();
        manager.add_subscriber(handler.subscriber());
        (manager, handler)
    }

    #[test]
    fn the_first_reason_counts() {
        let (mut manager, handler) = looped();
        assert!(handler.keep_running());
        handler.exit(ExitReason::UserQuit);
        handler.exit(ExitReason::Signal(15));
        assert_eq!(manager.run().unwrap(), 1);
        assert!(!handler.keep_running());
        assert_eq!(handler.reason(), Some(ExitReason::UserQuit));
    }

    #[test]
    fn a_kick_never_makes_the_loop_spin() {
        let (mut manager, handler) = looped();
        handler.kick().unwrap();
        assert_eq!(manager.run_with_timeout(0).unwrap(), 1);
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
    }

    #[test]
    fn a_full_counter_counts_as_kicked() {
        let (_manager, handler) = looped();
        handler.lock().exit_event.write(u64::MAX - 1).unwrap();
        handler.kick().unwrap();
    }

    #[test]
    fn a_poisoned_lock_still_kicks() {
        let (mut manager, handler) = looped();
        let poisoner = handler.clone();
        let result = std::thread::spawn(move || {
            let _guard = poisoner.0.lock();
            panic!("intended");
        });
        assert!(result.join().is_err());
        assert!(handler.0.is_poisoned());
        handler.kick().unwrap();
        assert_eq!(manager.run().unwrap(), 1);
        assert!(!handler.keep_running());
    }

    #[test]
    fn ten_thousand_kicks_from_eight_threads_end_the_loop() {
        let (mut manager, handler) = looped();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let handler = handler.clone();
                std::thread::spawn(move || (0..10_000).for_each(|_| handler.kick().unwrap()))
            })
            .collect();
        while handler.keep_running() {
            manager.run().unwrap();
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Few edges are left: the counter is never read, but each write is one edge at most.
        while manager.run_with_timeout(0).unwrap() > 0 {}
    }
}
