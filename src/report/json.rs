//! The report as JSON.

use std::time::{Instant, UNIX_EPOCH};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

use super::Report;
use crate::vcpu::ExitStats;

/// The version of the format. It changes when a field goes away or changes its meaning, and not when one is added.
pub const VERSION: u32 = 1;

/// The report, as text.
pub fn json(report: &Report) -> String {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
    let cpu = |time: fn(&Usage) -> nix::sys::time::TimeVal| {
        usage.as_ref().map(|usage| time(usage).num_microseconds() as f64 / 1e6)
    };
    let after = |when: Option<Instant>| when.map(|when| when.saturating_duration_since(report.began).as_secs_f64());
    let mut exits = ExitStats::default();
    report.vcpus.iter().for_each(|vcpu| exits.add(&vcpu.stats));
    let count = |stats: &ExitStats| json!({ "total": stats.total(), "port_io": stats.port_io, "mmio": stats.mmio, "other": stats.other });
    let vcpu = |vcpu: &crate::vmm::VcpuSummary| json!({ "id": vcpu.id, "rip": vcpu.rip.map(|rip| format!("{rip:#x}")), "exits": count(&vcpu.stats) });
    let timings = &report.timings;
    let value = json!({
        "version": VERSION,
        "kickvm": env!("CARGO_PKG_VERSION"),
        "mode": report.mode,
        "command": report.command,
        "outcome": report.outcome(),
        "exit_code": report.reason.code(),
        "decided_by": if report.is_guests_word() { "guest" } else { "kickvm" },
        "reason": report.reason.to_string(),
        "began_at": report.began_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        "seconds": {
            "wall": report.wall.as_secs_f64(),
            "cpu_user": cpu(Usage::user_time),
            "cpu_system": cpu(Usage::system_time),
            "to_guest": after(report.guest.map(|(began, _)| began)),
            "to_end": after(report.guest.map(|(_, ended)| ended)),
            "to_first_console_byte": after(report.console.first_byte),
            "to_init": after(timings.init),
            "to_command": after(timings.started),
            "to_first_output": after(timings.first_byte),
            "to_exit": after(timings.ended),
        },
        "exits": count(&exits),
        "vcpus": report.vcpus.iter().map(vcpu).collect::<Value>(),
        "memory": {
            "guest_bytes": report.memory,
            // Linux counts it in KiB.
            "peak_resident_bytes": usage.as_ref().map(|usage| usage.max_rss().saturating_mul(1024)),
        },
        "kernel": {
            "path": report.kernel.to_string_lossy(),
            "banner": report.banner.as_ref().or(report.console.banner.as_ref()),
        },
        "notes": report.notes,
        "out_of_memory": report.console.killed,
        "console": report.console_lines(),
    });
    format!("{value:#}\n")
}
