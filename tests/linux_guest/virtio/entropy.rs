//! The guest has a source of entropy from the start, and it does not run dry.

use crate::support::devices::job;
use crate::support::guest::Guest;

#[track_caller]
fn gives_a_mebibyte(guest: Guest) {
    let script = "
        cat /sys/class/misc/hw_random/rng_current
        for part in 1 2; do dd if=/dev/hwrng of=/tmp/$part bs=64k count=8 iflag=fullblock 2>/dev/null; done
        cat /tmp/1 /tmp/2 | wc -c
        cmp -s /tmp/1 /tmp/2 || echo they differ
        gzip -c /tmp/1 | wc -c";
    let said = job(guest, script).answers();
    assert_eq!(said[..3], ["virtio_rng.0", "1048576", "they differ"]);
    assert!(said[3].parse::<usize>().unwrap() >= 512 << 10, "half a mebibyte can be packed into {} bytes", said[3]);
}

#[test]
fn a_stock_kernel_gets_as_much_as_it_asks_for() {
    gives_a_mebibyte(linux!(Stock));
}

#[test]
fn our_kernel_gets_as_much_as_it_asks_for() {
    gives_a_mebibyte(linux!(BzImage));
}

#[test]
fn there_is_none_if_its_user_wants_none() {
    let said = linux!(BzImage).options(&["--no-rng"]).job("ls /sys/bus/virtio/devices | wc -l").answers();
    assert_eq!(said, ["0"]);
}
