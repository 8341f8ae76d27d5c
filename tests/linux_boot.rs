//! Real Linux in the machine: a stock Debian kernel, and the one of `resources/kernel-config` by each boot protocol.
//!
//! Linux needs hardware-grade KVM, so a cargo runner starts this binary where there is one and names in the environment what
//! guests are made of: `KICKVM_STOCK_KERNEL`, `KICKVM_KERNEL_DIR`, `KICKVM_INITRAMFS`. Without them a test says that it could
//! not run, and fails if `KICKVM_REQUIRE_KVM` is 1.
//!
//! In the guest runs `resources/guest-init`: it greets, runs the executable `/job` of a second archive if there is one, and
//! powers off.
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
mod assets;
mod common;
#[path = "linux/cpio.rs"]
mod cpio;
#[path = "linux/guest.rs"]
mod guest;
#[path = "terminal/pty.rs"]
#[allow(dead_code)]
mod pty;
#[path = "linux/terminal.rs"]
mod terminal;
#[path = "linux/transcript.rs"]
mod transcript;

// The promises.
#[path = "linux/endings.rs"]
mod endings;
#[path = "linux/figures.rs"]
mod figures;
#[path = "linux/initramfs.rs"]
mod initramfs;
#[path = "linux/machine.rs"]
mod machine;
#[path = "linux/panics.rs"]
mod panics;
#[path = "linux/shell.rs"]
mod shell;
#[path = "linux/stopping.rs"]
mod stopping;
