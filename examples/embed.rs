//! A guest with a device and a subscriber of the event loop that this program defines. `cargo run --example embed`
//!
//! The guest writes 1, 2, 3 … to port 0x700. The device stores the value and signals an eventfd; the subscriber reads
//! the value on the event loop and ends the run at 5.

use kickvm::boot::Image;
use kickvm::device::{Device, Response};
use kickvm::event::{EventOps, EventSet, Events, MutEventSubscriber};
use kickvm::vmm::{ConsoleConfig, ExitHandler, ExitReason, VMMConfig, VmmBuilder, WrappedExitHandler};
use std::error::Error;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// mov dx, 0x700; xor eax, eax; 1: inc eax; out dx, al; jmp 1b
const GUEST: &[u8] = b"\x66\xba\x00\x07\x31\xc0\xff\xc0\xee\xeb\xfb";

/// A port that stores the last byte written to it.
struct Counter {
    value: AtomicU8,
    changed: EventFd,
}

impl Device for Counter {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data[0] = self.value.load(Ordering::Relaxed);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Response {
        self.value.fetch_max(data[0], Ordering::Relaxed);
        let _ = self.changed.write(1); // a full counter is readable already
        Response::Continue(())
    }
}

/// Ends the run when the counter has reached 5.
struct Watcher(Arc<Counter>, WrappedExitHandler);

impl MutEventSubscriber for Watcher {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if self.0.value.load(Ordering::Relaxed) >= 5 {
            self.1.exit(ExitReason::Kicked);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0.changed, EventSet::IN | EventSet::EDGE_TRIGGERED)).expect("the descriptor is new");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = VMMConfig { console: ConsoleConfig::None, ..VMMConfig::new(Image::Raw(GUEST)) };
    let counter = Arc::new(Counter { value: AtomicU8::new(0), changed: EventFd::new(libc::EFD_NONBLOCK)? });
    let builder = VmmBuilder::new(config)?.port_device(0x700, 1, counter.clone())?;
    let watcher = Watcher(counter, builder.exit_handler().clone());
    let builder = builder.subscriber(Arc::new(Mutex::new(watcher)));
    let outcome = builder.on_exit(|reason, _| reason).build().run()?;
    println!("{}; exits to user space: {}", outcome.reason, outcome.stats().total());
    Ok(())
}
