//! `examples/ci/slurm.sbatch` on a Slurm of two nodes, which runs on the loopback interface with its own files and
//! ports.

use crate::common::process::{Running, contained, default_signals, eventually};
use crate::common::{TempDir, can_run};
use crate::support::{guests, has_kvm, images};
use crate::{guest, halt, print_serial, publish_channel, ring_doorbell, this_test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const NODES: [&str; 2] = ["n1", "n2"];
/// The limit for each step. Slurm acts at intervals of seconds.
const PATIENCE: Duration = Duration::from_secs(120);

guest!(
    GREEN,
    publish_channel!(),
    "mov dword ptr [rbx + 0x31000], 0x000103; mov dword ptr [rbx + 0x60], 3;", // Event::Ended, 1 byte, status 0
    ring_doorbell!(),
    halt!(),
);
guest!(
    RED,
    publish_channel!(),
    print_serial!(r"[    1.000000] Oops: 0002 [#1]\n"),
    "mov ebx, 0x110000; mov dword ptr [rbx + 0x31000], 0x000103; mov dword ptr [rbx + 0x60], 3;",
    ring_doorbell!(),
    halt!(),
);

/// A Slurm cluster. Its processes have the path of its configuration in their environment; dropping it kills them.
struct Slurm {
    dir: TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    fn start() -> Self {
        let dir = TempDir::new();
        let path = dir.path().to_str().unwrap().to_owned();
        // munged requires that others can use its socket, and no one else writes to its directory.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let key = dir.file("key", &crate::common::noise(64));
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [controller, first, second] = listeners.map(|listener| listener.local_addr().unwrap().port());
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        let host = host.split('.').next().unwrap();
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
        let configuration = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\n\
             SlurmUser={user}\nSlurmdUser={user}\n\
             AuthInfo=socket={path}/munge,cred_expire=5\n\
             StateSaveLocation={path}/state\nSlurmctldPidFile={path}/slurmctld.pid\n\
             SlurmdSpoolDir={path}/spool-%n\nSlurmdPidFile={path}/slurmd-%n.pid\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nMailProg=/bin/true\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nSchedulerParameters=sched_interval=1\n\
             SlurmdTimeout=5\nKillWait=1\nReturnToService=2\nSlurmdParameters=config_overrides\n\
             NodeName={} NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=4\n\
             NodeName={} NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=4\n\
             PartitionName=main Nodes=ALL Default=YES\n",
            NODES[0], NODES[1]
        );
        dir.file("slurm.conf", configuration.as_bytes());
        // slurmd needs a plugin for control groups, although nothing uses them.
        dir.file("cgroup.conf", format!("CgroupPlugin=cgroup/v1\nCgroupMountpoint={path}/cgroup\n").as_bytes());
        for directory in ["state", "spool-n1", "spool-n2", "cgroup"] {
            fs::create_dir(dir.path().join(directory)).unwrap();
        }

        let mut slurm = Self { dir, daemons: Vec::new() };
        let munge =
            ["key-file=key", "socket=munge", "pid-file=munge.pid", "seed-file=munge.seed", "log-file=munge.log"];
        let munge = munge.map(|option| option.replacen('=', &format!("={path}/"), 1));
        let munge: Vec<_> = munge.iter().map(|option| format!("--{option}")).collect();
        slurm.daemon("munged", &[&["--foreground".into(), "--force".into()][..], &munge].concat());
        slurm.wait("munged", |slurm| slurm.dir.path().join("munge").exists());
        slurm.daemon("slurmctld", &["-D".into(), "-c".into()]);
        NODES.iter().for_each(|node| slurm.daemon("slurmd", &["-D".into(), "-N".into(), (*node).to_owned()]));
        slurm.wait("idle nodes", |slurm| slurm.output("sinfo", &["-h", "-t", "idle", "-o", "%D"]).trim() == "2");
        slurm
    }

    /// A command with the environment of the cluster. `kickvm` is a script that chooses the shard's kernel.
    fn command(&self, program: &str) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(program);
        command.env("PATH", format!("{}/bin:{path}:/usr/sbin:/sbin", self.dir.path().display()));
        command.env("SLURM_CONF", self.dir.path().join("slurm.conf")).current_dir(self.dir.path());
        command
    }

    fn daemon(&mut self, program: &str, arguments: &[String]) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("daemons.log")).unwrap();
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        default_signals(&mut command);
        let end_with_this_thread = || Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?);
        // SAFETY: between fork and exec the closure only calls prctl(2), which is async-signal-safe.
        unsafe { command.pre_exec(end_with_this_thread) };
        self.daemons.push(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")));
    }

    /// The output of a command; empty while the controller does not answer.
    fn output(&self, program: &str, arguments: &[&str]) -> String {
        String::from_utf8(self.command(program).args(arguments).output().unwrap().stdout).unwrap()
    }

    #[track_caller]
    fn wait(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited for {what} in vain:\n{}", self.logs());
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn logs(&self) -> String {
        let log = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        let queue = self.output("squeue", &["-r", "-t", "all"]);
        let shards: String = (0..8).map(|shard| log(&format!("results/{shard}.log"))).collect();
        format!("{queue}{shards}{}", log("daemons.log"))
    }

    /// The state of each shard.
    fn states(&self) -> Vec<String> {
        let mut states: Vec<_> =
            self.output("squeue", &["-h", "-r", "-t", "all", "-o", "%K %T"]).lines().map(str::to_owned).collect();
        states.sort();
        states
    }

    /// Kills the processes that have `variable` in their environment, and the Slurm daemons that started them.
    fn kill(&self, variable: &str) {
        let find = || -> Vec<i32> {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            ids.filter(|id| has_variable(*id, variable)).collect()
        };
        eventually("processes to end", || {
            let found = find();
            let step_daemons: Vec<_> = found.iter().filter_map(|id| parent_named(*id, "slurmstepd")).collect();
            for id in found.iter().chain(&step_daemons) {
                let _ = kill(Pid::from_raw(*id), Signal::SIGKILL); // it may have ended
            }
            found.is_empty().then_some(())
        });
    }

    /// What remains of a node that loses power: nothing.
    fn fail_node(&mut self, node: &str) {
        let at = 2 + NODES.iter().position(|known| *known == node).unwrap();
        self.daemons[at].kill().unwrap();
        self.kill(&format!("SLURMD_NODENAME={node}"));
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // slurmctld ends its child, slurmscriptd.
            let _ = kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM);
            let ended = (0..100).any(|_| {
                thread::sleep(Duration::from_millis(100));
                daemon.try_wait().is_ok_and(|status| status.is_some())
            });
            if !ended {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
        self.kill(&format!("SLURM_CONF={}/slurm.conf", self.dir.path().display()));
    }
}

fn has_variable(id: i32, variable: &str) -> bool {
    let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default(); // it may have ended
    environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
}

/// The parent of process `id`, if it has this name.
fn parent_named(id: i32, name: &str) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let comm = fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    comm.starts_with(name).then_some(parent)
}

/// Installs Slurm's packages if they are missing.
fn has_slurm() -> Result<(), String> {
    has_kvm()?;
    let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deps");
    let output = Command::new(deps).arg("slurm").output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// Shard 2 runs on a node that fails, shard 5 on one whose kernel is missing at first, and shard 6 has an oops.
#[test]
fn the_slurm_template_runs_again_what_has_no_verdict_and_merges_the_results() {
    if !can_run(this_test!(), has_slurm()) {
        return;
    }
    let mut slurm = Slurm::start();
    let bin = slurm.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for (name, guest) in [("green", &GREEN), ("red", &RED), ("endless", &guests::HALT)] {
        slurm.dir.file(name, &images::elf(guest));
    }
    let script = format!(
        "#!/bin/sh\nkickvm='{}'\n[ \"$1\" = exec ] || exec \"$kickvm\" \"$@\"\nshift\n\
         case $SLURM_ARRAY_TASK_ID-${{SLURM_RESTART_COUNT:-0}} in\n\
         2-0) kernel=endless ;;\n5-0) kernel=missing ;;\n6-*) kernel=red ;;\n*) kernel=green ;;\nesac\n\
         exec \"$kickvm\" exec --kernel \"$kernel\" \"$@\"\n",
        env!("CARGO_BIN_EXE_kickvm")
    );
    fs::write(bin.join("kickvm"), script).unwrap();
    fs::set_permissions(bin.join("kickvm"), fs::Permissions::from_mode(0o755)).unwrap();

    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ci/slurm.sbatch");
    let mut command = slurm.command("bash");
    contained(command.arg(template).args(["--", "true"]));
    let mut submission = Running::new(command, None);
    let results = slurm.dir.path().join("results");
    slurm.wait("the shards to run", |slurm| {
        let states = slurm.states();
        let ended = [0, 1, 3, 4, 5, 7].iter().all(|shard| states.contains(&format!("{shard} COMPLETED")));
        let shard_2 = fs::read_to_string(results.join("2.json")).is_ok_and(|report| report.contains("\"unfinished\""));
        ended && shard_2 && states.contains(&"6 FAILED".to_owned())
    });
    let node = slurm.output("squeue", &["-h", "-r", "-t", "running", "-o", "%N"]);
    slurm.fail_node(node.lines().next().unwrap());
    slurm.wait("the last shard to end", |_| submission.child.try_wait().unwrap().is_some());
    submission.end().assert(123, "Submitted batch job 1\n", &[]);

    let shards = slurm.output("scontrol", &["--oneliner", "show", "job"]);
    for shard in 0..8 {
        let task = format!(" ArrayTaskId={shard} ");
        let shown = shards.lines().find(|line| line.contains(&task)).unwrap();
        let restarts = format!(" Restarts={} ", u8::from([2, 5].contains(&shard)));
        assert!(shown.contains(&restarts), "{shown}");
    }
    let log = fs::read_to_string(results.join("5.log")).unwrap();
    assert!(log.starts_with("kickvm: cannot open kernel 'missing': No such file or directory\n"), "{log}");
    let merged = fs::read_to_string(results.join("junit.xml")).unwrap();
    let document = roxmltree::Document::parse(&merged).unwrap();
    let totals = ["tests", "failures", "errors"].map(|name| document.root_element().attribute(name).unwrap());
    assert_eq!(totals, ["8", "1", "0"]);
    let cases: Vec<_> = document.descendants().filter(|node| node.has_tag_name("testcase")).collect();
    for (shard, case) in cases.iter().enumerate() {
        let failed = case.children().any(|node| node.has_tag_name("failure"));
        assert_eq!((case.attribute("name").unwrap(), failed), (format!("true {shard}").as_str(), shard == 6));
    }
    assert_eq!(cases.len(), 8);
}
