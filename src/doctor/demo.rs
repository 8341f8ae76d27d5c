//! `kickvm demo`: a machine that needs no files.

use super::embedded_guests;
use crate::boot::Image;
use crate::vmm::{MIN_MEMORY, VMMConfig};

/// The demonstration: an embedded guest, with each step of the pattern told on standard error.
pub fn demo_config() -> VMMConfig {
    VMMConfig { memory: MIN_MEMORY, rng: false, ..VMMConfig::new(Image::Raw(embedded_guests::demo())) }
}
