//! Several runs from one command line.

use std::path::Path;

use super::{Machine, Results};
use crate::matrix::{Matrix, default_jobs};
use crate::report::annotate::CiService;
use crate::vmm::ConsoleConfig;

/// Finds the kernels. Returns the runs if there are several combinations. Otherwise, or if the hidden option selects one, leaves only that
/// one in `machine` and `results`.
pub fn matrix(machine: &mut Machine, results: &mut Results, console: &ConsoleConfig) -> Result<Option<Matrix>, String> {
    machine.find_files().map_err(|error| error.to_string())?;
    let all = combinations(machine);
    if let Some(selection) = machine.combination.take() {
        let (label, kernel, cpus, append) = all.into_iter().nth(selection.index).ok_or("no such --combination")?;
        (machine.kernel, machine.cpus, machine.append_each) = (vec![kernel], vec![cpus], append.into_iter().collect());
        (results.report, results.junit) = (Some(selection.json()), Some(selection.junit()));
        (results.label, results.annotate) = (label, CiService::Off); // the parent shows all runs
        results.log.iter_mut().for_each(|log| log.as_mut_os_string().push(format!(".{}", selection.index + 1)));
        selection.end_with_parent()?;
        return Ok(None);
    }
    if all.len() == 1 {
        return Ok(None);
    }
    if let ConsoleConfig::File(path) = console {
        let path = path.display();
        return Err(format!("cannot use --console file={path} for several runs, which would overwrite it"));
    }
    let most = all.iter().map(|(_, _, cpus, _)| *cpus).max().unwrap_or(1);
    let disks = machine.disk.iter().map(|disk| disk.path.clone());
    Ok(Some(Matrix {
        labels: all.into_iter().map(|(label, ..)| label).collect(),
        jobs: machine.jobs.map_or_else(|| default_jobs(most, machine.memory), usize::from),
        fail_fast: machine.fail_fast,
        ci: results.annotate,
        json: results.report.take(),
        junit: results.junit.take(),
        inputs: machine.kernel.iter().chain(&machine.initramfs).chain(&results.symbols).cloned().chain(disks).collect(),
    }))
}

/// Each combination: its label, kernel, number of vCPUs, and text to append. The label has what differs, and a number if
/// nothing does.
fn combinations(machine: &Machine) -> Vec<(String, std::path::PathBuf, u8, Option<String>)> {
    let Machine { kernel: kernels, cpus: all_cpus, append_each, .. } = machine;
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let appends = if append_each.is_empty() { vec![None] } else { append_each.iter().map(Some).collect() };
    let mut all: Vec<(String, _, _, _)> = Vec::new();
    for kernel in kernels {
        let is_unique = kernels.iter().filter(|other| name(other) == name(kernel)).count() == 1;
        for cpus in all_cpus {
            for append in &appends {
                let kernel_name = if is_unique { name(kernel) } else { kernel.to_string_lossy().into_owned() };
                let parts = [
                    (kernels.len() > 1).then_some(kernel_name),
                    (all_cpus.len() > 1).then(|| format!("cpus={cpus}")),
                    append
                        .filter(|_| appends.len() > 1)
                        .map(|text| if text.is_empty() { "''".to_owned() } else { text.clone() }),
                ];
                let label = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
                let same = all.iter().filter(|(other, ..)| *other == label || is_numbered(other, &label)).count();
                let label = if same == 0 { label } else { format!("{label} #{}", same + 1) };
                all.push((label, kernel.clone(), *cpus, append.cloned()));
            }
        }
    }
    all
}

/// Whether `other` is `label` with a number.
fn is_numbered(other: &str, label: &str) -> bool {
    other
        .strip_prefix(label)
        .and_then(|rest| rest.strip_prefix(" #"))
        .is_some_and(|number| number.parse::<usize>().is_ok())
}
