//! Support code for tests that boot Linux.

/// A guest with one of the [`Kernel`](assets::Kernel)s. Ends the test that contains it if the guest's files are
/// missing.
macro_rules! linux {
    ($kernel:ident) => {{
        let guest = $crate::support::guest::Guest::new($crate::support::assets::Kernel::$kernel);
        let possible = guest.as_ref().map(drop).map_err(|missing| format!("{missing} is not set"));
        if !$crate::common::can_run($crate::this_test!(), possible) {
            return;
        }
        guest.expect("it can run")
    }};
}

pub mod assets;
#[path = "../../common/cpio.rs"]
pub mod cpio;
pub mod devices;
pub mod guest;
pub mod network;
pub mod terminal;
pub mod transcript;
pub mod waiting;
