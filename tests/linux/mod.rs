//! What the tests that boot Linux share.
#![allow(dead_code, unused_macros)] // each of them uses some of it

/// A guest with one of the [`Kernel`](assets::Kernel)s, or the end of a test that cannot have one.
macro_rules! linux {
    ($kernel:ident) => {{
        fn here() {}
        let guest = crate::linux::guest::Guest::new(crate::linux::assets::Kernel::$kernel);
        let possible = guest.as_ref().map(drop).map_err(|missing| format!("{missing} is not set"));
        if !crate::common::can_run(std::any::type_name_of_val(&here), possible) {
            return;
        }
        guest.expect("it can run")
    }};
}

pub mod assets;
pub mod cpio;
pub mod devices;
pub mod guest;
pub mod network;
#[path = "../terminal/pty.rs"]
pub mod pty;
pub mod terminal;
pub mod transcript;
pub mod waiting;
