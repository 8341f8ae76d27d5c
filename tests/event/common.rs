//! A subscriber that records what it is told and does what the test says, and descriptors to try it with.

use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a test's subscriber does with an event.
type Reaction = Box<dyn FnMut(Events, &mut EventOps) + Send>;

/// Records its events; a reaction may be attached.
#[derive(Default)]
pub struct Probe {
    interests: Vec<Events>,
    seen: Vec<Events>,
    reaction: Option<Reaction>,
}

pub type Shared = Arc<Mutex<Probe>>;
pub type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

impl Probe {
    pub fn new(interests: impl IntoIterator<Item = Events>) -> Shared {
        let interests = interests.into_iter().collect();
        Arc::new(Mutex::new(Probe { interests, ..Probe::default() }))
    }

    pub fn reacting(
        interests: impl IntoIterator<Item = Events>,
        reaction: impl FnMut(Events, &mut EventOps) + Send + 'static,
    ) -> Shared {
        let probe = Probe::new(interests);
        probe.lock().unwrap().reaction = Some(Box::new(reaction));
        probe
    }
}

impl MutEventSubscriber for Probe {
    fn init(&mut self, ops: &mut EventOps) {
        for &events in &self.interests {
            ops.add(events).unwrap();
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.seen.push(events);
        if let Some(reaction) = &mut self.reaction {
            reaction(events, ops);
        }
    }
}

/// The events a probe was told since the last look.
pub fn events(probe: &Shared) -> Vec<Events> {
    std::mem::take(&mut probe.lock().unwrap_or_else(PoisonError::into_inner).seen)
}

/// Their descriptors.
pub fn seen(probe: &Shared) -> Vec<RawFd> {
    events(probe).iter().map(Events::fd).collect()
}

pub fn manager() -> Manager {
    EventManager::new().unwrap()
}

/// An eventfd that is readable already.
pub fn ready() -> EventFd {
    let fd = quiet();
    fd.write(1).unwrap();
    fd
}

/// An eventfd that is not readable yet.
pub fn quiet() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}

pub fn input(fd: &impl AsRawFd) -> Events {
    Events::new(fd, EventSet::IN)
}

/// Gives `fd` the number `to`, which must be free. Tests run as threads of one process: a number is safe from the
/// others if it is a high one, and no two tests use the same.
pub fn move_to(fd: EventFd, to: RawFd) -> EventFd {
    // SAFETY: takes no pointer, and makes a new descriptor.
    let moved = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, to) };
    assert_eq!(moved, to, "the number is taken");
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    unsafe { EventFd::from_raw_fd(moved) }
}

/// Starts a thread, and returns when it sleeps (in whatever `body` blocks on).
pub fn asleep<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (tell, hear) = mpsc::channel();
    let thread = thread::spawn(move || {
        // SAFETY: always succeeds.
        tell.send(unsafe { libc::gettid() }).unwrap();
        body()
    });
    let stat = format!("/proc/self/task/{}/stat", hear.recv().unwrap());
    // The state follows the name, which is in parentheses.
    while !thread.is_finished() && !std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S ")) {
        thread::yield_now();
    }
    thread
}

/// Runs `body` in a process where no other test runs: this test binary once more, for `test` alone.
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
