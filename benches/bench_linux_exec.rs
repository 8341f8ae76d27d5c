//! How much of a `kickvm exec` is kickvm's: `scripts/cargo bench --bench bench_linux_exec`. Needs a KVM that can run
//! Linux. Figures are medians: of the time from start to exit as seen from outside, less what starting any program
//! takes, and of the guest's part of it as `--report` states.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const RUNS: usize = 21;

fn main() -> Result<()> {
    let kernel = std::env::var("KICKVM_KERNEL_DIR")? + "/bzImage";
    let busybox = std::env::var("KICKVM_CACHE")? + "/busybox";
    let directory = std::env::temp_dir().join(format!("kickvm-bench-exec-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let result = bench(&kernel, &busybox, &directory);
    fs::remove_dir_all(&directory)?;
    result
}

fn bench(kernel: &str, busybox: &str, directory: &Path) -> Result<()> {
    println!("kickvm exec -- true, Linux of resources/kernel-config, one vCPU:");
    let (mut walls, mut shares, mut exits) = (Vec::new(), Vec::new(), Vec::new());
    let (mut floors, mut set_ups, mut tear_downs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let report = directory.join("report.json");
        let add = format!("{busybox}:/bin/true");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        command.args(["exec", "--kernel", kernel, "--copy", &add, "--report"]).arg(&report).args(["--", "true"]);
        let any = timed(Command::new(busybox).arg("true"))?;
        let wall = timed(&mut command)? - any;
        let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
        let seconds = |name: &str| report["seconds"][name].as_f64().ok_or(format!("no {name}"));
        let (before, to_end) = (seconds("to_guest")?, seconds("to_end")?);
        walls.push(wall);
        floors.push(1000.0 * any);
        set_ups.push(1000.0 * before);
        tear_downs.push(1000.0 * (wall - to_end));
        shares.push((wall - (to_end - before)) / wall);
        exits.push(report["exits"]["total"].as_f64().ok_or("no exits")?);
    }
    let median = |figures: &mut Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    println!("{:<58} {:>6.0}ms", "any program, from start to end", median(&mut floors));
    println!("{:<58} {:>7.2}s", "kickvm, from start to end, less that", median(&mut walls));
    println!("{:<58} {:>7.1}%  at most 15", "of which not the guest's", 100.0 * median(&mut shares));
    println!("{:<58} {:>6.0}ms", "  before the guest begins", median(&mut set_ups));
    println!("{:<58} {:>6.0}ms", "  after the guest's end", median(&mut tear_downs));
    println!("{:<58} {:>8}", "exits to user space", median(&mut exits));
    throughput(kernel, busybox)
}

/// Seconds that `command` takes to end well.
fn timed(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).status()?;
    let took = began.elapsed().as_secs_f64();
    if status.success() { Ok(took) } else { Err(format!("{command:?} ended with {status}").into()) }
}

/// 100 MB from the command to this program.
fn throughput(kernel: &str, busybox: &str) -> Result<()> {
    let add = format!("{busybox}:/bin/busybox");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
    command.args([
        "exec",
        "-v",
        "--kernel",
        kernel,
        "--copy",
        &add,
        "--",
        "busybox",
        "head",
        "-c",
        "100000000",
        "/dev/zero",
    ]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8(output.stderr)?;
    let exits = said.lines().find_map(|line| line.strip_prefix("kickvm: ")?.split_once(" exits: "));
    let exits: u64 = exits.ok_or("kickvm did not count its exits")?.0.parse()?;
    println!("{:<58} {:>8}", "exits to user space with 100 MB of output", exits);
    (output.stdout.len() == 100_000_000).then_some(()).ok_or_else(|| "output is missing".into())
}
