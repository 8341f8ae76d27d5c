//! The guest has an entropy source from the start, and it does not run out.

use crate::support::devices::job;
use crate::support::guest::Guest;

#[track_caller]
fn reads_a_mebibyte(guest: Guest) {
    let script = "
        cat /sys/class/misc/hw_random/rng_current
        for part in 1 2; do dd if=/dev/hwrng of=/tmp/$part bs=64k count=8 iflag=fullblock 2>/dev/null; done
        cat /tmp/1 /tmp/2 | wc -c
        cmp -s /tmp/1 /tmp/2 || echo they differ
        gzip -c /tmp/1 | wc -c";
    let lines = job(guest, script).answers();
    assert_eq!(lines[..3], ["virtio_rng.0", "1048576", "they differ"]);
    assert!(lines[3].parse::<usize>().unwrap() >= 512 << 10, "half a mebibyte can be packed into {} bytes", lines[3]);
}

#[test]
fn a_stock_kernel_reads_a_mebibyte() {
    reads_a_mebibyte(linux!(Stock));
}

#[test]
fn our_kernel_reads_a_mebibyte() {
    reads_a_mebibyte(linux!(BzImage));
}

#[test]
fn no_rng_removes_the_device() {
    let lines = linux!(BzImage).options(&["--no-rng"]).job("ls /sys/bus/virtio/devices | wc -l").answers();
    assert_eq!(lines, ["0"]);
}
