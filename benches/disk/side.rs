//! Guests that do something when the benchmark requests it, each VMM on a processor of its own.

use super::Result;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::LazyLock;

/// The lower quartile, the median, and the upper quartile.
pub fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

/// The processor of everything but vCPUs, and that of all vCPUs, as where those are pinned: one guest reads at a time.
static PROCESSORS: LazyLock<[usize; 2]> = LazyLock::new(|| {
    let own = sched_getaffinity(Pid::this()).expect("every process has some");
    let mut own = (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu) == Ok(true));
    let host = own.next().expect("every process has one");
    [host, own.next().unwrap_or(host)]
});
const HOST: usize = 0;
const GUESTS: usize = 1;

fn pin(thread: Pid, place: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(PROCESSORS[place])?;
    Ok(sched_setaffinity(thread, &cpus)?)
}

/// A guest that is killed when dropped.
pub struct Guest {
    pub child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest {
    /// Starts it, and waits until it has booted.
    pub fn start(mut command: Command) -> Result<Self> {
        pin(Pid::this(), GUESTS)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        pin(Pid::this(), HOST)?;
        let mut child = child.map_err(|error| format!("{command:?}: {error}"))?;
        let stdin = child.stdin.take().ok_or("no pipe")?;
        let lines = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
        let mut guest = Self { child, stdin, lines, seen: Vec::new() };
        guest.wait_for("up")?;
        guest.part()?;
        guest.go_on()?;
        Ok(guest)
    }

    /// Leaves only the vCPU where all started.
    fn part(&self) -> Result<()> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?;
            let Ok(name) = fs::read_to_string(thread.path().join("comm")) else { continue }; // it has ended
            if !name.starts_with("vcpu") && !name.ends_with("/KVM\n") {
                pin(Pid::from_raw(thread.file_name().to_string_lossy().parse()?), HOST)?;
            }
        }
        Ok(())
    }

    pub fn wait_for(&mut self, word: &str) -> Result<Vec<String>> {
        loop {
            let Some(line) = self.lines.next() else {
                return Err(format!("a guest ended:\n{}", self.seen.join("\n")).into());
            };
            let line = line?;
            if let Some(rest) = line.trim_start().strip_prefix(word) {
                return Ok(rest.split_whitespace().map(str::to_owned).collect());
            }
            self.seen.push(line);
        }
    }

    pub fn go_on(&mut self) -> Result<()> {
        Ok(self.stdin.write_all(b"\n")?)
    }
}

/// In the guest: prints a line, and waits until the benchmark requests the next step.
pub fn say_and_wait(line: &str) -> Result<()> {
    println!("{line}");
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}
