//! The channel's pages as kickvm accesses them: in guest RAM, at the addresses that the guest published.

use std::sync::Arc;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::channel::{PAGE, Pages, ProtocolError, TOTAL_PAGES};
use crate::memory::GuestRam;

/// The channel's pages in guest RAM.
#[derive(Debug)]
pub struct GuestPages {
    ram: Arc<GuestRam>,
    pages: Vec<GuestAddress>,
}

impl GuestPages {
    /// Reads the page list from the header at page frame `header`; `None` if the header is not complete.
    ///
    /// # Errors
    ///
    /// A page of the list is not in guest RAM.
    pub fn read(ram: &Arc<GuestRam>, header: u32) -> Result<Option<Self>, ProtocolError> {
        let address = |frame: u64| frame.checked_mul(PAGE as u64).map(GuestAddress).ok_or(ProtocolError);
        let mut found = Self { ram: ram.clone(), pages: vec![address(header.into())?] };
        if !found.is_published() {
            return Ok(None);
        }
        for page in 1..TOTAL_PAGES {
            found.pages.push(address(found.frame(page)?)?);
        }
        let in_ram = |page| found.slice(page, 0, PAGE).is_some_and(|slice| slice.len() == PAGE);
        if (0..TOTAL_PAGES).all(in_ram) { Ok(Some(found)) } else { Err(ProtocolError) }
    }
}

impl Pages for GuestPages {
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let address = self.pages.get(page)?.checked_add(offset as u64)?;
        let len = len.min(PAGE.checked_sub(offset)?);
        self.ram.memory().get_slice(address, len).ok()
    }
}
