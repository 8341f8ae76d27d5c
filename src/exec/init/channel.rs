//! The guest side of the channel: locked memory for the rings, the exec port, and the serial port of the wake
//! interrupt.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use nix::sys::termios::{ControlFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::cannot;
use crate::exec::channel::{Message, MessageReader, PAGE, Pages, Producer, Stream, TOTAL_PAGES};
use crate::exec::port::{DOORBELL, EXEC_PORT_BASE, EXEC_PORT_COUNT, SIGNATURE};
use crate::sys::port_io::PortIo;

/// The serial port with which kickvm interrupts the guest. The bytes that it receives have no meaning.
const WAKE_TTY: &str = "/dev/ttyS1";
/// The longest time to wait for room for a message, in milliseconds.
const MAX_SEND_TIME: u32 = 10_000;

/// The shared pages, which are contiguous in this address space.
impl Pages for MmapRegion {
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        self.get_slice(page * PAGE + offset, len).ok()
    }
}

/// The guest side.
#[derive(Debug)]
pub struct GuestChannel {
    /// The memory of the rings.
    pub memory: MmapRegion,
    /// The serial port, which becomes readable with the wake interrupt.
    pub wake_tty: File,
    /// Messages from kickvm.
    pub controls: MessageReader,
    events: Producer,
    files: Producer,
    port: PortIo,
}

impl GuestChannel {
    /// Allocates the channel and publishes its address to kickvm.
    ///
    /// # Errors
    ///
    /// The guest has no exec port, or the kernel lacks a feature that the channel needs. The error is a message for the
    /// user.
    pub fn connect() -> Result<Self, String> {
        let port = PortIo::open(EXEC_PORT_BASE, EXEC_PORT_COUNT);
        let port = port.map_err(cannot("access I/O ports (CONFIG_X86_IOPL_IOPERM)"))?;
        if SIGNATURE.iter().zip(0..).any(|(byte, offset)| port.read(offset) != *byte) {
            return Err("no exec port found; this initramfs runs under 'kickvm exec' only".to_owned());
        }
        let wake_tty = open_wake_tty().map_err(cannot(format_args!("open the serial port {WAKE_TTY}")))?;
        // The pages must keep their physical addresses. They are shared, so that fork does not copy them, and locked.
        // Compaction must not move locked pages either; kernels without compaction do not have the file.
        let _ = fs::write("/proc/sys/vm/compact_unevictable_allowed", "0");
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
        let memory = MmapRegion::build(None, TOTAL_PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags);
        let memory = memory.map_err(|error| format!("cannot map shared memory: {error}"))?;
        let frames = frames(&memory)?;
        memory.publish(&frames).map_err(|error| error.to_string())?;
        let header = u32::try_from(frames[0]).map_err(|_| "the channel is above 16 TiB of guest memory".to_owned())?;
        header.to_le_bytes().iter().zip(0..).for_each(|(byte, offset)| port.write(offset, *byte));
        let (controls, events) = (MessageReader::new(Stream::Controls), Producer::new(Stream::Events));
        Ok(Self { memory, wake_tty, controls, events, files: Producer::new(Stream::Files), port })
    }

    /// Notifies kickvm of a change in a ring.
    pub fn ring_doorbell(&self) {
        self.port.write(DOORBELL, 0);
    }

    /// Sends `message`. Waits for room if necessary, which is rare: messages are few, and kickvm takes them out at
    /// once. A message for which there is no room is dropped after [`MAX_SEND_TIME`].
    pub fn send(&mut self, message: &Message) {
        self.put(Stream::Events, &message.encode());
        self.ring_doorbell();
    }

    /// Sends a part of a file. kickvm is notified when there is no room, or by the next message. Returns whether there
    /// was room.
    pub fn send_part(&mut self, part: &[u8]) -> bool {
        self.put(Stream::Files, part)
    }

    fn put(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        for _ in 0..MAX_SEND_TIME {
            let ring = if stream == Stream::Files { &mut self.files } else { &mut self.events };
            if ring.push_all(&self.memory, bytes) == Ok(true) {
                return true;
            }
            self.ring_doorbell();
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Reads what the serial port has received, so that it is no longer readable.
    pub fn acknowledge_wake(&mut self) {
        let mut block = [0; 256];
        while matches!(self.wake_tty.read(&mut block), Ok(len) if len == block.len()) {}
    }
}

/// Opens the serial port so that each byte makes it readable at once, without a carrier signal.
fn open_wake_tty() -> io::Result<File> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let tty = OpenOptions::new().read(true).write(true).custom_flags(flags).open(WAKE_TTY)?;
    let mut settings = tcgetattr(&tty)?;
    cfmakeraw(&mut settings);
    settings.control_flags.insert(ControlFlags::CLOCAL | ControlFlags::CREAD);
    tcsetattr(&tty, SetArg::TCSANOW, &settings)?;
    Ok(tty)
}

/// The page frame number of each shared page (Documentation/admin-guide/mm/pagemap.rst).
fn frames(memory: &MmapRegion) -> Result<Vec<u64>, String> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let pagemap =
        File::open("/proc/self/pagemap").map_err(cannot("open /proc/self/pagemap (CONFIG_PROC_PAGE_MONITOR)"))?;
    let first = memory.as_ptr() as usize / PAGE;
    let frame = |page: usize| {
        let slice = memory.slice(page, 0, PAGE).ok_or("the shared memory is incomplete")?;
        slice.copy_from(&[0u8; PAGE]); // a page that was never written to may have no frame yet
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, 8 * (first + page) as u64).map_err(cannot("read /proc/self/pagemap"))?;
        match u64::from_ne_bytes(entry) {
            entry if entry & PRESENT != 0 && entry & FRAME != 0 => Ok(entry & FRAME),
            _ => Err("/proc/self/pagemap has no page frame numbers".to_owned()),
        }
    };
    (0..TOTAL_PAGES).map(frame).collect()
}
