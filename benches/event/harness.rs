//! Measuring in turns.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Something whose samples can be taken again and again: returns the time for `turns` turns.
pub type Sample<'a> = Box<dyn FnMut(u32) -> Duration + 'a>;

/// How many pairs of samples a ratio is the median of; `KICKVM_BENCH_PAIRS` changes it.
fn pairs() -> usize {
    std::env::var("KICKVM_BENCH_PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(101)
}

/// Each contender's time as a multiple of the baseline's, and the baseline's own time a turn.
pub fn compare(baseline: &mut Sample, contenders: &mut [(&str, Sample)]) -> (Duration, Vec<f64>) {
    let turns = calibrate(baseline);
    let mut quotients = vec![Vec::new(); contenders.len()];
    let mut own = Vec::new();
    for pair in 0..pairs() {
        for (quotients, (_, contender)) in quotients.iter_mut().zip(contenders.iter_mut()) {
            // Who goes first changes, so that neither always finds the caches the other left.
            let (theirs, ours);
            if pair % 2 == 0 {
                theirs = warm(baseline, turns);
                ours = warm(contender, turns);
            } else {
                ours = warm(contender, turns);
                theirs = warm(baseline, turns);
            }
            quotients.push(ours.as_secs_f64() / theirs.as_secs_f64());
            own.push(theirs.as_secs_f64() / f64::from(turns));
        }
    }
    (Duration::from_secs_f64(median(&mut own)), quotients.iter_mut().map(|quotients| median(quotients)).collect())
}

/// A sample that starts with what it needs in the caches.
fn warm(sample: &mut Sample, turns: u32) -> Duration {
    sample(1);
    sample(turns)
}

/// How many turns take half a millisecond: long against the clock, short against the machine's moods.
fn calibrate(sample: &mut Sample) -> u32 {
    let mut turns = 1;
    while sample(turns) < Duration::from_micros(400) {
        turns *= 2;
    }
    turns
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints one line: what was measured, the baseline's time, and the ratios.
pub fn print(what: &str, time: Duration, names: &[(&str, Sample)], ratios: &[f64]) {
    let ratios: Vec<_> = names.iter().zip(ratios).map(|((name, _), ratio)| format!("{name} {ratio:.3}")).collect();
    println!("{what:<28} {:>9.0} ns   {}", time.as_secs_f64() * 1e9, ratios.join("   "));
}

/// Times a loop.
pub fn timed(turns: u32, mut turn: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..turns {
        turn();
    }
    start.elapsed()
}

/// An eventfd. A bare one, so that nobody's wrapper counts.
pub struct Event(OwnedFd);

impl Event {
    pub fn new(flags: i32) -> Self {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) };
        assert!(fd >= 0, "no more descriptors");
        // SAFETY: the kernel has just made it.
        Event(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    #[inline]
    pub fn write(&self) {
        // SAFETY: the kernel reads eight bytes of a live value.
        unsafe { libc::write(self.as_raw_fd(), (&raw const ONE).cast(), 8) };
    }

    #[inline]
    pub fn read(&self) {
        let mut value = 0u64;
        // SAFETY: the kernel writes eight bytes to a live value.
        unsafe { libc::read(self.as_raw_fd(), (&raw mut value).cast(), 8) };
    }
}

static ONE: u64 = 1;

impl AsRawFd for Event {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl std::os::fd::AsFd for Event {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A bare epoll instance.
pub struct Bare {
    pub epoll: OwnedFd,
    pub ready: Vec<libc::epoll_event>,
}

impl Bare {
    pub fn new(capacity: usize) -> Self {
        // SAFETY: takes no pointer; the kernel has just made what it returns.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        Bare { epoll, ready: vec![libc::epoll_event { events: 0, u64: 0 }; capacity] }
    }

    #[inline]
    pub fn ctl(&self, operation: i32, fd: RawFd, events: u32, data: u64) {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: `event` is a live local.
        assert_eq!(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) }, 0);
    }

    #[inline]
    pub fn wait(&mut self) -> &[libc::epoll_event] {
        let room = self.ready.len() as i32;
        // SAFETY: the kernel writes at most `room` events, which the vector has.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), self.ready.as_mut_ptr(), room, -1) };
        &self.ready[..usize::try_from(count).unwrap_or(0)]
    }
}

/// Ten thousand descriptors need more than the usual limit.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a live local.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

/// Keeps this thread on one CPU: the first it may use.
pub fn pin() {
    // SAFETY: the sets are live locals of the size given; 0 is this thread.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&allowed), &mut allowed);
        let first = (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &allowed)).unwrap_or(0);
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(first, &mut one);
        libc::sched_setaffinity(0, size_of_val(&one), &one);
    }
}
