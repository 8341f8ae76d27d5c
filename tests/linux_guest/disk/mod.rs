//! Disks under real Linux: what was written is there, errors are errors, and discarded space returns to the host.

/// Makes two tests of each function, one on the stock kernel and one on ours, with images in this place.
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
mod stuck;
