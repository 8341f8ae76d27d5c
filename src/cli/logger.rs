//! The logger of the binary: one line a message on standard error, without blocking the thread that logs.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kickvm::console::{output, terminal};
use log::{LevelFilter, Log, Metadata, Record};

/// Lines that wait for standard error. More are dropped: nothing waits for a reader that does not read.
const MAX_LINES: usize = 1024;
/// How long standard error may take nothing before the rest is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes lines on a thread of its own, which starts with the first line.
struct Logger(Mutex<Option<Lines>>);

struct Lines {
    queue: SyncSender<String>,
    done: Receiver<()>,
}

static LOGGER: Logger = Logger(Mutex::new(None));

/// Installs the logger. Messages up to `level` are shown.
pub fn install(level: LevelFilter) {
    log::set_max_level(level);
    let _ = log::set_logger(&LOGGER); // fails if it is installed already
}

/// Waits until all lines are written, or standard error takes nothing for a second.
pub fn flush() {
    let lines = LOGGER.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Lines { queue, done }) = lines {
        drop(queue);
        let _ = done.recv(); // an error when the thread has ended
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format!("kickvm: {}", record.args()).replace(is_unsafe, "?") + terminal::line_end();
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_none() {
            *lines = start();
        }
        if let Some(Lines { queue, .. }) = &*lines
            && let Err(TrySendError::Disconnected(_)) = queue.try_send(line)
        {
            *lines = None; // standard error is closed or has stalled; a new attempt is made with the next line
        }
    }

    fn flush(&self) {}
}

/// Whether a character could change how a terminal shows the line: control characters and bidirectional overrides.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn start() -> Option<Lines> {
    let (queue, lines) = sync_channel::<String>(MAX_LINES);
    let (end, done) = sync_channel(1);
    let write = move || {
        let _end = end; // its drop is the signal
        for line in lines {
            if !write_line(line.as_bytes()) {
                return;
            }
        }
    };
    thread::Builder::new().name("log".to_owned()).spawn(write).ok()?;
    Some(Lines { queue, done })
}

/// Writes `line` in parts that a pipe with room takes without blocking (`PIPE_BUF`, pipe(7)).
fn write_line(line: &[u8]) -> bool {
    let mut stderr = io::stderr();
    line.chunks(libc::PIPE_BUF)
        .all(|part| output::has_room(stderr.as_fd(), STALL_TIMEOUT) && stderr.write_all(part).is_ok())
}
