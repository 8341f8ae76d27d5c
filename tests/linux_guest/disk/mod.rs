//! Disks under real Linux: what was written is there, errors are errors, and discarded space returns to the host.

/// Tests of this name, one on a stock kernel and one on ours, with images in memory or in another file system.
macro_rules! on_both_kernels {
    ($($name:ident in $place:ident: $test:path;)*) => {$(
        mod $name {
            #[test]
            fn on_a_stock_kernel() {
                $test(linux!(Stock), $crate::disk::image::Place::$place);
            }

            #[test]
            fn on_our_kernel() {
                $test(linux!(BzImage), $crate::disk::image::Place::$place);
            }
        }
    )*};
}

mod durability;
mod image;
mod io_errors;
mod options;
