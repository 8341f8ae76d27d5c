//! Disks under real Linux: what was written is there, errors are errors, and space goes back to the host.
#![cfg(feature = "vmm")]

/// Tests of this name, one on a stock kernel and one on ours, with images in memory or in another file system.
macro_rules! on_both_kernels {
    ($($name:ident in $place:ident: $test:path;)*) => {$(
        mod $name {
            #[test]
            fn on_a_stock_kernel() {
                $test(linux!(Stock), crate::image::Place::$place);
            }

            #[test]
            fn on_our_kernel() {
                $test(linux!(BzImage), crate::image::Place::$place);
            }
        }
    )*};
}

// The tools.
mod common;
#[macro_use]
mod linux;
#[path = "linux/image.rs"]
mod image;

// The promises.
#[path = "linux/disks.rs"]
mod disks;
#[path = "linux/durability.rs"]
mod durability;
#[path = "linux/io_errors.rs"]
mod io_errors;

use linux::{devices, guest};
