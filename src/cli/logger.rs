//! The logger of the binary: one line a message on standard error, without blocking the thread that logs.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};

use crate::console::{RunLog, Source, terminal};
use crate::report::{ReportPaths, annotate};
use crate::sys::file_writer::FileWriter;
use crate::sys::os_error;
use crate::vmm::{ConsoleConfig, VMMConfig};

/// Lines that wait for standard error. Further lines are dropped, so that a reader that does not read blocks nothing.
const MAX_LINES: usize = 1024;
/// How long standard error may accept nothing before the rest is dropped.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The same at the end of the program, which comes after the limits of all other outputs.
const FINAL_STALL_TIMEOUT: Duration = Duration::from_millis(300);
/// The time for the lines that wait at the end of the program, if standard error accepts them.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the end is checked.
const FLUSH_PERIOD: Duration = Duration::from_millis(10);

/// Writes lines on a thread of its own, which starts with the first line.
struct Logger(Mutex<Writer>);

struct Writer {
    /// Prepared before the guest runs, because fstatfs(2) may block. `None` once the thread has it.
    stderr: Option<FileWriter>,
    /// The thread that writes standard error.
    thread: Option<WriterThread>,
    /// The file of `--log`, and the level of what standard error receives if there is one.
    log: RunLog,
    level: LevelFilter,
}

struct WriterThread {
    queue: SyncSender<String>,
    /// Standard error does not accept what the thread writes.
    is_stalled: Arc<AtomicBool>,
    /// Disconnected when the thread has written the last line.
    running: Receiver<Infallible>,
}

static LOGGER: Logger =
    Logger(Mutex::new(Writer { stderr: None, thread: None, log: RunLog::NONE, level: LevelFilter::Trace }));

/// Installs the logger. It shows messages up to `level`.
pub fn install(level: LevelFilter) {
    log::set_max_level(level);
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    LOGGER.lock().stderr = stderr.and_then(|stderr| FileWriter::start(stderr.into())).ok();
    let _ = log::set_logger(&LOGGER); // fails if it is installed already
}

/// Opens the file of `--log`, if there is one. From now on it receives all messages, also those of `-vv`.
///
/// # Errors
///
/// The file cannot be opened, or it is also used for something else; the message names it.
pub fn open_run_log(config: &VMMConfig, paths: &ReportPaths) -> Result<RunLog, String> {
    let Some(path) = &paths.log else { return Ok(RunLog::NONE) };
    let console = match &config.console {
        ConsoleConfig::File(console) => Some(console),
        _ => None,
    };
    let others = [&paths.json, &paths.junit, &paths.symbols].into_iter().flatten().chain(console).map(PathBuf::as_path);
    let inputs = config.input_files().chain(paths.inputs.iter().map(PathBuf::as_path));
    let log = RunLog::open(path, inputs.chain(others));
    let log =
        log.map_err(|error| format!("cannot open --log file '{}': {}", path.display(), os_error::describe(&error)))?;
    let mut writer = LOGGER.lock();
    (writer.log, writer.level) = (log.clone(), log::max_level());
    log::set_max_level(LevelFilter::Debug.max(writer.level));
    drop(writer);
    Ok(log)
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let line = match record.target() {
            annotate::TARGET => record.args().to_string(), // for a CI service
            _ => {
                let text = record.args().to_string().replace(is_unsafe, "?");
                let log = self.lock().log.clone(); // which logs its own error
                log.push(Source::Kickvm, format!("{text}\n").as_bytes());
                format!("kickvm: {text}")
            }
        };
        let mut writer = self.lock();
        if record.level() > writer.level {
            return;
        }
        if let Some(stderr) = writer.stderr.take() {
            writer.thread = start(stderr);
        }
        match &writer.thread {
            Some(thread) => drop(thread.queue.try_send(line)), // fails if too many lines wait
            None => drop(io::stderr().write_all((line + terminal::line_end()).as_bytes())), // the host allows no thread
        }
    }

    /// Waits until all lines are written, unless standard error does not accept them.
    fn flush(&self) {
        let log = std::mem::take(&mut self.lock().log);
        log.finish();
        let Some(WriterThread { queue, is_stalled, running }) = self.lock().thread.take() else { return };
        drop(queue); // ends the loop of the thread
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let mut stalled = Duration::ZERO;
        while stalled < FINAL_STALL_TIMEOUT
            && Instant::now() < deadline
            && running.recv_timeout(FLUSH_PERIOD) == Err(RecvTimeoutError::Timeout)
        {
            stalled += if is_stalled.load(Ordering::Relaxed) { FLUSH_PERIOD } else { Duration::ZERO };
        }
    }
}

fn start(mut stderr: FileWriter) -> Option<WriterThread> {
    let (queue, lines) = sync_channel::<String>(MAX_LINES);
    let (end, running) = channel();
    let is_stalled = Arc::new(AtomicBool::new(false));
    let stalled = Arc::clone(&is_stalled);
    let write = move || {
        for line in lines {
            stalled.store(!stderr.has_room(Instant::now()), Ordering::Relaxed);
            // The terminal may have become raw since the line was logged. A line that cannot be written is lost.
            let _ = stderr.write_all((line + terminal::line_end()).as_bytes(), Instant::now() + STALL_TIMEOUT);
            stalled.store(false, Ordering::Relaxed);
        }
        stalled.store(true, Ordering::Relaxed); // waits for another process, which does not lose what it has
        let _ = stderr.finish(Instant::now() + STALL_TIMEOUT); // an error has no other place to go
        drop(end);
    };
    thread::Builder::new().name("log".to_owned()).spawn(write).ok()?;
    Some(WriterThread { queue, is_stalled, running })
}

/// Whether a character could change how a terminal shows the line: control characters and bidirectional overrides.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
