//! One of the command's outputs, from its ring to a file of kickvm's.

use super::channel::{Broken, Consumer, Lane, Pages};
use crate::event::{EventOps, EventSet, Events, Signals};
use crate::vmm::stdout::Stdout;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

/// What is taken out of a ring at once.
const BATCH: usize = 64 << 10;
/// Batches after which the loop gets a turn, whatever a command may still have to say.
const BATCHES: usize = 4;

/// Where one output goes.
#[derive(Debug)]
pub struct Outlet {
    ring: Consumer,
    output: Option<Stdout>,
    blocked: bool,
}

/// What [`Outlet::pump`] came to.
#[derive(Debug, Default)]
pub struct Pumped {
    /// There was output.
    pub moved: bool,
    /// The guest waited for room, and there is some now.
    pub relieved: bool,
    /// Nothing can be written any more.
    pub lost: Option<io::Error>,
}

impl Outlet {
    /// An outlet from the ring `lane` to `output`.
    pub fn new(lane: Lane, output: Stdout) -> Self {
        Self { ring: Consumer::new(lane), output: Some(output), blocked: false }
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
                    Err(error) => done.lost = Some(io::Error::other(error.to_string())),
                },
                Err(error) => done.lost = Some(error),
            }
            if done.lost.is_some() {
                self.output = None; // from now on the ring is emptied into nothing
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

    /// Writes all there is, the guest having stopped; see [`Stdout::write_all`].
    pub fn finish(
        &mut self,
        pages: &impl Pages,
        stop: &Signals,
        deadline: Option<Instant>,
    ) -> Result<io::Result<()>, Broken> {
        let Some(output) = &mut self.output else { return Ok(Ok(())) };
        loop {
            if let Err(error) = output.write_all(stop.as_fd(), deadline) {
                return Ok(Err(error));
            }
            if self.ring.pop(pages, &mut output.pending, BATCH)? == 0 {
                return Ok(Ok(()));
            }
        }
    }
}
