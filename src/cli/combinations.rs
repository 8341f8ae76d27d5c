//! Several runs from one command line.

use std::iter;
use std::path::{Path, PathBuf};

use super::logger::is_unsafe;
use super::{Machine, Results};
use crate::matrix::{Matrix, default_jobs};
use crate::report::annotate::CiService;
use crate::vmm::ConsoleConfig;

/// Finds the kernels. Returns the runs if there are several combinations. Otherwise, or if the hidden option selects
/// one, leaves only that one in `machine` and `results`.
pub fn matrix(
    machine: &mut Machine,
    results: &mut Results,
    console: &ConsoleConfig,
    inputs: &[PathBuf],
) -> Result<Option<Matrix>, String> {
    machine.find_files().map_err(|error| error.to_string())?;
    let all = combinations(machine);
    if let Some(selection) = machine.combination.take() {
        let (label, kernel, cpus, append) = all.into_iter().nth(selection.index).ok_or("no such --combination")?;
        (machine.kernel, machine.cpus, machine.append_each) = (vec![kernel], vec![cpus], append.into_iter().collect());
        (results.report, results.junit) = (Some(selection.json()), Some(selection.junit()));
        (results.label, results.annotate) = (label, CiService::Off); // the parent shows all runs
        results.log = results.log.as_deref().map(|log| numbered(log, selection.index));
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
    let allow = results.allow.iter().map(|file| file.1.clone());
    let logs = results.log.iter().flat_map(|log| (0..all.len()).map(|index| numbered(log, index)));
    let others: Vec<_> = inputs.iter().cloned().chain(disks).chain(allow).chain(logs).collect();
    Ok(Some(Matrix {
        labels: all.into_iter().map(|(label, ..)| label).collect(),
        jobs: machine.jobs.map_or_else(|| default_jobs(most, machine.memory), usize::from),
        fail_fast: machine.fail_fast,
        ci: results.annotate,
        json: results.report.take(),
        junit: results.junit.take(),
        inputs: machine
            .kernel
            .iter()
            .chain(&machine.initramfs)
            .chain(&results.symbols)
            .cloned()
            .chain(others)
            .collect(),
    }))
}

/// Each combination: its label, kernel, number of vCPUs, and text to append. The label has what differs, and a number
/// if nothing does.
fn combinations(machine: &Machine) -> Vec<(String, PathBuf, u8, Option<String>)> {
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
                let label = parts.into_iter().flatten().collect::<Vec<_>>().join(" ").replace(is_unsafe, "?");
                let numbered = (2..).map(|number| format!("{label} #{number}"));
                let is_new = |label: &String| all.iter().all(|(other, ..)| other != label);
                let label = iter::once(label.clone()).chain(numbered).find(is_new).unwrap_or_default();
                all.push((label, kernel.clone(), *cpus, append.cloned()));
            }
        }
    }
    all
}

/// The file of `--log` for one of several runs.
fn numbered(log: &Path, index: usize) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{}", index + 1));
    name.into()
}
