//! The channel's pages as kickvm sees them: where the guest says they are, as far as that is RAM.

use std::sync::Arc;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::channel::{Broken, PAGE, Pages, TOTAL_PAGES, frame, is_published};
use crate::memory::GuestRam;

/// The rings' pages in the guest's RAM.
#[derive(Debug)]
pub struct GuestPages {
    ram: Arc<GuestRam>,
    pages: Vec<GuestAddress>,
}

impl GuestPages {
    /// Reads the page list that the page `header` holds; every page of it is in RAM.
    pub fn read(ram: &Arc<GuestRam>, header: u32) -> Result<Option<Self>, Broken> {
        let address = |frame: u64| frame.checked_mul(PAGE as u64).map(GuestAddress).ok_or(Broken);
        let mut found = Self { ram: ram.clone(), pages: vec![address(header.into())?] };
        if !is_published(&found) {
            return Ok(None);
        }
        let rest = (1..TOTAL_PAGES).map(|n| address(frame(&found, n)?)).collect::<Result<Vec<_>, _>>()?;
        found.pages.extend(rest);
        match (0..TOTAL_PAGES).all(|n| found.slice(n, 0, PAGE).is_some_and(|page| page.len() == PAGE)) {
            true => Ok(Some(found)),
            false => Err(Broken),
        }
    }
}

impl Pages for GuestPages {
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let at = self.pages.get(page)?.checked_add(offset as u64)?;
        let len = len.min(PAGE.checked_sub(offset)?);
        self.ram.memory().get_slice(at, len).ok()
    }
}
