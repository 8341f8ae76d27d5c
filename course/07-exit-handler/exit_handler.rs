//! The exit handler: how a vCPU thread ends the event loop.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kickvm::event::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

// ANCHOR: handler
pub trait ExitHandler: Clone {
    /// Ends the event loop. May be called on any thread, any number of times.
    fn kick(&self) -> io::Result<()>;
}

pub struct VmmExitHandler {
    exit_event: EventFd,
    keep_running: AtomicBool,
    reason: Option<String>,
}

impl MutEventSubscriber for VmmExitHandler {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.keep_running.store(false, Ordering::Relaxed); // the lock of the wrapper orders it
    }

    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new(&self.exit_event, EventSet::IN | EventSet::EDGE_TRIGGERED);
        ops.add(events).expect("a new eventfd can be registered");
    }
}
// ANCHOR_END: handler

// ANCHOR: wrapped
/// The vCPU threads and the event manager share the exit handler.
#[derive(Clone)]
pub struct WrappedExitHandler(Arc<Mutex<VmmExitHandler>>);

impl WrappedExitHandler {
    pub fn new() -> io::Result<Self> {
        let exit_event = EventFd::new(EFD_NONBLOCK)?;
        let handler = VmmExitHandler { exit_event, keep_running: AtomicBool::new(true), reason: None };
        Ok(Self(Arc::new(Mutex::new(handler))))
    }

    pub fn subscriber(&self) -> Arc<Mutex<VmmExitHandler>> {
        self.0.clone()
    }

    pub fn keep_running(&self) -> bool {
        self.lock().keep_running.load(Ordering::Relaxed)
    }

    /// The first reason counts.
    pub fn exit(&self, reason: &str) -> io::Result<()> {
        self.lock().reason.get_or_insert_with(|| reason.to_owned());
        self.kick()
    }

    pub fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    fn lock(&self) -> MutexGuard<'_, VmmExitHandler> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // a panic elsewhere is no reason not to end
    }
}

impl ExitHandler for WrappedExitHandler {
    fn kick(&self) -> io::Result<()> {
        match self.lock().exit_event.write(1) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()), // a full counter is readable
            result => result,
        }
    }
}
// ANCHOR_END: wrapped
