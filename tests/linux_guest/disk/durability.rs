//! Data that was reported to the guest as flushed is on the disk, however the guest ends.

use super::image::{Images, Place, check, content};
use crate::support::devices::job;
use crate::support::guest::Guest;
use std::fs;

const BLOCK: usize = 64 << 10;

on_both_kernels! {
    power_off in Files: super::leaves_what_was_synced;
    power_off_in_memory in Memory: super::leaves_what_was_synced;
    kill in Files: super::leaves_what_was_fsynced_when_killed;
    kill_in_memory in Memory: super::leaves_what_was_fsynced_when_killed;
}

fn leaves_what_was_synced(guest: Guest, place: Place) {
    let images = Images::new(place);
    let (disk, source) = (images.ext4("disk", 160), images.random("source", 64));
    let options = [format!("--disk={}", disk.display()), format!("--disk={},ro", source.display())];
    let script = "
        mkdir /mnt
        mount -t ext4 /dev/vda /mnt
        cp /dev/vdb /mnt/copy
        sync
        echo synced";
    assert_eq!(job(guest.options(&options.each_ref().map(String::as_str)), script).answers(), ["synced"]);
    check(&disk);
    assert!(content(&disk, "copy") == fs::read(source).expect("it is there"), "the copy differs");
}

/// The VMM is killed while one file is written endlessly, and others are written and synced one by one.
fn leaves_what_was_fsynced_when_killed(guest: Guest, place: Place) {
    const SYNCED: usize = 20;
    let images = Images::new(place);
    let (disk, source) = (images.ext4("disk", 256), images.random("source", 8));
    let options = [format!("--disk={}", disk.display()), format!("--disk={},ro", source.display())];
    let script = "
        mkdir /mnt
        mount -t ext4 /dev/vda /mnt
        (while :; do dd if=/dev/vdb of=/mnt/unsynced bs=64k; done) >/dev/null 2>&1 &
        n=0
        while [ $n -lt 120 ]; do
            dd if=/dev/vdb of=/mnt/synced$n bs=64k skip=$n count=1 conv=fsync 2>/dev/null || break
            echo \"synced $n\"
            n=$((n + 1))
        done
        sleep 1000";
    let mut running = job(guest.options(&options.each_ref().map(String::as_str)), script).start();
    running.wait_for_line(&format!("synced {}", SYNCED - 1));
    running.child.kill().expect("it runs");
    let ended = running.finish();
    assert_eq!(ended.code, None, "it was killed");

    check(&disk);
    let source = fs::read(source).expect("it is there");
    let synced = ended.stdout.lines().filter(|line| line.starts_with("synced ")).count();
    assert!(synced >= SYNCED);
    for n in 0..synced {
        assert!(content(&disk, &format!("synced{n}")) == source[n * BLOCK..][..BLOCK], "file {n} differs");
    }
}
