//! The output of a process, collected on a thread.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// The text that a stream has yielded so far.
#[derive(Clone, Debug, Default)]
pub struct Transcript(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Transcript {
    /// Reads `stream` to its end, on a separate thread.
    pub fn of(mut stream: impl Read + Send + 'static) -> Self {
        let transcript = Self::default();
        let Self(shared) = transcript.clone();
        thread::spawn(move || {
            let mut block = [0; 4096];
            loop {
                let read = stream.read(&mut block);
                let mut state = lock(&shared);
                match read {
                    Ok(len) if len > 0 => state.bytes.extend_from_slice(&block[..len]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    _ => state.ended = true, // at the end, or EIO: the terminal's last user has closed it
                }
                shared.change.notify_all();
                if state.ended {
                    break;
                }
            }
        });
        transcript
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0).bytes).into_owned()
    }

    /// Waits until `find` finds something in the text.
    #[track_caller]
    pub fn wait<T>(&self, deadline: Instant, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        self.find(deadline, find).unwrap_or_else(|| panic!("{what} did not come; what came is:\n{}", self.text()))
    }

    /// The same, but returns `None` if the stream ends or the deadline passes without it.
    pub fn find<T>(&self, deadline: Instant, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.wait_for(deadline, |state| find(&String::from_utf8_lossy(&state.bytes)))
    }

    /// Waits for the end of the stream, and returns whether it came before the deadline.
    pub fn wait_for_end(&self, deadline: Instant) -> bool {
        self.wait_for(deadline, |state| state.ended.then_some(())).is_some()
    }

    fn wait_for<T>(&self, deadline: Instant, find: impl Fn(&State) -> Option<T>) -> Option<T> {
        let mut state = lock(&self.0);
        loop {
            if let Some(found) = find(&state) {
                return Some(found);
            }
            let now = Instant::now();
            if state.ended || now >= deadline {
                return None;
            }
            state = self.0.change.wait_timeout(state, deadline - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of `text`, as a terminal shows them.
pub fn lines(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.trim_end_matches('\r')).collect()
}

/// A line without printk's time stamp and caller.
pub fn unstamped(line: &str) -> &str {
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((stamp, text)) if stamp.split("][").next().is_some_and(|it| it.trim_start().parse::<f64>().is_ok()) => {
            text
        }
        _ => line,
    }
}
