//! The logger of the binary: one line a message on standard error, without blocking the thread that logs.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};

use crate::console::{output, terminal};

/// Lines that wait for standard error. Further lines are dropped, so that a reader that does not read blocks nothing.
const MAX_LINES: usize = 1024;
/// How long standard error may accept nothing before the rest is dropped.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes lines on a thread of its own, which starts with the first line.
struct Logger(Mutex<Option<Lines>>);

struct Lines {
    queue: SyncSender<String>,
    writer: JoinHandle<()>,
}

static LOGGER: Logger = Logger(Mutex::new(None));

/// Installs the logger. It shows messages up to `level`.
pub fn install(level: LevelFilter) {
    log::set_max_level(level);
    let _ = log::set_logger(&LOGGER); // fails if it is installed already
}

/// Waits until all lines are written, or standard error accepts nothing for a second.
pub fn flush() {
    let lines = LOGGER.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Lines { queue, writer }) = lines {
        drop(queue); // ends the loop of the writer
        let _ = writer.join();
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
    let write = move || lines.iter().take_while(|line| write_line(line.as_bytes())).for_each(drop);
    let writer = thread::Builder::new().name("log".to_owned()).spawn(write).ok()?;
    Some(Lines { queue, writer })
}

/// Writes `line` in parts that a pipe with room takes without blocking (`PIPE_BUF`, pipe(7)).
fn write_line(line: &[u8]) -> bool {
    let mut stderr = io::stderr();
    line.chunks(libc::PIPE_BUF)
        .all(|part| output::has_room(stderr.as_fd(), STALL_TIMEOUT) && stderr.write_all(part).is_ok())
}
