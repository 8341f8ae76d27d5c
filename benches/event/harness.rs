//! Measures contenders and a baseline in alternating samples.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Takes one sample: returns the time for a number of runs.
pub type Sample<'a> = Box<dyn FnMut(u32) -> Duration + 'a>;

/// The number of sample pairs for each ratio. `KICKVM_BENCH_PAIRS` sets it.
fn pairs() -> usize {
    std::env::var("KICKVM_BENCH_PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(101)
}

/// Returns the baseline's time for one run, and each contender's time as a multiple of the baseline's.
pub fn compare(baseline: &mut Sample, contenders: &mut [(&str, Sample)]) -> (Duration, Vec<f64>) {
    let runs = calibrate(baseline);
    let mut quotients = vec![Vec::new(); contenders.len()];
    let mut own = Vec::new();
    for pair in 0..pairs() {
        for (quotients, (_, contender)) in quotients.iter_mut().zip(contenders.iter_mut()) {
            // The order alternates, so that neither always starts with the caches that the other left.
            let (theirs, ours);
            if pair % 2 == 0 {
                theirs = warm(baseline, runs);
                ours = warm(contender, runs);
            } else {
                ours = warm(contender, runs);
                theirs = warm(baseline, runs);
            }
            quotients.push(ours.as_secs_f64() / theirs.as_secs_f64());
            own.push(theirs.as_secs_f64() / f64::from(runs));
        }
    }
    (Duration::from_secs_f64(median(&mut own)), quotients.iter_mut().map(|quotients| median(quotients)).collect())
}

/// Takes a sample after one run that fills the caches.
fn warm(sample: &mut Sample, runs: u32) -> Duration {
    sample(1);
    sample(runs)
}

/// Returns how many runs take about half a millisecond: long compared with the clock's resolution, short compared with
/// changes of the machine's load.
fn calibrate(sample: &mut Sample) -> u32 {
    let mut runs = 1;
    while sample(runs) < Duration::from_micros(400) {
        runs *= 2;
    }
    runs
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints one line: the name of the measurement, the baseline's time and the ratios.
pub fn print(what: &str, time: Duration, names: &[(&str, Sample)], ratios: &[f64]) {
    let ratios: Vec<_> = names.iter().zip(ratios).map(|((name, _), ratio)| format!("{name} {ratio:.3}")).collect();
    println!("{what:<28} {:>9.0} ns   {}", time.as_secs_f64() * 1e9, ratios.join("   "));
}

/// Times a loop.
pub fn timed(runs: u32, mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..runs {
        run();
    }
    start.elapsed()
}

/// An eventfd without the overhead of a wrapper.
pub struct Event(OwnedFd);

impl Event {
    pub fn new(flags: i32) -> Self {
        // SAFETY: the call takes no pointer.
        let fd = unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) };
        assert!(fd >= 0, "cannot create an eventfd");
        // SAFETY: the descriptor is new, so that nothing else owns it.
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
        // SAFETY: the call takes no pointer and returns a new descriptor.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        Bare { epoll, ready: vec![libc::epoll_event { events: 0, u64: 0 }; capacity] }
    }

    #[inline]
    pub fn ctl(&self, operation: i32, fd: RawFd, events: u32, data: u64) {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: `event` is a live local that the kernel only reads.
        assert_eq!(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) }, 0);
    }

    #[inline]
    pub fn wait(&mut self) -> &[libc::epoll_event] {
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the vector is short")]
        let len = self.ready.len() as i32;
        // SAFETY: the kernel writes at most `len` events, and the vector has that many.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), self.ready.as_mut_ptr(), len, -1) };
        &self.ready[..usize::try_from(count).unwrap_or(0)]
    }
}

/// Raises the limit of open files, because ten thousand descriptors exceed the default.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live local.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

/// Pins this thread to the first CPU that it may use.
pub fn pin() {
    // SAFETY: the sets are live locals of the given size. 0 stands for this thread.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&allowed), &mut allowed);
        let first = (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &allowed)).unwrap_or(0);
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(first, &mut one);
        libc::sched_setaffinity(0, size_of_val(&one), &one);
    }
}
