//! The report as JSON.

use std::time::{Instant, UNIX_EPOCH};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

use super::Report;
use crate::console::Fault;
use crate::results::{TestCase, TestOutcome, TestResults};
use crate::vcpu::ExitStats;
use crate::vmm::VcpuSummary;

/// The version of the format. It changes when a field is removed or changes its meaning, not when one is added.
pub const VERSION: u32 = 1;

/// Returns the report as JSON text.
pub fn json(report: &Report) -> String {
    let Report { run, wall, outcome, timings } = report;
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
    let cpu = |time: fn(&Usage) -> nix::sys::time::TimeVal| {
        usage.as_ref().map(|usage| time(usage).num_microseconds() as f64 / 1e6)
    };
    let after = |when: Option<Instant>| when.map(|when| when.saturating_duration_since(run.began).as_secs_f64());
    let value = json!({
        "version": VERSION,
        "kickvm": env!("CARGO_PKG_VERSION"),
        "mode": run.mode,
        "command": run.command,
        "outcome": outcome.reason.word(),
        "exit_code": outcome.reason.code(),
        "decided_by": if outcome.reason.decided_by_guest() { "guest" } else { "kickvm" },
        "command_status": timings.ended.map(|(_, status)| status),
        "reason": outcome.reason.to_string(),
        "began_at": run.began_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        "seconds": {
            "wall": wall.as_secs_f64(),
            "cpu_user": cpu(Usage::user_time),
            "cpu_system": cpu(Usage::system_time),
            "to_guest": after(outcome.guest.map(|(began, _)| began)),
            "to_end": after(outcome.guest.map(|(_, ended)| ended)),
            "to_first_console_byte": after(outcome.console.first_byte),
            "to_init": after(timings.init),
            "to_command": after(timings.started),
            "to_first_output": after(timings.first_byte),
            "to_exit": after(timings.ended.map(|(when, _)| when)),
        },
        "exits": exits(&outcome.stats()),
        "vcpus": outcome.vcpus.iter().map(vcpu).collect::<Value>(),
        "memory": {
            "guest_bytes": run.memory,
            // In KiB (getrusage(2)).
            "peak_resident_bytes": usage.as_ref().map(|usage| usage.max_rss().saturating_mul(1024)),
        },
        "kernel": {
            "path": run.kernel.to_string_lossy(),
            "banner": outcome.console.banner,
        },
        "out_of_memory": outcome.console.killed,
        "faults": outcome.console.faults.iter().map(fault).collect::<Value>(),
        "omitted_faults": outcome.console.omitted_faults,
        "notes": outcome.notes,
        "tests": outcome.tests.as_ref().map(tests),
        "console": outcome.console.lines,
    });
    format!("{value:#}\n")
}

fn tests(results: &TestResults) -> Value {
    let TestResults { passed, failed, skipped, todo, problem, .. } = results;
    json!({
        "format": results.format.name(),
        "total": results.total(),
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "todo": todo,
        "incomplete": problem,
        "cases": results.cases.iter().map(case).collect::<Value>(),
    })
}

fn case(case: &TestCase) -> Value {
    let (outcome, message) = match &case.outcome {
        TestOutcome::Passed => ("passed", ""),
        TestOutcome::Failed(why) => ("failed", why.as_str()),
        TestOutcome::Skipped(why) => ("skipped", why.as_str()),
        TestOutcome::Todo(why) => ("todo", why.as_str()),
    };
    json!({
        "suite": case.suite,
        "name": case.name,
        "outcome": outcome,
        "message": message,
        "seconds": case.time.map(|time| time.as_secs_f64()),
        "output": case.output,
    })
}

fn vcpu(vcpu: &VcpuSummary) -> Value {
    json!({ "id": vcpu.id, "rip": vcpu.rip.map(|rip| format!("{rip:#x}")), "exits": exits(&vcpu.stats) })
}

fn fault(fault: &Fault) -> Value {
    json!({
        "title": fault.title,
        "classes": fault.classes.names().collect::<Vec<_>>(),
        "function": fault.function,
        "count": fault.count,
        "allowed": fault.allowed,
        "report": fault.lines,
    })
}

fn exits(stats: &ExitStats) -> Value {
    json!({ "total": stats.total(), "port_io": stats.port_io, "mmio": stats.mmio, "other": stats.other })
}
