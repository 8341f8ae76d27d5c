//! Disks that stop answering, or are slow, while Linux removes or resets them.

use crate::common::TempDir;
use crate::common::fuse::Fuse;
use crate::support::devices::job;
use crate::support::guest::{Ended, Guest, Running};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a run may last after the kick: 2 s, on a machine that is ten times slower.
const LIMIT: Duration = Duration::from_secs(20);

/// Shell lines that read the disk in the background, and wait until the request is in flight.
const READ: &str = "
    dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null &
    until set -- $(cat /sys/block/vda/inflight) && [ $1 = 1 ]; do usleep 10000; done";

/// Shell lines that unbind the driver in the background, and wait until Linux has removed the disk. It then waits for
/// the requests in flight (`blk_mq_freeze_queue_wait` in `del_gendisk`), and resets the device only afterwards.
const UNBIND: &str = "
    echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind &
    unbinder=$!
    while [ -e /sys/block/vda ]; do usleep 10000; done
    echo removed";

/// A disk whose server can be slow or stop answering.
struct Disk {
    fuse: Fuse,
    report: PathBuf,
    began: Instant,
    _dir: TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = TempDir::new();
        let mounted = dir.path().join("mounted");
        fs::create_dir(&mounted).expect("it is new");
        let fuse = Fuse::mount(&mounted).expect("root can mount");
        Self { fuse, report: dir.path().join("report"), began: Instant::now(), _dir: dir }
    }

    /// Starts `guest` with this disk. It prints `ready`, and runs `script` when it has read a line.
    fn start(&self, guest: Guest, script: &str) -> Running {
        let options = [format!("--disk={}", self.fuse.file().display()), format!("--report={}", self.report.display())];
        let script = format!("echo ready\nread go\n{script}");
        job(guest.options(&options.each_ref().map(String::as_str)), &script).start()
    }

    /// What kickvm prints, and notes in the report, about this disk.
    fn note(&self) -> String {
        format!("disk '{}' did not answer: 1 request abandoned", self.fuse.file().display())
    }

    /// Asserts that the run ends in time with this code, and that the report names the disk and has the console log.
    #[track_caller]
    fn ends_in_time(&self, running: Running, code: i32) -> Ended {
        let ended = running.finish();
        let wall = self.began.elapsed();
        ended.assert_code(code);
        assert!(self.fuse.unanswered() > 0);
        let report = fs::read_to_string(&self.report).expect("there is a report");
        let report: Value = serde_json::from_str(&report).expect("it is JSON");
        let kicked = Duration::from_secs_f64(report["seconds"]["to_end"].as_f64().expect("the run has ended"));
        assert!(wall.saturating_sub(kicked) < LIMIT, "it was kicked after {kicked:?}, and ended after {wall:?}");
        assert_eq!((&report["exit_code"], &report["notes"]), (&code.into(), &vec![self.note()].into()));
        let console = report["console"].as_array().expect("it is a list");
        assert!(ended.stdout.lines().eq(console.iter().filter_map(Value::as_str)), "{report}\n{}", ended.stdout);
        ended
    }
}

#[test]
fn an_unbind_that_waits_for_a_silent_disk_ends_by_the_timeout() {
    // A boot takes unknown time here, but less than one of these.
    for seconds in [15, 45, 90] {
        let guest = linux!(BzImage).options(&["--timeout", &format!("{seconds}s")]);
        let disk = Disk::new();
        let mut running = disk.start(guest, &format!("{READ}{UNBIND}"));
        if !running.prints("ready") {
            continue;
        }
        disk.fuse.stop_answering();
        running.write("go\n");
        if !running.prints("removed") {
            continue;
        }
        let ended = disk.ends_in_time(running, 124);
        let lines: Vec<_> = ended.stderr.lines().collect();
        let expected = [format!("kickvm: the timeout of {seconds}s expired"), format!("kickvm: {}", disk.note())];
        assert_eq!(lines[..2], expected);
        return;
    }
    panic!("in 90 s the guest did not remove the disk");
}

#[test]
fn a_power_off_that_resets_a_silent_disk_is_0() {
    let guest = linux!(BzImage);
    let disk = Disk::new();
    // At power-off Linux 6.12 resets each virtio device and does not wait for requests (`virtio_dev_shutdown`).
    let trace = "echo 1 >/sys/module/kernel/parameters/initcall_debug; dmesg -n 7";
    let mut running = disk.start(guest, &format!("{READ}\n{trace}"));
    running.wait_for_line("ready");
    disk.fuse.stop_answering();
    running.write("go\n");
    let ended = disk.ends_in_time(running, 0);
    ended.assert(0, &[&format!("kickvm: {}", disk.note())]);
    ended.assert_line("virtio_blk virtio0: shutdown");
    ended.assert_line("reboot: Power down");
}

#[test]
fn an_unbind_waits_for_a_slow_disk() {
    const DELAY: Duration = Duration::from_secs(3);
    let guest = linux!(BzImage);
    let greeting = guest.greeting();
    let disk = Disk::new();
    // When this returns, the write is in flight, or it has ended already.
    let write = "
        yes kick | dd of=/dev/vda bs=4k count=1 iflag=fullblock oflag=direct 2>/dev/null &
        writer=$!
        until set -- $(cat /sys/block/vda/stat) && [ $(($5 + $9)) = 1 ]; do usleep 10000; done";
    let ends = "
        wait $unbinder && echo unbound
        wait $writer && echo written";
    let mut running = disk.start(guest, &format!("{write}{UNBIND}{ends}"));
    running.wait_for_line("ready");
    disk.fuse.slow_down(DELAY);
    let slow = Instant::now();
    running.write("go\n");
    let ended = running.finish();
    ended.assert(0, &[]);
    assert!(slow.elapsed() >= DELAY);
    assert_eq!(ended.between(&greeting, "reboot: Power down"), ["ready", "go", "removed", "unbound", "written"]);
    assert_eq!(disk.fuse.content()[..4096], "kick\n".repeat(820).as_bytes()[..4096]);
}
