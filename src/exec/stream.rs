//! One of the command's outputs, from its ring to a file of kickvm's.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use super::channel::{Broken, Consumer, Lane, Pages};
use crate::console::Drain;
use crate::console::output::OutputFile;
use crate::event::{EventOps, EventSet, Events};
use crate::sys::os_error;

/// What is taken out of a ring at once.
const BATCH: usize = 64 << 10;
/// Batches after which the loop gets a turn, whatever a command may still have to say.
const BATCHES: usize = 4;

/// Where one output goes.
#[derive(Debug)]
pub struct Outlet {
    ring: Consumer,
    output: Option<OutputFile>,
    blocked: bool,
    lost: Option<io::Error>,
}

/// What [`Outlet::pump`] came to.
#[derive(Debug, Default)]
pub struct Pumped {
    /// There was output.
    pub moved: bool,
    /// The guest waited for room, and there is some now.
    pub relieved: bool,
    /// Nothing can be written any more, since now.
    pub lost: bool,
}

impl Outlet {
    /// An outlet from the ring `lane` to `output`.
    pub fn new(lane: Lane, output: OutputFile) -> Self {
        Self { ring: Consumer::new(lane), output: Some(output), blocked: false, lost: None }
    }

    /// Writes what there is, as far as that goes without waiting. Rings `again` if there may be more.
    pub fn pump(
        &mut self,
        pages: &impl Pages,
        ops: &mut EventOps,
        data: u32,
        again: &EventFd,
    ) -> Result<Pumped, Broken> {
        let mut done = Pumped::default();
        for _ in 0..BATCHES {
            if self.blocked {
                return Ok(done);
            }
            let mut nowhere = Vec::new();
            let pending = self.output.as_mut().map_or(&mut nowhere, |output| &mut output.pending);
            if pending.is_empty() && self.ring.pop(pages, pending, BATCH)? == 0 {
                return Ok(done);
            }
            done.moved = true;
            done.relieved |= self.ring.relieve(pages)?;
            let Some(output) = &mut self.output else { continue };
            match output.write_some() {
                Ok(true) => {}
                Ok(false) => match ops.add(Events::with_data(output, data, EventSet::OUT)) {
                    Ok(()) => self.blocked = true,
                    Err(error) => self.lost = Some(io::Error::other(error.to_string())),
                },
                Err(error) => self.lost = Some(error),
            }
            if self.lost.is_some() {
                self.output = None; // from now on the ring is emptied into nothing
                done.lost = true;
            }
        }
        let _ = again.write(1); // a full counter has rung already
        Ok(done)
    }

    /// The file can be written to again.
    pub fn unblock(&mut self, ops: &mut EventOps, data: u32) {
        if let (true, Some(output)) = (self.blocked, &self.output) {
            let _ = ops.remove(Events::with_data(output, data, EventSet::OUT)); // it was added
            self.blocked = false;
        }
    }

    /// Why something was lost, unless it was because nobody reads.
    pub fn failure(&self) -> Option<String> {
        let error = self
            .lost
            .as_ref()
            .filter(|error| !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::TimedOut))?;
        Some(format!("cannot write the command's output: {}", os_error::describe(error)))
    }

    /// Writes all there is, the guest having stopped; see [`OutputFile::write_all`]. What goes wrong is then the
    /// [`failure`](Self::failure).
    pub fn finish(&mut self, pages: &impl Pages, drain: &mut Drain<'_>) -> Result<(), Broken> {
        let Some(output) = &mut self.output else { return Ok(()) };
        loop {
            if let Err(error) = output.write_all(drain) {
                self.lost = Some(error);
                return Ok(());
            }
            if self.ring.pop(pages, &mut output.pending, BATCH)? == 0 {
                return Ok(());
            }
        }
    }
}
