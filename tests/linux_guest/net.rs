//! Network between real Linux guests and the host: a tap interface in the test's own network namespace.

use crate::common::noise;
use crate::common::process::{contained, end, kickvm};
use crate::support::guest::{Ended, Guest, Running};
use crate::support::network::{ip, own_network, tap};
use crate::support::{devices, waiting};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

const SIZE: usize = 16 << 20;

/// Sets the guest's address, and defines a function that prints the number of received or sent frames.
const SET_UP: &str = "
ip addr add 10.9.0.2/24 dev eth0
ip link set eth0 up
count() { echo $1 $(cat /sys/class/net/eth0/statistics/$2_packets); }
";

/// Receives 16 MiB and sends them back.
const TRANSFER: &str = "
ping -c 3 -s $size 10.9.0.1 | grep transmitted
count before rx
nc 10.9.0.1 5001 </dev/null >/tmp/file
count after rx
count before tx
nc 10.9.0.1 5002 </tmp/file
count after tx
";

fn transfers(guest: Guest, mtu: u32) -> Vec<String> {
    own_network();
    tap(mtu);
    let listeners = [5001, 5002].map(|port| TcpListener::bind(("10.9.0.1", port)).unwrap());
    let script = format!("{SET_UP}\ncat /sys/class/net/eth0/mtu\nsize={}\n{TRANSFER}", mtu - 28);
    let guest = devices::job(guest.options(&["--net", "tap=kick0"]), &script);
    let greeting = guest.greeting();
    let running = guest.start();
    let sent = noise(SIZE);
    let mut out = accept(&listeners[0]);
    out.write_all(&sent).unwrap();
    drop(out);
    let mut back = accept(&listeners[1]);
    let mut received = Vec::new();
    back.read_to_end(&mut received).unwrap();
    drop(back);
    assert_eq!(received.len(), SIZE);
    assert!(received == sent, "what came back differs");
    let ended = finish(running);
    ended.assert(0, &[]);
    ended.between(&greeting, "reboot: Power down")
}

fn accept(listener: &TcpListener) -> TcpStream {
    waiting::wait_for_guest(listener);
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(waiting::PATIENCE)).unwrap();
    stream.set_write_timeout(Some(waiting::PATIENCE)).unwrap();
    stream
}

fn finish(mut running: Running) -> Ended {
    running.child.stdin = None;
    running.finish()
}

/// Asserts that the guest's frames are longer than its MTU: neither side has cut the TCP segments.
#[track_caller]
fn keeps_segments_whole(guest: Guest, mtu: u32) {
    let lines = transfers(guest, mtu);
    let [guest_mtu, ping, counts @ ..] = &lines[..] else { panic!("too few lines: {lines:?}") };
    assert_eq!(*guest_mtu, mtu.to_string());
    assert_eq!(ping, "3 packets transmitted, 3 packets received, 0% packet loss");
    let count = |line: &String| line.split(' ').nth(1).and_then(|count| count.parse::<usize>().ok());
    let counts: Vec<_> =
        counts.iter().map(|line| count(line).unwrap_or_else(|| panic!("no count: {lines:?}"))).collect();
    let [rx, tx] = [counts[1] - counts[0], counts[3] - counts[2]];
    let _ = writeln!(std::io::stderr(), "figures: MTU {mtu}: 16 MiB came in {rx} frames and went in {tx}");
    let uncut = SIZE / mtu as usize;
    assert!(rx < uncut && tx < uncut, "{rx} frames came and {tx} went; without segmentation offload there are {uncut}");
}

#[test]
fn a_stock_kernel_pings_and_moves_16_mib_each_way_with_mtu_9000() {
    keeps_segments_whole(linux!(Stock), 9000);
}

#[test]
fn our_kernel_pings_and_moves_16_mib_each_way_with_mtu_9000() {
    keeps_segments_whole(linux!(BzImage), 9000);
}

#[test]
fn a_stock_kernel_pings_and_moves_16_mib_each_way_with_mtu_1500() {
    keeps_segments_whole(linux!(Stock), 1500);
}

#[test]
fn our_kernel_pings_and_moves_16_mib_each_way_with_mtu_1500() {
    keeps_segments_whole(linux!(BzImage), 1500);
}

/// Two interfaces in order, one of which kickvm makes itself; when a tap is deleted the guest sees the link go down,
/// and the other goes on.
#[track_caller]
fn continues_without_one_interface(guest: Guest) {
    own_network();
    tap(1500);
    let options = ["--net", "tap=gone0", "--net", "tap=kick0,mac=02:00:00:c0:ff:ee"];
    let script = "
cd /sys/class/net
ip link set eth0 up
case $(cat eth0/address) in ?[26ae]:*) echo local ;; esac
echo $(cat eth0/carrier) $(cat eth1/address)
until [ $(cat eth0/carrier) = 0 ]; do usleep 10000; done
ip addr add 10.9.0.2/24 dev eth1
ip link set eth1 up
ping -c 1 10.9.0.1 | grep transmitted
";
    let guest = devices::job(guest.options(&options), script);
    let greeting = guest.greeting();
    let running = guest.start();
    running.wait_for_line("1 02:00:00:c0:ff:ee");
    ip("link del gone0");
    let ended = finish(running);
    ended.assert(0, &["kickvm: tap interface 'gone0' was deleted; the guest sees the link go down"]);
    let ping = "1 packets transmitted, 1 packets received, 0% packet loss";
    assert_eq!(ended.between(&greeting, "reboot: Power down"), ["local", "1 02:00:00:c0:ff:ee", ping]);
}

#[test]
fn a_stock_kernel_continues_after_losing_one_of_two_interfaces() {
    continues_without_one_interface(linux!(Stock));
}

#[test]
fn our_kernel_continues_after_losing_one_of_two_interfaces() {
    continues_without_one_interface(linux!(BzImage));
}

#[test]
fn an_unusable_tap_is_an_error_with_a_remedy() {
    let _guest = linux!(BzImage); // not started: the test needs a machine on which it is root
    own_network();
    ip("tuntap add mode tap user 1 name other0");
    let refused = |name: &str, why: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups", env!("CARGO_BIN_EXE_kickvm"), "run", "--kernel", "none"]);
        command.arg("--net").arg(format!("tap={name}"));
        let line = format!("kickvm: cannot use tap interface '{name}': {why}");
        contained(&mut command);
        end(command).assert(125, "", &[&line]);
    };
    let add = "sudo ip tuntap add mode tap user $USER name";
    refused("none0", &format!("no such interface; create it with '{add} none0'"));
    refused("lo", &format!("it is not a tap interface with one queue; create one with '{add} NAME'"));
    let del = "sudo ip tuntap del mode tap name other0";
    refused("other0", &format!("it belongs to another user; replace it with '{del} && {add} other0'"));

    let twice = kickvm(&["run", "--kernel", "none", "--net", "tap=other0", "--net", "tap=other0"]);
    end(twice).assert(
        125,
        "",
        &["kickvm: cannot use tap interface 'other0': it is given twice; use one tap per network interface"],
    );
}
