//! The virtio devices that need nothing of the host, under real Linux: entropy, console, balloon.
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
#[path = "terminal/pty.rs"]
#[allow(dead_code)]
mod pty;
#[path = "linux/terminal.rs"]
#[allow(dead_code)]
mod terminal;
#[path = "linux/transcript.rs"]
mod transcript;

// The promises.
#[path = "linux/balloon.rs"]
mod balloon;
#[path = "linux/entropy.rs"]
mod entropy;
#[path = "linux/hvc.rs"]
mod hvc;
