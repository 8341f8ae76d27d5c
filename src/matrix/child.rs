//! A run in a separate process.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Selection;
use crate::vmm::code;

/// Bytes of a line that are printed at once.
const MAX_LINE: u64 = 64 << 10;

/// The process, and the threads that print its output.
#[derive(Debug)]
pub struct Child {
    selection: Selection,
    process: std::process::Child,
    printed: Receiver<io::Error>,
}

impl Child {
    /// Starts this program with the same arguments for one combination. `prefix` begins each line of its output.
    pub fn start(selection: Selection, prefix: &str) -> Result<Self, String> {
        let mut arguments = std::env::args_os().skip(1);
        let subcommand = arguments.next().unwrap_or_default();
        let (index, parent) = (selection.index, std::process::id());
        let option = format!("--combination={index}:{parent}:{}", selection.directory.display());
        let arguments = [subcommand, OsString::from(option)].into_iter().chain(arguments);
        // In a new process group: Ctrl-C is for this process, which passes it on.
        let mut command = Command::new("/proc/self/exe");
        command.args(arguments).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|error| format!("cannot start a run: {error}"))?;
        let (printing, printed) = channel();
        let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
        let child = Self { selection, process, printed };
        if let Some(stdout) = stdout {
            print(stdout, io::stdout(), prefix, printing.clone(), Some(printing.clone()))?;
        }
        if let Some(stderr) = stderr {
            print(stderr, io::stderr(), prefix, printing, None)?;
        }
        Ok(child)
    }

    /// Sends the process a signal.
    pub fn signal(&self, number: i32) {
        if let Ok(signal) = Signal::try_from(number) {
            let _ = kill(Pid::from_raw(self.process.id().cast_signed()), signal); // it may have ended
        }
    }

    /// `None` while the process runs, then its exit code, or 128 plus the signal that killed it. The code is `None` if
    /// it is lost, because SIGCHLD is ignored.
    pub fn try_wait(&mut self) -> Option<Option<u8>> {
        let status = self.process.try_wait().transpose()?.ok();
        let code = |status: ExitStatus| {
            let code = status.code().or_else(|| status.signal().map(|number| i32::from(code::SIGNAL) + number))?;
            u8::try_from(code).ok()
        };
        Some(status.and_then(code))
    }

    /// The combination that it runs.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Waits until the output is printed, at most until `deadline`. Returns why output is lost.
    pub fn finish(&self, deadline: Instant) -> Option<io::Error> {
        let mut lost = None;
        loop {
            match self.printed.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(error) => lost = Some(error),
                Err(RecvTimeoutError::Disconnected) => return lost, // both threads have ended
                Err(RecvTimeoutError::Timeout) => return lost.or(Some(io::ErrorKind::TimedOut.into())),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill(); // does nothing if it has ended
        let _ = self.process.wait();
    }
}

/// Prints the lines of `source` on another thread. `errors` receives the first error.
fn print(
    source: impl Read + Send + 'static,
    mut sink: impl Write + Send + 'static,
    prefix: &str,
    printing: Sender<io::Error>,
    mut errors: Option<Sender<io::Error>>,
) -> Result<(), String> {
    let prefix = prefix.to_owned();
    let print = move || {
        let _printing = printing;
        let mut source = BufReader::new(source);
        loop {
            let mut line = prefix.clone().into_bytes();
            match (&mut source).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            // After an error the output is read on, so that the run can end.
            if let Err(error) = sink.write_all(&line).and_then(|()| sink.flush())
                && let Some(errors) = errors.take()
            {
                let _ = errors.send(error); // nobody waits for it after the deadline
            }
        }
    };
    let thread = thread::Builder::new().name("output".to_owned()).spawn(print);
    thread.map(drop).map_err(|error| format!("cannot start a thread: {error}"))
}
