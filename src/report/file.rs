//! The file of a report. It is opened before the run, so that a path that cannot be written is an error at once.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use vmm_sys_util::signal::block_signal;

use crate::console::output::{is_no_stream, is_same_file, open_to_write};
use crate::sys::file_writer::FileWriter;
use crate::sys::os_error;

/// A file to write a report to.
#[derive(Debug)]
pub struct ReportFile {
    option: &'static str,
    path: PathBuf,
    target: File,
    writer: FileWriter,
}

impl ReportFile {
    /// Opens `path`, the value of `option`. It must not be one of the files `taken`.
    ///
    /// # Errors
    ///
    /// The file cannot be written, or something else uses it. The message names it.
    pub fn open(option: &'static str, path: Option<&Path>, taken: &[&Path]) -> Result<Option<Self>, String> {
        let Some(path) = path else { return Ok(None) };
        match Self::try_open(path, taken) {
            Ok((target, writer)) => Ok(Some(Self { option, path: path.to_owned(), target, writer })),
            Err(error) => Err(cannot(option, path, &error)),
        }
    }

    fn try_open(path: &Path, taken: &[&Path]) -> io::Result<(File, FileWriter)> {
        // Before the file is opened: that would block on a FIFO.
        match fs::metadata(path).map(|metadata| metadata.file_type()) {
            Ok(kind) if kind.is_dir() => return Err(io::Error::other("it is a directory")),
            Ok(kind) if !kind.is_file() && !kind.is_char_device() => {
                return Err(io::Error::other("it is not a regular file"));
            }
            _ => {}
        }
        let file = open_to_write(path)?;
        let own = file.metadata()?;
        let same = |other: &Path| own.is_file() && is_same_file(&own, other);
        is_no_stream(&own)?;
        if let Some(other) = taken.iter().find(|other| same(other)) {
            return Err(io::Error::other(format!(
                "the command line uses the same file, '{}', for something else",
                other.display()
            )));
        }
        Ok((file.try_clone()?, FileWriter::start_replacement(file, path)?))
    }

    /// Replaces the content of a regular file by `unfinished`, in case that kickvm is killed.
    ///
    /// # Errors
    ///
    /// The file cannot be written. The message names it.
    pub fn start(&mut self, unfinished: &str) -> Result<(), String> {
        let _ = block_signal(libc::SIGXFSZ); // a file that must not grow is a write error, not the end
        let mut write = || {
            if self.target.metadata()?.is_file() {
                self.target.set_len(0)?;
                self.target.write_all(unfinished.as_bytes())?;
                self.target.rewind()?; // for a replacement in place
            }
            Ok(())
        };
        write().map_err(|error| cannot(self.option, &self.path, &error))
    }

    /// Replaces the content of the file with `text` until `deadline`. Logs an error and returns `false` if that fails.
    pub fn write(self, text: &str, deadline: Instant) -> bool {
        let result = self.writer.replace_with(text, deadline);
        if let Err(error) = &result {
            log::error!("{}", cannot(self.option, &self.path, error));
        }
        result.is_ok()
    }
}

fn cannot(option: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot write {option} '{}': {}", path.display(), os_error::describe(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::time::Duration;

    #[test]
    fn only_a_file_that_nothing_else_uses_takes_a_report() {
        let directory = std::env::temp_dir().join(format!("kickvm-report-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let kernel = directory.join("kernel");
        fs::write(&kernel, "a kernel").unwrap();
        let fifo = directory.join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let refused = |path: &Path| ReportFile::open("--report", Some(path), &[&kernel]).unwrap_err();
        for (path, why) in [
            (directory.clone(), "it is a directory".to_owned()),
            (fifo, "it is not a regular file".to_owned()),
            (directory.join("none/report"), "No such file or directory".to_owned()),
            (directory.join("../").join(directory.file_name().unwrap()).join("kernel"), {
                format!("the command line uses the same file, '{}', for something else", kernel.display())
            }),
        ] {
            assert_eq!(refused(&path), format!("cannot write --report '{}': {why}", path.display()));
        }
        assert_eq!(fs::read(&kernel).unwrap(), b"a kernel");

        let path = directory.join("report");
        fs::write(&path, "what a longer report was").unwrap();
        let mut report = ReportFile::open("--report", Some(&path), &[&kernel]).unwrap().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"what a longer report was");
        report.start("unfinished").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"unfinished");
        assert!(report.write("short", Instant::now() + Duration::from_secs(30)));
        assert_eq!(fs::read(&path).unwrap(), b"short");
        fs::remove_dir_all(&directory).unwrap();
    }
}
