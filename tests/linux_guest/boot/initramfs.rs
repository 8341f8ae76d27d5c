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
