//! Input that kickvm cannot use: the error is one line on standard error that names the input, with exit code 125, and
//! nothing else happens.

mod disks;
mod files;
mod host;
mod options;

use crate::common::TempDir;
use std::fs;

/// The names of the files in `dir`, sorted.
fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
