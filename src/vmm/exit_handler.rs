//! The exit handler: the one way out of the event loop.
//!
//! ```text
//!   vCPU thread                         event loop (main thread)
//!   ───────────                         ────────────────────────
//!   guest powers off                    event_mgr.run() waits in epoll
//!   exit_handler.kick_because(reason)
//!        │  reason = first one            │
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

/// What a VM uses to say that it is over. Clones share one fate; a clone goes to each vCPU thread.
pub trait ExitHandler: Clone {
    /// Ends the event loop, for no particular reason. May be called at any time, any number of times, from any thread.
    fn kick(&self) -> io::Result<()> {
        self.kick_because(ExitReason::Kicked)
    }

    /// Ends the event loop because of `reason`, if no kick came before.
    fn kick_because(&self, reason: ExitReason) -> io::Result<()>;
}

/// The event manager's first subscriber: waits for the kick.
#[derive(Debug)]
pub struct VmmExitHandler {
    exit_event: EventFd,
    keep_running: AtomicBool,
    reason: Option<ExitReason>,
}

impl MutEventSubscriber for VmmExitHandler {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Whatever happened to the event, even an error: the loop must not go on without a way to end it.
        self.keep_running.store(false, Ordering::Release);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Edge-triggered, so an event that nobody reads wakes the loop once a kick and no more.
        let events = Events::new(&self.exit_event, EventSet::IN | EventSet::EDGE_TRIGGERED);
        if let Err(error) = ops.add(events) {
            self.reason.get_or_insert(ExitReason::Failed(format!("cannot wait for the exit event: {error}")));
            self.keep_running.store(false, Ordering::Release);
        }
    }
}

/// The exit handler as the VM and the event manager share it.
#[derive(Clone, Debug)]
pub struct WrappedExitHandler(pub(super) Arc<Mutex<VmmExitHandler>>);

impl WrappedExitHandler {
    /// An exit handler that has not been kicked.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(VmmExitHandler {
            exit_event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            keep_running: AtomicBool::new(true),
            reason: None,
        }))))
    }

    /// Whether the event loop should take another turn.
    pub fn keep_running(&self) -> bool {
        self.lock().keep_running.load(Ordering::Acquire)
    }

    /// The first kick's reason.
    pub fn reason(&self) -> Option<ExitReason> {
        self.lock().reason.clone()
    }

    /// The subscriber, to be added to an event manager.
    pub fn subscriber(&self) -> Arc<Mutex<VmmExitHandler>> {
        self.0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, VmmExitHandler> {
        // A thread that panicked with the lock held left nothing half done: there is nothing to do by halves.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExitHandler for WrappedExitHandler {
    fn kick_because(&self, reason: ExitReason) -> io::Result<()> {
        let mut handler = self.lock();
        handler.reason.get_or_insert(reason);
        match handler.exit_event.write(1) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()), // a full counter has rung already
            result => result,
        }
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
    fn the_first_reason_wins() {
        let (mut manager, handler) = looped();
        assert!(handler.keep_running());
        handler.kick_because(ExitReason::UserQuit).unwrap();
        handler.kick().unwrap();
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
            panic!("on purpose");
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
        // Whatever edges are left are few: the counter is not read, but each write is one edge at most.
        while manager.run_with_timeout(0).unwrap() > 0 {}
        assert_eq!(handler.reason(), Some(ExitReason::Kicked));
    }
}
