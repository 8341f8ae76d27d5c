//! The logger of the binary: one line a message on standard error, without blocking the thread that logs.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};

use crate::console::terminal;
use crate::sys::file_writer::FileWriter;

/// Lines that wait for standard error. Further lines are dropped, so that a reader that does not read blocks nothing.
const MAX_LINES: usize = 1024;
/// How long standard error may accept nothing before the rest is dropped.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The same at the end of the program, which comes after the limits of all other outputs.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(400);

/// Writes lines on a thread of its own, which starts with the first line.
struct Logger(Mutex<Option<Lines>>);

struct Lines {
    queue: SyncSender<String>,
    /// Receives a message before each line is written, and is disconnected after the last one.
    progress: Receiver<()>,
}

static LOGGER: Logger = Logger(Mutex::new(None));

/// Installs the logger. It shows messages up to `level`.
pub fn install(level: LevelFilter) {
    log::set_max_level(level);
    let _ = log::set_logger(&LOGGER); // fails if it is installed already
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("kickvm: {}", record.args()).replace(is_unsafe, "?");
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_none() {
            *lines = start();
        }
        match &*lines {
            Some(Lines { queue, .. }) => {
                if let Err(TrySendError::Disconnected(_)) = queue.try_send(line) {
                    *lines = None; // standard error is closed or has stalled; the next line is a new attempt
                }
            }
            None => drop(io::stderr().write_all((line + terminal::line_end()).as_bytes())), // the host allows no thread
        }
    }

    /// Waits until all lines are written, or standard error accepts none for [`FLUSH_TIMEOUT`].
    fn flush(&self) {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Lines { queue, progress }) = lines {
            drop(queue); // ends the loop of the writer
            while progress.recv_timeout(FLUSH_TIMEOUT).is_ok() {}
        }
    }
}

/// Whether a character could change how a terminal shows the line: control characters and bidirectional overrides.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn start() -> Option<Lines> {
    let mut stderr = FileWriter::start(io::stderr().as_fd().try_clone_to_owned().ok()?.into(), false).ok()?;
    let (queue, lines) = sync_channel::<String>(MAX_LINES);
    let (begin, progress) = channel();
    let write = move || {
        let mut write = |line: String| {
            let line = line + terminal::line_end(); // now, as the terminal may have become raw
            begin.send(()).is_ok() && stderr.write_all(line.as_bytes(), STALL_TIMEOUT).is_ok()
        };
        if lines.iter().all(&mut write) {
            let _ = stderr.finish(STALL_TIMEOUT); // an error has no other place to go
        }
    };
    thread::Builder::new().name("log".to_owned()).spawn(write).ok()?;
    Some(Lines { queue, progress })
}
