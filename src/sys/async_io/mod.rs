//! File I/O on guest memory that may block forever: [`AsyncIo`].
//!
//! ```text
//!   submit ─▶ table of operations in flight ─┬─▶ io_uring ──────────────┐ entered by
//!                                            └─▶ system calls, one after│ an IoProcess
//!                                                the other              ┘
//!   completed ◀── table ◀── eventfd ◀──────────── results
//! ```

mod io_process;
mod uring;

use std::io;
use std::mem::{self, take};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::limited_wait::wait_for;
use super::vectored_io::{Buffer, Direction, IoVecs, MAX_BYTES};
use io_process::{Call, IoProcess, MAX_CALLS};
pub(super) use io_process::{close_all_but, syscall};
use uring::Uring;

/// The most operations in flight.
pub const MAX_IN_FLIGHT: u32 = MAX_CALLS;

/// One operation on a file. It may end early; what is left is for another operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Moves bytes between buffers and the file, from `offset` on, with `flags` as for preadv2(2).
    Transfer {
        /// Which way.
        direction: Direction,
        /// In bytes, inside the file.
        offset: u64,
        /// `RWF_` flags.
        flags: i32,
    },
    /// Writes `len` zeros.
    WriteZeros {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Changes the file's allocation of the range by fallocate(2).
    Allocate {
        /// `FALLOC_FL_` flags.
        mode: i32,
        /// In bytes.
        offset: u64,
        /// In bytes, at least one.
        len: u64,
    },
    /// Brings the file's data to its medium by fdatasync(2).
    Sync,
}

/// What an operation is done for. It comes back when the operation has ended.
pub trait Payload {
    /// The guest memory of a transfer.
    fn buffers(&self) -> impl Iterator<Item = Buffer>;
}

/// Executes operations on files asynchronously. It never blocks, and can be dropped while operations are in flight.
pub struct AsyncIo<T: Payload> {
    memory: GuestMemoryMmap,
    event: EventFd,
    backend: Option<Backend>,
    slots: Vec<Slot<T>>, // as many as were ever in flight
    free: Vec<u16>,
    draining: bool,
}

struct Backend {
    ring: Option<Uring>, // without one the process makes the calls
    process: IoProcess,
    files: Vec<RawFd>, // of the process
}

struct Slot<T> {
    payload: Option<T>, // while in flight
    buffers: IoVecs,    // the kernel may read it, and access the memory, while in flight
    operation: Operation,
    file: RawFd,
    retried: bool,
}

impl<T: Payload> AsyncIo<T> {
    /// Operations on `memory`. Nothing is started yet.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(memory: GuestMemoryMmap) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { memory, event, backend: None, slots: Vec::new(), free: Vec::new(), draining: false })
    }

    /// Becomes readable when an operation has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The number of operations in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The ID of the process.
    #[cfg(test)]
    pub(crate) fn process_id(&self) -> Option<i32> {
        self.backend.as_ref().map(|backend| backend.process.id())
    }

    /// Starts the process that executes the I/O, unless it was started before. It gets copies of `files`, two at most;
    /// they may be closed afterwards. It uses io_uring if the host has it and `use_uring` is set. It ends with the
    /// calling thread.
    ///
    /// # Errors
    ///
    /// The host has no memory or too many processes.
    pub fn start(&mut self, files: &[impl AsRawFd], use_uring: bool) -> io::Result<()> {
        if self.backend.is_some() {
            return Ok(());
        }
        let ring = use_uring.then(|| Uring::new(MAX_IN_FLIGHT, &self.event).ok()).flatten();
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let kept: Vec<RawFd> = files.iter().copied().chain(ring.as_ref().map(Uring::fd)).collect();
        self.backend = Some(Backend { process: IoProcess::start(&self.event, &kept)?, ring, files });
        Ok(())
    }

    /// Adds an operation on the file of that index in the list given to [`start`](AsyncIo::start). A transfer is of the
    /// first bytes of the payload's buffers. It begins after the next [`submit`](AsyncIo::submit).
    ///
    /// # Errors
    ///
    /// [`MAX_IN_FLIGHT`] operations are in flight, nothing was started, or there is no such file.
    #[expect(clippy::cast_possible_truncation, reason = "slots are at most MAX_CALLS, and usize has 64 bits")]
    pub fn add(&mut self, file: usize, operation: Operation, payload: T) -> Result<(), (T, io::Error)> {
        let Some(&file) = self.backend.as_ref().and_then(|backend| backend.files.get(file)) else {
            return Err((payload, io::ErrorKind::NotFound.into()));
        };
        let tag = match self.free.pop() {
            Some(tag) => tag,
            None if self.slots.len() as u32 >= MAX_CALLS => return Err((payload, io::ErrorKind::ResourceBusy.into())),
            None => {
                let buffers = IoVecs::default();
                self.slots.push(Slot { payload: None, buffers, operation, file, retried: false });
                self.slots.len() as u16 - 1
            }
        };
        let slot = &mut self.slots[usize::from(tag)];
        (slot.operation, slot.file, slot.retried) = (operation, file, false);
        match operation {
            Operation::Transfer { .. } => slot.buffers.fill(&self.memory, payload.buffers()),
            Operation::WriteZeros { len, .. } => slot.buffers.fill_zeros(len.min(MAX_BYTES as u64) as usize),
            Operation::Allocate { .. } | Operation::Sync => {}
        }
        if let Err(error) = self.push(tag) {
            self.free.push(tag);
            return Err((payload, error));
        }
        self.slots[usize::from(tag)].payload = Some(payload);
        Ok(())
    }

    fn push(&mut self, tag: u16) -> io::Result<()> {
        let Some(Backend { ring, process, .. }) = &mut self.backend else { return Err(io::ErrorKind::NotFound.into()) };
        let slot = &self.slots[usize::from(tag)];
        match ring {
            // SAFETY: the slot's buffers do not change while it is in flight. They are guest RAM, to which no Rust
            // reference exists, or constant zeros. `Drop` never frees them if the operation has not ended.
            Some(ring) => unsafe { ring.push(&slot.entry().user_data(tag.into())) },
            // SAFETY: as above.
            None => unsafe { process.push(slot.call(tag)) },
        }
    }

    /// Begins the operations that were added.
    pub fn submit(&mut self) {
        match &mut self.backend {
            Some(Backend { ring: Some(ring), process, .. }) => ring.submit(process),
            Some(Backend { process, .. }) => process.wake(),
            None => {}
        }
    }

    /// Takes an operation that has ended: its payload, and the number of bytes moved.
    #[expect(clippy::cast_possible_truncation, reason = "tags have 16 bits, and error numbers 12")]
    pub fn completed(&mut self) -> Option<(T, io::Result<usize>)> {
        loop {
            let Backend { ring, process, .. } = self.backend.as_mut()?;
            let (tag, result) = match ring {
                Some(ring) => ring.completed().map(|(tag, result)| (tag as u16, result.into()))?,
                None => process.reap()?,
            };
            let slot = &mut self.slots[usize::from(tag)]; // the tag is one of `add`'s
            // A kernel that is short of something may succeed when it can wait.
            let again = matches!(-result as i32, libc::EAGAIN | libc::EINTR) && !mem::replace(&mut slot.retried, true);
            if again && self.push(tag).is_ok() {
                self.submit();
                continue;
            }
            let payload = self.slots[usize::from(tag)].payload.take()?;
            self.free.push(tag);
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result as i32));
            return Some((payload, result));
        }
    }

    /// Sets whether operations that have not begun fail. This is a hint: io_uring has begun all of them.
    pub fn set_cancelled(&self, cancelled: bool) {
        if let Some(Backend { ring: None, process, .. }) = &self.backend {
            process.set_cancelled(cancelled);
        }
    }

    /// Waits until all operations have ended, at most until `deadline`, and requests the process to exit. Returns the
    /// number of operations that have not ended: they are abandoned, together with all that they may still access.
    pub fn drain(&mut self, deadline: Instant) -> usize {
        self.set_cancelled(true);
        self.draining = true;
        loop {
            while self.completed().is_some() {}
            if self.in_flight() == 0 || Instant::now() >= deadline {
                break;
            }
            self.submit();
            wait_for(&self.event, libc::POLLIN, deadline);
            let _ = self.event.read();
        }
        if let Some(Backend { process, .. }) = &self.backend {
            process.exit();
        }
        self.in_flight()
    }

    /// Waits until the process has ended and closed its files, at most until `deadline`. To be called after
    /// [`drain`](AsyncIo::drain). A process with abandoned operations is not waited for.
    pub fn wait(&mut self, deadline: Instant) {
        if let (0, Some(Backend { process, .. })) = (self.in_flight(), &mut self.backend) {
            process.wait(deadline);
        }
    }
}

impl<T: Payload> Drop for AsyncIo<T> {
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_millis(100);
        if self.backend.is_some() && !self.draining {
            self.drain(Instant::now() + PATIENCE);
        }
        if self.in_flight() > 0 {
            mem::forget((self.backend.take(), take(&mut self.slots), self.memory.clone()));
        }
    }
}

impl<T> Slot<T> {
    /// The operation as a request to io_uring.
    fn entry(&self) -> squeue::Entry {
        let (file, (list, count)) = (Fd(self.file), self.buffers.as_raw());
        let entry = match self.operation {
            Operation::Transfer { direction: Direction::Read, offset, flags } => {
                opcode::Readv::new(file, list, count).offset(offset).rw_flags(flags).build()
            }
            Operation::Transfer { direction: Direction::Write, offset, flags } => {
                opcode::Writev::new(file, list, count).offset(offset).rw_flags(flags).build()
            }
            Operation::WriteZeros { offset, .. } => opcode::Writev::new(file, list, count).offset(offset).build(),
            Operation::Allocate { mode, offset, len } => {
                opcode::Fallocate::new(file, len).offset(offset).mode(mode).build()
            }
            Operation::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        };
        if self.retried { entry.flags(squeue::Flags::ASYNC) } else { entry }
    }

    /// The operation as a system call.
    #[expect(clippy::cast_sign_loss, reason = "descriptors, flags and modes are not negative")]
    fn call(&self, tag: u16) -> Call {
        let (list, count) = self.buffers.as_raw();
        let (file, list, count) = (self.file as u64, list as u64, u64::from(count));
        let (number, args) = match self.operation {
            // The offset is one argument where those have 64 bits; the next is its upper half elsewhere.
            Operation::Transfer { direction, offset, flags } => {
                let number = if direction == Direction::Read { libc::SYS_preadv2 } else { libc::SYS_pwritev2 };
                (number, [file, list, count, offset, 0, flags as u64])
            }
            Operation::WriteZeros { offset, .. } => (libc::SYS_pwritev2, [file, list, count, offset, 0, 0]),
            Operation::Allocate { mode, offset, len } => (libc::SYS_fallocate, [file, mode as u64, offset, len, 0, 0]),
            Operation::Sync => (libc::SYS_fdatasync, [file, 0, 0, 0, 0, 0]),
        };
        Call { number, args, tag, quiet: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::os::fd::AsFd;
    use std::path::PathBuf;
    use vm_memory::{Bytes, GuestAddress};

    const OTHER: usize = 0x8000;

    impl Payload for Vec<(u64, usize)> {
        fn buffers(&self) -> impl Iterator<Item = Buffer> {
            self.iter().map(|&(address, len)| Buffer { address: GuestAddress(address), len })
        }
    }

    struct Temporary(PathBuf);

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn file(name: &str, len: usize) -> (File, Temporary) {
        let path = std::env::temp_dir().join(format!("kickvm-async-{}-{name}", std::process::id()));
        fs::write(&path, vec![0x11; len]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        (file, Temporary(path))
    }

    fn end(io: &mut AsyncIo<Vec<(u64, usize)>>) -> io::Result<usize> {
        io.submit();
        loop {
            if let Some((_, result)) = io.completed() {
                return result;
            }
            wait_for(io.event(), libc::POLLIN, Instant::now() + Duration::from_secs(30));
        }
    }

    #[test]
    fn each_operation_changes_the_file_as_its_system_call_does() {
        for use_uring in [true, false] {
            let (file, path) = file(if use_uring { "uring" } else { "calls" }, 1 << 16);
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
            memory.write_slice(&[0x22; 0x1000], GuestAddress(0x1000)).unwrap();
            let mut io = AsyncIo::new(memory.clone()).unwrap();
            let transfer = |direction, offset| Operation::Transfer { direction, offset, flags: 0 };
            assert!(io.add(0, Operation::Sync, vec![]).is_err(), "nothing was started");
            io.start(&[file.as_fd()], use_uring).unwrap();
            drop(file);
            assert!(io.add(1, Operation::Sync, vec![]).is_err(), "no such file");

            io.add(0, transfer(Direction::Write, 0x2000), vec![(0x1000, 100), (0x1800, 400)]).unwrap();
            assert_eq!((io.in_flight(), end(&mut io).unwrap(), io.in_flight()), (1, 500, 0));
            io.add(0, Operation::Sync, vec![]).unwrap();
            assert_eq!(end(&mut io).unwrap(), 0);
            io.add(0, Operation::WriteZeros { offset: 0x3000, len: 5000 }, vec![]).unwrap();
            assert_eq!(end(&mut io).unwrap(), 5000);
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            io.add(0, Operation::Allocate { mode, offset: 0x8000, len: 0x1000 }, vec![]).unwrap();
            assert_eq!(end(&mut io).unwrap(), 0);
            let mut expected = vec![0x11; 1 << 16];
            expected[0x2000..][..500].fill(0x22);
            expected[0x3000..][..5000].fill(0);
            expected[0x8000..][..0x1000].fill(0);
            assert!(fs::read(&path.0).unwrap() == expected);

            io.add(0, transfer(Direction::Read, 0x21ff), vec![(OTHER as u64, 3), (OTHER as u64 + 8, 2)]).unwrap();
            assert_eq!(end(&mut io).unwrap(), 5);
            let mut read = [0; 10];
            memory.read_slice(&mut read, GuestAddress(OTHER as u64)).unwrap();
            assert_eq!(read, [0x11, 0x11, 0x11, 0, 0, 0, 0, 0, 0x11, 0x11]);
            io.add(0, transfer(Direction::Read, 1 << 16), vec![(0, 512)]).unwrap();
            assert_eq!(end(&mut io).unwrap(), 0, "behind the end");
            io.add(0, Operation::Allocate { mode: -1, offset: 0, len: 1 }, vec![]).unwrap();
            assert_eq!(end(&mut io).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
            assert_eq!(io.drain(Instant::now()), 0);
        }
    }

    #[test]
    fn io_uring_is_used_where_the_host_has_it() {
        let mut io = AsyncIo::<Vec<(u64, usize)>>::new(GuestMemoryMmap::default()).unwrap();
        io.start(&[] as &[File], true).unwrap();
        let available = io_uring::IoUring::new(8).is_ok();
        assert_eq!(io.backend.as_ref().is_some_and(|backend| backend.ring.is_some()), available);
    }

    #[test]
    fn no_more_operations_are_in_flight_than_the_table_has_entries() {
        for use_uring in [true, false] {
            let (file, _path) = file(if use_uring { "full-uring" } else { "full-calls" }, 512);
            let mut io = AsyncIo::new(GuestMemoryMmap::default()).unwrap();
            io.start(&[file.as_fd()], use_uring).unwrap();
            for _ in 0..3 {
                for _ in 0..MAX_IN_FLIGHT {
                    io.add(0, Operation::Sync, vec![]).unwrap();
                }
                assert!(io.add(0, Operation::Sync, vec![]).is_err());
                for _ in 0..MAX_IN_FLIGHT {
                    end(&mut io).unwrap();
                }
                assert_eq!(io.in_flight(), 0);
            }
        }
    }
}
