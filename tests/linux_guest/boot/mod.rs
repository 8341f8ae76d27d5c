//! `kickvm run` boots Linux: what the guest sees, what its user sees, and how the run ends.

mod endings;
mod figures;
mod initramfs;
mod machine;
mod panics;
mod shell;
mod stopping;
