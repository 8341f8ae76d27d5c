//! A machine that uses all its devices at the same time.

use super::{Host, connect_to_host, echo, expect_echo, in_guest, wait_for_host};
use crate::common::{TempDir, noise};
use crate::support::guest::Guest;
use crate::support::network::{own_network, tap};
use crate::this_test;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

/// The duration of the load.
const MINUTE: Duration = Duration::from_secs(60);
const ECHO_PORT: u32 = 7000;
const SINK: (&str, u16) = ("10.9.0.1", 5001);

/// Writes both disks, reads them back, and sends files over the network, for a minute. Each part prints its number of
/// rounds.
const SCRIPT: &str = "
ip addr add 10.9.0.2/24 dev eth0
ip link set eth0 up
end=$(($(date +%s) + 60))
busy() { [ $(date +%s) -lt $end ]; }
disk() {
    done=0
    while busy; do
        dd if=/dev/urandom of=/tmp/$1 bs=64k count=32 2>/dev/null
        dd if=/tmp/$1 of=/dev/$1 bs=64k seek=$((done % 4 * 32)) conv=notrunc,fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/$1 bs=64k skip=$((done % 4 * 32)) count=32 2>/dev/null | cmp - /tmp/$1 || echo $1 differs
        done=$((done + 1))
    done
    printf '\n%s %s\n' $1 $done # the test's own line may not have ended
}
network() {
    done=0
    dd if=/dev/urandom of=/tmp/net bs=64k count=32 2>/dev/null
    while busy; do
        nc 10.9.0.1 5001 </tmp/net && done=$((done + 1))
        ping -c 1 10.9.0.1 >/dev/null || echo no ping
    done
    printf '\n%s %s\n' eth0 $done
}
disk vda &
disk vdb &
network &
";

/// A network namespace with the tap interface kick0, on which the host sends nothing by itself.
pub fn quiet_network() {
    own_network();
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root can do without IPv6");
    tap(1500);
}

#[track_caller]
fn is_busy_for_a_minute(guest: Guest, test: &str) {
    quiet_network();
    let sink = TcpListener::bind(SINK).expect("the tap has its address");
    thread::spawn(move || {
        sink.incoming().flatten().try_for_each(|mut stream| io::copy(&mut stream, &mut io::sink()).map(drop))
    });

    let dir = TempDir::new();
    let mut guest = guest.cpus(4).options(&["--memory", "512M", "--net", "tap=kick0", "--balloon"]);
    for disk in ["first", "second"] {
        let path = dir.file(disk, &[]);
        File::options().write(true).open(&path).and_then(|file| file.set_len(16 << 20)).expect("there is room");
        guest = guest.options(&["--disk", path.to_str().expect("a path of ASCII")]);
    }
    let mut host = Host::start_beside(guest, test, SCRIPT);
    host.running.deadline += 2 * MINUTE;
    let echoes = host.listen(ECHO_PORT);
    thread::spawn(move || echoes.incoming().flatten().for_each(|stream| drop(thread::spawn(|| echo(stream)))));
    let ended = host.finish();
    for line in ["vda", "vdb", "eth0", "vsock"] {
        let count = ended.stdout.lines().find_map(|it| it.strip_prefix(line)?.trim().parse::<u32>().ok());
        assert!(count.is_some_and(|count| count > 0), "{line}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("differs") && !ended.stdout.contains("no ping"), "{}", ended.stdout);
}

/// The guest's part: four streams at the same time.
fn is_busy_in_the_guest() {
    let bytes = noise(256 << 10);
    let end = Instant::now() + MINUTE;
    let echoes = || {
        let mut count = 0;
        while Instant::now() < end {
            expect_echo(connect_to_host(ECHO_PORT).expect("the host listens"), &bytes);
            count += 1;
        }
        count
    };
    let count: u32 = thread::scope(|scope| {
        let all = [(); 4].map(|()| scope.spawn(echoes));
        all.into_iter().map(|thread| thread.join().expect("what came back is right")).sum()
    });
    println!("\nvsock {count}");
    wait_for_host();
}

#[test]
fn a_stock_kernel_with_four_cpus_is_busy_for_a_minute() {
    if in_guest() {
        return is_busy_in_the_guest();
    }
    is_busy_for_a_minute(linux!(Stock), this_test!());
}

#[test]
fn our_kernel_with_four_cpus_is_busy_for_a_minute() {
    if in_guest() {
        return is_busy_in_the_guest();
    }
    is_busy_for_a_minute(linux!(BzImage), this_test!());
}
