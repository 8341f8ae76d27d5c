//! A file with all output of a run: [`RunLog`].

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::escape_sequences::EscapeFilter;
use super::output::{is_no_stream, is_same_file, open_to_write};
use vmm_sys_util::signal::block_signal;

use crate::sys::file_writer::FileWriter;
use crate::sys::limited_wait::receive;
use crate::sys::os_error;

/// Bytes that wait for the file. If there are more, the log ends.
const MAX_PENDING: usize = 16 << 20;
/// How long the file may take no bytes: during the run, and at its end.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const FINAL_STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The time for the bytes that wait at the end of the run.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);
/// A longer line is written in parts of this many bytes.
const MAX_LINE: usize = 64 << 10;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The guest's console.
    Console,
    /// The standard output of the command of `kickvm exec`.
    Stdout,
    /// Its standard error.
    Stderr,
    /// Messages of kickvm.
    Kickvm,
}

/// A file that receives the output of a run, line by line, after the time in seconds and the source. The default is no
/// file. Clones write to the same file.
#[derive(Clone, Debug, Default)]
pub struct RunLog(Option<Arc<(PathBuf, Mutex<Inner>)>>);

#[derive(Debug)]
struct Inner {
    queue: Option<Queue>, // until the first error
    began: Instant,
    lines: [Line; 4], // by source
}

/// What waits for the thread that writes the file. So a slow file does not delay the thread that has the output.
#[derive(Debug)]
struct Queue {
    blocks: Sender<Vec<u8>>,
    pending: Arc<AtomicUsize>,        // bytes
    result: Receiver<io::Result<()>>, // when the thread ends
}

impl Queue {
    fn start(mut file: FileWriter) -> io::Result<Self> {
        let ((blocks, receiver), (end, result)) = (channel::<Vec<u8>>(), channel());
        let pending = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&pending);
        let write = move || {
            let deadline = || Instant::now() + STALL_TIMEOUT;
            let written = receiver.into_iter().try_for_each(|block| {
                let written = file.write_all(&block, deadline());
                left.fetch_sub(block.len(), Ordering::Relaxed);
                written
            });
            let _ = end.send(written.and_then(|()| file.finish(deadline()))); // nothing may wait for it
        };
        thread::Builder::new().name("run-log".to_owned()).spawn(write)?;
        Ok(Self { blocks, pending, result })
    }

    fn push(&self, block: Vec<u8>) -> io::Result<()> {
        if block.is_empty() {
            return Ok(()); // the line has not ended
        }
        if self.pending.fetch_add(block.len(), Ordering::Relaxed) > MAX_PENDING {
            return Err(io::Error::other("it is too slow"));
        }
        // The thread has ended after an error.
        self.blocks.send(block).or_else(|_| self.result.recv().unwrap_or(Ok(())))
    }

    /// Waits until the file has all bytes, as long as it takes some.
    fn finish(self) -> io::Result<()> {
        let Self { blocks, pending, result } = self;
        drop(blocks); // ends the loop of the thread
        let (deadline, mut before) = (Instant::now() + FINISH_TIMEOUT, usize::MAX);
        loop {
            let left = pending.load(Ordering::Relaxed);
            match receive(&result, FINAL_STALL_TIMEOUT) {
                Ok(written) => return written,
                Err(RecvTimeoutError::Timeout) if left < before && Instant::now() < deadline => before = left,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

/// The begin of a line.
#[derive(Debug, Default)]
struct Line {
    time: Duration, // of the first byte
    text: Vec<u8>,
    started: bool,
    after_cr: bool,
    escape: EscapeFilter,
}

impl Line {
    /// Writes the line to `output`, and begins the next one.
    fn finish(&mut self, source: Source, output: &mut Vec<u8>) {
        let name = match source {
            Source::Console => "console",
            Source::Stdout => "stdout",
            Source::Stderr => "stderr",
            Source::Kickvm => "kickvm",
        };
        let _ = write!(output, "{:12.6} {name}: ", self.time.as_secs_f64()); // a vector takes all bytes
        output.append(&mut self.text);
        output.push(b'\n');
        self.started = false;
    }

    fn push(&mut self, source: Source, bytes: &[u8], now: Duration, output: &mut Vec<u8>) {
        for &byte in bytes {
            if std::mem::take(&mut self.after_cr) && !matches!(byte, b'\r' | b'\n') {
                self.finish(source, output);
            }
            if !std::mem::replace(&mut self.started, true) {
                self.time = now;
            }
            match byte {
                b'\n' => {
                    self.escape = EscapeFilter::default();
                    self.finish(source, output);
                }
                b'\r' => self.after_cr = !self.text.is_empty(),
                _ if self.escape.is_text(byte) => self.text.push(byte),
                _ => {}
            }
            if self.text.len() == MAX_LINE {
                self.finish(source, output);
            }
        }
    }
}

impl RunLog {
    /// No file.
    pub const NONE: Self = Self(None);

    /// Creates the log file at `path`, or empties it, unless it is one of `others`. The run begins now.
    ///
    /// # Errors
    ///
    /// The file is one of `others` or a standard stream, or cannot be opened.
    pub fn open<'a>(path: &Path, mut others: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        let file = open_to_write(path)?;
        let own = file.metadata()?;
        if own.is_file() {
            if others.any(|other| is_same_file(&own, other)) {
                return Err(io::Error::other("another option uses it, too"));
            }
            is_no_stream(&own)?;
            let _ = block_signal(libc::SIGXFSZ); // a file that must not grow is a write error, not the end
            file.set_len(0)?;
        }
        Self::start(file, path)
    }

    fn start(file: File, path: &Path) -> io::Result<Self> {
        let queue = Some(Queue::start(FileWriter::start(file)?)?);
        let inner = Mutex::new(Inner { queue, began: Instant::now(), lines: Default::default() });
        Ok(Self(Some(Arc::new((path.to_owned(), inner)))))
    }

    /// Adds output of `source`. Does not wait for the file.
    pub fn push(&self, source: Source, bytes: &[u8]) {
        self.write(|inner, now, output| inner.lines[source as usize].push(source, bytes, now, output));
    }

    /// Writes the lines that have not ended, and closes the file. Waits at most three seconds, and not for a file that
    /// takes no bytes.
    pub fn finish(&self) {
        const ALL: [Source; 4] = [Source::Console, Source::Stdout, Source::Stderr, Source::Kickvm];
        self.write(|inner, _, output| {
            ALL.into_iter().zip(&mut inner.lines).filter(|(_, line)| line.started).for_each(|(source, line)| {
                line.finish(source, output);
            });
        });
        let Some((path, inner)) = self.0.as_deref() else { return };
        let queue = inner.lock().unwrap_or_else(PoisonError::into_inner).queue.take();
        report(path, queue.map_or(Ok(()), Queue::finish));
    }

    fn write(&self, fill: impl FnOnce(&mut Inner, Duration, &mut Vec<u8>)) {
        let Some((path, inner)) = self.0.as_deref() else { return };
        let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut output, now) = (Vec::new(), inner.began.elapsed());
        if inner.queue.is_some() {
            fill(&mut inner, now, &mut output);
        }
        let written = inner.queue.as_ref().map_or(Ok(()), |queue| queue.push(output));
        if written.is_err() {
            inner.queue = None;
        }
        drop(inner); // the message is for the log, too
        report(path, written);
    }
}

fn report(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        log::error!("cannot write --log '{}': {}", path.display(), os_error::describe(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn each_line_has_its_time_and_source() {
        let path = std::env::temp_dir().join(format!("kickvm-run-log-{}", std::process::id()));
        fs::write(&path, "an old log").unwrap();
        assert!(RunLog::open(&path, [path.as_path()].into_iter()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "an old log");
        let log = RunLog::open(&path, [].into_iter()).unwrap();
        for (source, text) in [
            (Source::Console, "[    0.1] Linux\r\n\r\nlog"),
            (Source::Stdout, "\u{1b}[32mPASS\u{1b}[0m\n 10%\rdone\n"),
            (Source::Console, "in: "),
            (Source::Kickvm, "the guest ended\n"),
            (Source::Stderr, "no end"),
        ] {
            log.push(source, text.as_bytes());
        }
        log.finish();
        log.push(Source::Kickvm, b"too late\n");
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_at(13)).collect();
        assert!(lines.iter().all(|(time, _)| time.trim().parse::<f64>().is_ok_and(|time| time < 30.0)), "{text}");
        let lines: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
        let first = ["console: [    0.1] Linux", "console: ", "stdout: PASS", "stdout:  10%", "stdout: done"];
        assert_eq!(lines[..5], first);
        assert_eq!(lines[5..], ["kickvm: the guest ended", "console: login: ", "stderr: no end"]);
    }

    #[test]
    fn a_reader_that_stalls_delays_nothing_and_ends_the_log() {
        let (reader, writer) = io::pipe().unwrap();
        let log = RunLog::start(File::from(std::os::fd::OwnedFd::from(writer)), Path::new("pipe")).unwrap();
        let has_queue = || log.0.as_ref().unwrap().1.lock().unwrap().queue.is_some();
        let block = vec![b'x'; MAX_LINE];
        let began = Instant::now();
        let blocks = (0..).take_while(|_| has_queue()).map(|_| log.push(Source::Console, &block)).count();
        assert!((MAX_PENDING / 2 / MAX_LINE..MAX_PENDING / MAX_LINE + 4).contains(&blocks), "{blocks}");
        log.finish();
        assert!(began.elapsed() < Duration::from_secs(20));
        drop(reader);
    }

    #[test]
    fn a_slow_reader_receives_all_before_the_end() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = RunLog::start(File::from(std::os::fd::OwnedFd::from(writer)), Path::new("pipe")).unwrap();
        let lines = 20_000;
        (0..lines).for_each(|_| log.push(Source::Console, b"a line\n"));
        let slow = thread::spawn(move || {
            let (mut text, mut block) = (Vec::new(), vec![0; MAX_LINE]);
            loop {
                thread::sleep(Duration::from_millis(20));
                match io::Read::read(&mut reader, &mut block).unwrap() {
                    0 => return text,
                    count => text.extend_from_slice(&block[..count]),
                }
            }
        });
        log.finish();
        assert_eq!(slow.join().unwrap().split(|byte| *byte == b'\n').count(), lines + 1);
    }
}
