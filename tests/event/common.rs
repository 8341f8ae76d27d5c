//! A subscriber that records its events and runs a reaction, and eventfds to use it with.

use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a probe does with an event.
type Reaction = Box<dyn FnMut(Events, &mut EventOps) + Send>;

/// Records its events and optionally reacts to them.
#[derive(Default)]
pub struct Probe {
    registrations: Vec<Events>,
    received: Vec<Events>,
    reaction: Option<Reaction>,
}

pub type Shared = Arc<Mutex<Probe>>;
pub type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

impl Probe {
    pub fn new(registrations: impl IntoIterator<Item = Events>) -> Shared {
        let registrations = registrations.into_iter().collect();
        Arc::new(Mutex::new(Probe { registrations, ..Probe::default() }))
    }

    pub fn reacting(
        registrations: impl IntoIterator<Item = Events>,
        reaction: impl FnMut(Events, &mut EventOps) + Send + 'static,
    ) -> Shared {
        let probe = Probe::new(registrations);
        probe.lock().unwrap().reaction = Some(Box::new(reaction));
        probe
    }
}

impl MutEventSubscriber for Probe {
    fn init(&mut self, ops: &mut EventOps) {
        for &events in &self.registrations {
            ops.add(events).unwrap();
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.received.push(events);
        if let Some(reaction) = &mut self.reaction {
            reaction(events, ops);
        }
    }
}

/// Returns the events that a probe received since the last call.
pub fn received(probe: &Shared) -> Vec<Events> {
    std::mem::take(&mut probe.lock().unwrap_or_else(PoisonError::into_inner).received)
}

/// Returns the descriptors of these events.
pub fn received_fds(probe: &Shared) -> Vec<RawFd> {
    received(probe).iter().map(Events::fd).collect()
}

pub fn manager() -> Manager {
    EventManager::new().unwrap()
}

/// An eventfd that is readable.
pub fn ready_eventfd() -> EventFd {
    let fd = idle_eventfd();
    fd.write(1).unwrap();
    fd
}

/// An eventfd that is not readable.
pub fn idle_eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}

pub fn input(fd: &impl AsRawFd) -> Events {
    Events::new(fd, EventSet::IN)
}

/// Gives `fd` the number `number`, which must be free. Tests run as threads of one process, so each test uses high
/// numbers that no other test uses.
pub fn with_number(fd: EventFd, number: RawFd) -> EventFd {
    // SAFETY: the call takes no pointer and returns a new descriptor.
    let moved = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) };
    assert_eq!(moved, number, "the number is in use");
    // SAFETY: the descriptor is new, so that nothing else owns it.
    unsafe { EventFd::from_raw_fd(moved) }
}

/// Starts a thread and returns when it sleeps in a call of `body` that blocks, or has ended.
pub fn spawn_until_blocked<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        // SAFETY: the call takes no argument and always succeeds.
        sender.send(unsafe { libc::gettid() }).unwrap();
        body()
    });
    let stat = format!("/proc/self/task/{}/stat", receiver.recv().unwrap());
    // The state follows the name of the thread, which is in parentheses.
    while !thread.is_finished() && !std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S ")) {
        thread::yield_now();
    }
    thread
}

/// Runs `body` without other tests in the process: starts this test binary again for `test` only.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    const ALONE: &str = "KICKVM_TEST_ALONE";
    if std::env::var(ALONE).as_deref() == Ok(test) {
        return body();
    }
    let binary = std::env::current_exe().unwrap();
    let output = Command::new(binary).args([test, "--exact", "--nocapture"]).env(ALONE, test).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{test} in its own process: {text}");
}
