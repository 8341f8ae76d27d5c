//! Disk images for guests, and their content.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The file system of an image, which decides how the disk executes its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A tmpfs.
    Memory,
    /// The directory for temporary files.
    Files,
}

/// A directory for images, which is deleted with them when dropped.
pub struct Images(PathBuf);

impl Images {
    pub fn new(place: Place) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kickvm-images-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let parent = if place == Place::Memory { "/dev/shm".into() } else { std::env::temp_dir() };
        let path = parent.join(name);
        fs::create_dir(&path).expect("cannot make a directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A sparse image.
    pub fn empty(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.0.join(name);
        File::create(&path).and_then(|file| file.set_len(mib << 20)).expect("cannot make an image");
        path
    }

    /// An image of random bytes.
    pub fn random(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.0.join(name);
        let mut source = File::open("/dev/urandom").expect("there are random numbers").take(mib << 20);
        io::copy(&mut source, &mut File::create(&path).expect("cannot make an image")).expect("cannot fill an image");
        path
    }

    /// An image with an empty file system.
    pub fn ext4(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.empty(name, mib);
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path));
        path
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Replays the journal of the ext4 image as a mount would, and asserts that the file system is clean then.
#[track_caller]
pub fn check(image: &Path) {
    run(Command::new("e2fsck").args(["-y", "-E", "journal_only"]).arg(image));
    run(Command::new("e2fsck").args(["-f", "-n"]).arg(image));
}

/// The content of a file in the ext4 image.
#[track_caller]
pub fn content(image: &Path, file: &str) -> Vec<u8> {
    let request = format!("cat {file}");
    run(Command::new("debugfs").args(["-R", &request]).arg(image))
}

/// Runs a command, asserts that it succeeds, and returns its output.
#[track_caller]
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    output.stdout
}
