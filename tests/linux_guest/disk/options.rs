//! Disks have the order and the properties that their options give.

use super::image::{Images, Place, run};
use crate::support::devices::job;
use crate::support::guest::Guest;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

on_both_kernels! {
    several_disks in Files: super::have_their_order_size_and_name;
    a_read_only_disk in Files: super::rejects_writes;
    a_read_only_disk_in_memory in Memory: super::rejects_writes;
    a_driver_that_comes_back in Files: super::finds_the_disk_as_it_was;
    a_driver_that_comes_back_in_memory in Memory: super::finds_the_disk_as_it_was;
    a_discarded_disk in Files: super::returns_its_space;
    a_discarded_disk_in_memory in Memory: super::returns_its_space;
}

fn have_their_order_size_and_name(guest: Guest, place: Place) {
    let images = Images::new(place);
    let first = format!("--disk={},id=first", images.empty("large", 32).display());
    let second = format!("--disk={},ro,id=01234567890123456789", images.random("small", 1).display());
    let third = format!("--disk={}", images.empty("with,comma", 3).display().to_string().replace(',', ",,"));
    let script = "
        for disk in /sys/block/vd*; do
            echo ${disk##*/} $(cat $disk/size $disk/ro $disk/queue/logical_block_size $disk/queue/physical_block_size)
            echo \"serial: $(cat $disk/serial)\"
        done
        cat /sys/block/vda/queue/write_cache";
    let seen = job(guest.options(&[&first, &second, &third]), script).answers();
    let expected = [
        "vda 65536 0 512 4096",
        "serial: first",
        "vdb 2048 1 512 4096",
        "serial: 01234567890123456789",
        "vdc 6144 0 512 4096",
        "serial: ",
        "write back",
    ];
    assert_eq!(seen, expected);
}

/// The driver is unbound while the disk is read, which resets the device.
fn finds_the_disk_as_it_was(guest: Guest, place: Place) {
    let images = Images::new(place);
    let image = images.random("disk", 16);
    let script = "
        (while dd if=/dev/vda of=/dev/null bs=256k; do :; done) >/dev/null 2>&1 &
        dd if=/dev/vda of=/dev/null bs=1M count=8 iflag=direct 2>/dev/null
        echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind
        wait
        ls /sys/block | grep -c vd
        echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind
        md5sum </dev/vda";
    let seen = job(guest.options(&[&format!("--disk={}", image.display())]), script).answers();
    assert_eq!(seen, ["0", &format!("{}  -", md5sum(&image))]);
}

fn md5sum(image: &Path) -> String {
    let line = String::from_utf8(run(Command::new("md5sum").arg(image))).expect("it is text");
    line.split_whitespace().next().expect("there is a sum").to_owned()
}

fn rejects_writes(guest: Guest, place: Place) {
    let images = Images::new(place);
    let image = images.random("disk", 4);
    let before = fs::read(&image).expect("it is there");
    let script = "
        cat /sys/block/vda/ro
        dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null || echo refused
        md5sum </dev/vda";
    let seen = job(guest.options(&[&format!("--disk={},ro", image.display())]), script).answers();
    assert_eq!(seen, ["1", "refused", &format!("{}  -", md5sum(&image))]);
    assert!(fs::read(&image).expect("it is there") == before, "the image has changed");
}

fn returns_its_space(guest: Guest, place: Place) {
    let images = Images::new(place);
    let image = images.random("disk", 16);
    let blocks = || fs::metadata(&image).expect("it is there").blocks();
    assert!(blocks() >= 16 << 11);
    let script = "
        blkdiscard -o 4194304 -l 8388608 /dev/vda && echo discarded
        cmp -n 100 /dev/vda /dev/zero >/dev/null || echo kept
        dd if=/dev/vda bs=1M skip=4 count=8 2>/dev/null | tr -d '\\0' | wc -c";
    let seen = job(guest.options(&[&format!("--disk={}", image.display())]), script).answers();
    assert_eq!(seen, ["discarded", "kept", "0"]);
    assert!(blocks() <= 8 << 11, "{} blocks are in use", blocks());
}
