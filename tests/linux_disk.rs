//! Disks under real Linux: what was written is there, errors are errors, and space goes back to the host.
#![cfg(feature = "vmm")]

/// A guest with one of the [`Kernel`](assets::Kernel)s, or the end of a test that cannot have one.
macro_rules! linux {
    ($kernel:ident) => {{
        fn here() {}
        let guest = crate::guest::Guest::new(crate::assets::Kernel::$kernel);
        let possible = guest.as_ref().map(drop).map_err(|missing| format!("{missing} is not set"));
        if !crate::common::can_run(std::any::type_name_of_val(&here), possible) {
            return;
        }
        guest.expect("it can run")
    }};
}

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
#[path = "linux/assets.rs"]
#[allow(dead_code)]
mod assets;
mod common;
#[path = "linux/cpio.rs"]
#[allow(dead_code)]
mod cpio;
#[path = "linux/devices.rs"]
mod devices;
#[path = "linux/guest.rs"]
#[allow(dead_code)]
mod guest;
#[path = "linux/image.rs"]
mod image;
#[path = "linux/transcript.rs"]
mod transcript;

// The promises.
#[path = "linux/disks.rs"]
mod disks;
#[path = "linux/durability.rs"]
mod durability;
#[path = "linux/io_errors.rs"]
mod io_errors;
