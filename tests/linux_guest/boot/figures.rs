//! The cost of a boot, in counts that do not depend on the machine's speed.

use crate::support::guest::Guest;
use crate::support::transcript::lines;
use std::fs;
use std::io::Write;

/// The limit of exits to user space from start to power-off of our kernel, with `quiet`, on one CPU.
const MAX_EXITS: u64 = 300;

#[track_caller]
fn boots_cheaply(guest: Guest, memory: &str) {
    let guest = guest.options(&["--memory", memory, "-v"]).job("echo booted; read line");
    let mut running = guest.start();
    running.wait_for_line("booted");
    let faults = page_faults(running.child.id());
    running.write("\n");
    let ended = running.finish();
    ended.assert_code(0);
    let stderr = lines(&ended.stderr);
    let exits = stderr.iter().find_map(|line| line.strip_prefix("kickvm: ")?.split_once(" exits: "));
    let (exits, kinds) = exits.unwrap_or_else(|| panic!("no count of exits: {stderr:?}"));
    let _ = writeln!(std::io::stderr(), "figures: {memory}: {exits} exits ({kinds}); nested page faults: {faults}");
    assert!(exits.parse::<u64>().expect("it is a number") <= MAX_EXITS, "{exits} exits");
}

/// KVM's page-fault counters for the virtual machine of process `id`, if debugfs has them.
fn page_faults(id: u32) -> String {
    let machines = fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten();
    let machine = machines.map(|entry| entry.path()).find(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&format!("{id}-")))
    });
    let Some(machine) = machine else { return "unknown".to_owned() };
    ["pf_taken", "pf_fixed", "pf_emulate", "pf_fast", "mmio_exits"]
        .map(|name| format!("{name} {}", fs::read_to_string(machine.join(name)).unwrap_or_default().trim_end()))
        .join(", ")
}

#[test]
fn a_boot_with_128_mib_takes_few_exits() {
    boots_cheaply(linux!(BzImage), "128M");
}

#[test]
fn a_boot_with_256_mib_takes_few_exits() {
    boots_cheaply(linux!(BzImage), "256M");
}
