//! Any number of `--initramfs` archives, compressed or not, later ones on top. A damaged one does not hang.

use crate::support::guest::Guest;
use crate::support::{assets, cpio};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The file at `path`, compressed.
fn gzip(path: &Path) -> Vec<u8> {
    let run = Command::new("gzip").args(["-1", "-c", "--"]).arg(path).stderr(Stdio::inherit()).output();
    let output = run.expect("cannot run gzip");
    assert!(output.status.success(), "gzip failed");
    output.stdout
}

/// The file of the later archive wins, and an archive whose length is not a multiple of four does not misalign the
/// next.
#[track_caller]
fn takes_four_archives(guest: Guest) {
    let second = guest.files().1.join("second");
    let second = (0..100).find_map(|filling| {
        let filling = vec![b'x'; filling * filling];
        let archive = cpio::archive(&[("new/", b""), ("new/a", b"second"), ("new/b", b"second"), ("fill", &filling)]);
        fs::write(&second, archive).expect("cannot write an archive");
        Some(gzip(&second)).filter(|bytes| bytes.len() % 4 == 1)
    });
    let guest = guest.archive(&second.expect("some length leaves a remainder of 1"));
    let third = cpio::archive(&[("new/b", b"third")]);
    let guest = guest.archive(&third).job("echo $(cat /new/a) $(cat /new/b)");
    assert_eq!(guest.answers(), ["second third"]);
}

#[test]
fn a_stock_kernel_unpacks_four_archives_one_compressed() {
    takes_four_archives(linux!(Stock));
}

#[test]
fn our_kernel_unpacks_four_archives_one_compressed_through_its_pvh_entry() {
    takes_four_archives(linux!(Pvh));
}

/// The output of a program that compresses the file at `path`.
fn compressed(program: &[&str], path: &Path) -> Vec<u8> {
    let output = Command::new(program[0]).args(&program[1..]).arg(path).stderr(Stdio::inherit()).output();
    output.unwrap_or_else(|error| panic!("cannot run {}: {error}", program[0])).stdout
}

/// Whatever compresses an archive, the next one is unpacked, too, and so is the last one.
#[test]
fn a_stock_kernel_unpacks_archives_in_all_compressions() {
    let mut guest = linux!(Stock);
    let programs: [&[&str]; 6] = [
        &["gzip", "-c"],
        &["xz", "-c", "--check=crc32"],
        &["zstd", "-qc"],
        &["lz4", "-lqc"],
        &["bzip2", "-c"],
        &["xz", "-c", "-Flzma"],
    ];
    for (n, program) in programs.iter().enumerate() {
        for filling in 0..3 {
            let path = guest.files().1.join("plain");
            let name = format!("file-{n}-{filling}");
            fs::write(&path, cpio::archive(&[(&name, &vec![b'x'; filling * 501])])).unwrap();
            let archive = compressed(program, &path);
            assert!(archive.len() > 10, "{program:?}");
            guest = guest.archive(&archive);
        }
    }
    assert_eq!(guest.job("ls -d /file-* | wc -l").answers(), ["18"]);
    let guest = linux!(Stock);
    let archive = compressed(&["lz4", "-lqc"], guest.files().0);
    let path = guest.files().1.join("plain");
    fs::write(&path, cpio::archive(&[("job", b"#!/bin/sh\nstty opost\necho last\nstty opost\n")])).unwrap();
    let last = compressed(&["lz4", "-lqc"], &path);
    assert_eq!(guest.without_initramfs().archive(&archive).archive(&last).answers(), ["last"]);
}

#[test]
fn an_unpacker_that_the_kernel_lacks_is_named() {
    let guest = linux!(BzImage);
    let archive = compressed(&["lz4", "-lqc"], guest.files().0);
    let ended = guest.without_initramfs().archive(&archive).run();
    let note = "kickvm: this kernel cannot unpack an initramfs that lz4 has compressed: it lacks CONFIG_RD_LZ4";
    ended.assert(120, &["kickvm: the guest kernel panicked", note]);
}

/// kickvm does not unpack archives, so it cannot detect the damage. The kernel finds no init in the part it can unpack.
#[track_caller]
fn panics_on_half_an_archive(guest: Guest) {
    let archive = gzip(guest.files().0);
    let ended = guest.without_initramfs().archive(&archive[..archive.len() / 2]).run();
    ended.assert(120, &["kickvm: the guest kernel panicked"]);
    ended.assert_line("Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)");
}

#[test]
fn a_stock_kernel_panics_on_a_truncated_compressed_archive() {
    panics_on_half_an_archive(linux!(Stock));
}

#[test]
fn our_kernel_panics_on_a_truncated_compressed_archive() {
    panics_on_half_an_archive(linux!(BzImage));
}

#[test]
fn a_compressed_archive_unpacks_like_a_plain_one() {
    let guest = linux!(BzImage);
    let archive = gzip(guest.files().0);
    assert!(archive.len() < assets::read(guest.files().0).len());
    let guest = guest.without_initramfs().archive(&archive).job("echo unpacked");
    assert_eq!(guest.answers(), ["unpacked"]);
}
