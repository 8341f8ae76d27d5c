//! The guest sees the machine that its user configured (CPUs, memory, command line, time), by each boot protocol.

use crate::support::guest::Guest;
use crate::support::transcript::lines;
use std::time::{SystemTime, UNIX_EPOCH};

const LOOK: &str = r#"
echo "$(grep -c '^processor' /proc/cpuinfo) processors"
sed -n 's/^cpu cores.*: \(.*\)/\1 cores/p' /proc/cpuinfo | sort -u
for cpu in /sys/devices/system/cpu/cpu[0-9]*/topology; do
    echo "core $(cat $cpu/core_id) of socket $(cat $cpu/physical_package_id), threads $(cat $cpu/thread_siblings_list)"
done
grep ': System RAM' /proc/iomem
echo "$(dmesg | grep -cE 'ACPI.*(Error|Warning)|Firmware (Bug|Warn)') complaints about tables"
cat /proc/cmdline
date +%s
sed -n 's/^MemTotal: *\(.*\) kB/\1/p' /proc/meminfo
"#;

/// The machine that a guest should see.
struct Machine<'a> {
    cpus: u32,
    memory: &'a str,
    /// The RAM ranges in `/proc/iomem`.
    ram: &'a [&'a str],
    /// The range of `MemTotal`, in MiB: the memory without the kernel's own.
    usable: std::ops::Range<u64>,
    protocol: &'a str,
}

impl Machine<'_> {
    #[track_caller]
    fn is_seen_by(&self, guest: Guest) {
        let guest = guest.cpus(self.cpus).options(&["--memory", self.memory, "-v"]).job(LOOK);
        let greeting = guest.greeting();
        let ended = guest.run();
        ended.assert_code(0);

        let output = ended.between(&greeting, "reboot: Power down");
        let (seen, [date, total]) = output.split_at(output.len() - 2) else { panic!("too few lines: {output:?}") };
        let cpus = self.cpus;
        let mut expected = vec![format!("{cpus} processors"), format!("{cpus} cores")];
        expected.extend((0..cpus).map(|core| format!("core {core} of socket 0, threads {core}")));
        expected.extend(self.ram.iter().map(|range| format!("{range} : System RAM")));
        expected.push("0 complaints about tables".to_owned());
        expected.push("console=ttyS0 panic=-1 quiet".to_owned());
        assert_eq!(seen, expected);

        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("now is after 1970").as_secs();
        let date: u64 = date.parse().expect("date prints seconds");
        assert!(date.abs_diff(now) < 60, "in the guest it is {date}, here it is {now}");
        let total = total.parse::<u64>().expect("MemTotal is a number") >> 10;
        assert!(self.usable.contains(&total), "{total} MiB of {} are usable, not {:?}", self.memory, self.usable);

        let stderr = lines(&ended.stderr);
        let protocol = format!("kickvm: boot protocol: {}, entry at 0x", self.protocol);
        assert!(stderr[0].starts_with(&protocol), "{stderr:?}");
        assert_eq!(stderr[1], "kickvm: command line: console=ttyS0 panic=-1 quiet");
        assert_eq!(stderr[3..], ["kickvm: the guest powered off"]);
    }
}

const LOW: &str = "00001000-0009ffff";

#[test]
fn a_stock_kernel_has_one_cpu_and_128_mib() {
    let machine = Machine {
        cpus: 1,
        memory: "128M",
        ram: &[LOW, "00100000-07ffffff"],
        usable: 64..128,
        protocol: "bzImage, 64-bit entry",
    };
    machine.is_seen_by(linux!(Stock));
}

#[test]
fn a_stock_kernel_has_4_cpus_and_5_gib() {
    let machine = Machine {
        cpus: 4,
        memory: "5G",
        ram: &[LOW, "00100000-bfffffff", "100000000-17fffffff"],
        usable: 4700..5120,
        protocol: "bzImage, 64-bit entry",
    };
    machine.is_seen_by(linux!(Stock));
}

#[test]
fn our_kernel_has_4_cpus_and_5_gib_through_its_pvh_entry() {
    let machine = Machine {
        cpus: 4,
        memory: "5G",
        ram: &[LOW, "00100000-bfffffff", "100000000-17fffffff"],
        usable: 4700..5120,
        protocol: "ELF, PVH entry",
    };
    machine.is_seen_by(linux!(Pvh));
}

#[test]
fn our_kernel_has_3_gib_through_the_64_bit_entry_of_its_elf_image() {
    let machine = Machine {
        cpus: 2,
        memory: "3G",
        ram: &[LOW, "00100000-bfffffff"],
        usable: 2800..3072,
        protocol: "ELF, 64-bit entry",
    };
    machine.is_seen_by(linux!(Elf));
}

#[test]
fn our_kernel_has_3_gib_and_a_page_through_its_bzimage() {
    let machine = Machine {
        cpus: 1,
        memory: "3145732K",
        ram: &[LOW, "00100000-bfffffff", "100000000-100000fff"],
        usable: 2800..3073,
        protocol: "bzImage, 64-bit entry",
    };
    machine.is_seen_by(linux!(BzImage));
}

/// kickvm interprets no character of the command line, and loses none.
#[track_caller]
fn reads_its_command_line(guest: Guest) {
    let cmdline = r#"console=ttyS0 panic=-1 quiet a=b,c,,d "e f"=g 'h' i==j %s \n ${k} `l` <&> é -- --kernel=m"#;
    assert_eq!(guest.cmdline(cmdline).job("cat /proc/cmdline").answers(), [cmdline]);
}

#[test]
fn a_stock_kernel_reads_its_command_line_back() {
    reads_its_command_line(linux!(Stock));
}

#[test]
fn our_kernel_reads_its_command_line_back_through_its_pvh_entry() {
    reads_its_command_line(linux!(Pvh));
}
