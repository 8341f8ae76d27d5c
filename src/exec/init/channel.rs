//! Init's end of the channel: locked memory whose guest-physical addresses it tells kickvm, the bell, and the wake line.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use nix::sys::termios::{ControlFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::ports::Ports;
use crate::exec::channel::{Broken, Consumer, Event, Lane, PAGE, Pages, Producer, TOTAL_PAGES, publish, set_sleeping};

/// The serial port by which kickvm wakes init. What comes over it means nothing.
const WAKE_LINE: &str = "/dev/ttyS1";
/// Milliseconds after which kickvm does not listen any more.
const PATIENCE: u32 = 10_000;

/// The shared pages, which lie together here.
#[derive(Debug)]
pub struct Memory(MmapRegion);

impl Pages for Memory {
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        self.0.get_slice(page * PAGE + offset, len).ok()
    }
}

/// Init's end.
#[derive(Debug)]
pub struct Link {
    /// Where the rings are.
    pub memory: Memory,
    /// Readable after kickvm has put something into a ring.
    pub wake: File,
    /// What kickvm tells.
    pub orders: Consumer,
    events: Producer,
    ports: Ports,
}

impl Link {
    /// Makes the channel and tells kickvm where it is.
    pub fn connect() -> Result<Self, String> {
        let ports = Ports::open().map_err(|error| format!("cannot use ports (CONFIG_X86_IOPL_IOPERM): {error}"))?;
        if !ports.is_there() {
            return Err("this machine is not one of kickvm exec's".to_owned());
        }
        let wake = open_wake_line().map_err(|error| format!("cannot open its wake line {WAKE_LINE}: {error}"))?;
        // Memory that stays where it is: shared, so that a fork does not make copies; locked, and what is locked is not to be
        // moved for the sake of larger pages either. Kernels that cannot do that do not have the file.
        let _ = fs::write("/proc/sys/vm/compact_unevictable_allowed", "0");
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
        let region = MmapRegion::build(None, TOTAL_PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags);
        let memory = Memory(region.map_err(|error| format!("cannot map memory: {error}"))?);
        let frames = frames(&memory)?;
        publish(&memory, &frames).map_err(|error| error.to_string())?;
        let link =
            Self { memory, wake, orders: Consumer::new(Lane::Orders), events: Producer::new(Lane::Events), ports };
        let header = u32::try_from(frames[0]).map_err(|_| "its memory is out of kickvm's reach".to_owned())?;
        link.ports.set_frame(header);
        Ok(link)
    }

    /// Tells kickvm that something is new in a ring.
    pub fn ring(&self) {
        self.ports.ring();
    }

    /// Tells kickvm of `event`. Events are few and its loop takes them at once, so that waiting for room is rare.
    pub fn send(&mut self, event: &Event) {
        let bytes = event.encode();
        for _ in 0..PATIENCE {
            if self.events.room(&self.memory).is_ok_and(|room| room >= bytes.len()) {
                let _ = self.events.push(&self.memory, &bytes); // there is room
                return self.ring();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Says whether init is about to sleep.
    pub fn set_sleeping(&self, asleep: bool) -> Result<(), Broken> {
        set_sleeping(&self.memory, asleep)
    }

    /// Takes what came over the wake line.
    pub fn wake_up(&mut self) {
        let mut block = [0; 256];
        while matches!(self.wake.read(&mut block), Ok(len) if len == block.len()) {}
    }
}

/// A terminal line that hands over each byte as it comes, and waits for no carrier.
fn open_wake_line() -> nix::Result<File> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let line = OpenOptions::new().read(true).write(true).custom_flags(flags).open(WAKE_LINE);
    let line = line.map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let mut settings = tcgetattr(&line)?;
    cfmakeraw(&mut settings);
    settings.control_flags.insert(ControlFlags::CLOCAL | ControlFlags::CREAD);
    tcsetattr(&line, SetArg::TCSANOW, &settings)?;
    Ok(line)
}

/// The page frame number of each shared page (Documentation/admin-guide/mm/pagemap.rst).
fn frames(memory: &Memory) -> Result<Vec<u64>, String> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let map = File::open("/proc/self/pagemap");
    let map = map.map_err(|error| format!("cannot open /proc/self/pagemap (CONFIG_PROC_PAGE_MONITOR): {error}"))?;
    let first = memory.0.as_ptr() as usize / PAGE;
    let frame = |n: usize| {
        let page = memory.slice(n, 0, PAGE).ok_or("a page is missing")?;
        page.copy_from(&[0u8; PAGE]); // so that it is there
        let mut entry = [0; 8];
        let read = map.read_exact_at(&mut entry, 8 * (first + n) as u64);
        read.map_err(|error| format!("cannot read /proc/self/pagemap: {error}"))?;
        match u64::from_ne_bytes(entry) {
            entry if entry & PRESENT != 0 && entry & FRAME != 0 => Ok(entry & FRAME),
            _ => Err("the kernel does not say where its memory is".to_owned()),
        }
    };
    (0..TOTAL_PAGES).map(frame).collect()
}
