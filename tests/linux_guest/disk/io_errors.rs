//! An error of the host's file is an I/O error in the guest, and the disk continues to work.

use super::image::{Images, Place, run};
use crate::support::devices::job;
use crate::support::guest::Guest;
use std::fs::OpenOptions;
use std::process::Command;

on_both_kernels! {
    a_file_that_shrinks in Files: super::is_an_error_until_it_grows;
    a_file_that_shrinks_in_memory in Memory: super::is_an_error_until_it_grows;
    a_full_file_system in Files: super::is_an_error_until_it_has_room;
}

const READ: &str = "dd if=/dev/vda of=/tmp/block bs=4k count=1 iflag=direct 2>/tmp/why";

fn is_an_error_until_it_grows(guest: Guest, place: Place) {
    let images = Images::new(place);
    let image = images.random("disk", 4);
    let path = image.display();
    let script = format!(
        "{READ} skip=1000 && echo good
        read go
        {READ} skip=1000 || sed -n 's/.*: //p' /tmp/why | head -n 1
        {READ} && echo good elsewhere
        read go
        {READ} skip=1000 && echo good again"
    );
    let mut guest = job(guest.options(&[&format!("--disk={path}")]), &script).start();
    let file = OpenOptions::new().write(true).open(&image).expect("it is there");
    guest.wait_for_line("good");
    file.set_len(1 << 20).expect("it can shrink");
    guest.write("go\n");
    guest.wait_for_line("Input/output error");
    guest.wait_for_line("good elsewhere");
    file.set_len(4 << 20).expect("it can grow");
    guest.write("go\n");
    guest.wait_for_line("good again");
    guest
        .finish()
        .assert(0, &[&format!("kickvm: disk '{path}' failed: the file was truncated; the guest gets I/O errors")]);
}

/// A tmpfs mounted for the image, which takes root's rights.
struct Mounted<'a>(&'a Images);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn is_an_error_until_it_has_room(guest: Guest, place: Place) {
    let images = Images::new(place);
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(images.path()));
    let _mounted = Mounted(&images);
    let image = images.empty("disk", 16);
    let path = image.display();
    let write = "dd if=/dev/urandom of=/dev/vda bs=64k count=128 conv=fsync 2>/tmp/why";
    let script = format!(
        "{write} || sed -n 's/.*: //p' /tmp/why | head -n 1
        {READ} && echo good elsewhere
        read go
        {write} && echo good again"
    );
    let mut guest = job(guest.options(&[&format!("--disk={path}")]), &script).start();
    guest.wait_for_line("Input/output error");
    guest.wait_for_line("good elsewhere");
    run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(images.path()));
    guest.write("go\n");
    guest.wait_for_line("good again");
    guest
        .finish()
        .assert(0, &[&format!("kickvm: disk '{path}' failed: No space left on device; the guest gets I/O errors")]);
}
