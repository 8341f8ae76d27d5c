//! The virtio devices that need nothing on the host, under real Linux: entropy, console, balloon.

mod balloon;
mod console;
mod entropy;
