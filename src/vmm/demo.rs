//! `kickvm demo`: a machine that needs no files.

use super::config::{MIN_MEMORY, VMMConfig};
use super::guests;
use crate::boot::Image;

/// The demonstration: an embedded guest, with each step of the pattern told on standard error.
pub fn demo_config() -> VMMConfig {
    VMMConfig { memory: MIN_MEMORY, rng: false, narrate: true, ..VMMConfig::new(Image::Raw(guests::demo())) }
}
