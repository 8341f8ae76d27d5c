//! The VMM as a library: behavior that cannot be observed by the command line.

use crate::common::process::{DEADLINE, eventually};
use crate::support::guests::{HELLO, SPIN, TOUCH};
use crate::support::run::in_own_process;
use crate::{need_kvm, this_test};
use kickvm::boot::{self, BootParams, Image, layout};
use kickvm::device::{Device, Response};
use kickvm::event::{EventManager, MutEventSubscriber, SubscriberOps};
use kickvm::memory::GuestRam;
use kickvm::vcpu::{Buses, CpuidTemplate};
use kickvm::vmm::{
    ConsoleConfig, ExitHandler, ExitReason, KvmVm, MIN_MEMORY, Shutdown, VMMConfig, Vmm, VmmBuilder, WrappedExitHandler,
};
use kvm_ioctls::Kvm;
use std::fs;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

fn config(guest: &'static [u8]) -> VMMConfig {
    VMMConfig {
        memory: MIN_MEMORY,
        console: ConsoleConfig::None,
        timeout: Some(DEADLINE),
        ..VMMConfig::new(Image::Raw(guest))
    }
}

/// A device that calls a function on each write.
struct OnWrite<F>(F);

impl<F: Fn() + Send + Sync> Device for OnWrite<F> {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) -> Response {
        (self.0)();
        ControlFlow::Continue(())
    }
}

#[test]
fn a_vcpu_thread_that_panics_ends_the_machine_and_not_the_process() {
    need_kvm!();
    let vmm = VmmBuilder::new(VMMConfig { cpus: 4, ..config(&TOUCH) }).unwrap();
    let vmm = vmm.port_device(0x700, 1, Arc::new(OnWrite(|| panic!("intended")))).unwrap().build();
    let outcome = vmm.run().unwrap();
    assert_eq!(outcome.reason, ExitReason::Failed("the thread of vCPU 0 panicked".into()));
    assert_eq!(outcome.reason.code(), 125);
}

/// A machine, assembled from its parts without `Vmm`.
struct Machine {
    vm: KvmVm<WrappedExitHandler>,
    manager: EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>,
    handler: WrappedExitHandler,
    _ram: Arc<GuestRam>, // dropped last
}

impl Machine {
    fn start(kvm: &Kvm, cpuid: &CpuidTemplate, guest: &'static [u8], buses: Buses) -> Self {
        let ram = Arc::new(GuestRam::new(layout::ram_ranges(MIN_MEMORY)).unwrap());
        let image = &Image::Raw(guest);
        let params = BootParams {
            image,
            initramfs: &[],
            initramfs_source: None,
            cmdline: "",
            cpus: 1,
            second_serial: false,
            virtio_devices: 0,
        };
        let entry = boot::load(ram.memory(), &params).unwrap();
        let handler = WrappedExitHandler::new().unwrap();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(handler.subscriber() as Arc<Mutex<dyn MutEventSubscriber + Send>>);
        let mut vm = KvmVm::new(kvm, cpuid, &ram, 1, handler.clone()).unwrap();
        vm.run(&entry, &Arc::new(buses), false).unwrap();
        Self { vm, manager, handler, _ram: ram }
    }

    /// Runs the event loop until a kick, and shuts down.
    fn end(mut self) -> Shutdown {
        while self.handler.keep_running() {
            self.manager.run().unwrap();
        }
        assert_eq!(self.handler.reason(), None);
        self.vm.shutdown()
    }
}

/// Threads, descriptors and mappings of this process.
fn resources() -> (usize, usize, usize) {
    let count = |dir| fs::read_dir(dir).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    (count("/proc/self/task"), count("/proc/self/fd"), maps.lines().count())
}

#[test]
fn a_thousand_machines_leak_nothing() {
    need_kvm!();
    in_own_process(this_test!(), || {
        let kvm = Kvm::new().unwrap();
        let cpuid = CpuidTemplate::new(&kvm).unwrap();
        let cycle = |n| {
            if n % 10 == 0 {
                assert_eq!(Vmm::try_from(config(&HELLO)).unwrap().run().unwrap().reason.code(), 0);
            } else {
                let machine = Machine::start(&kvm, &cpuid, &SPIN, Buses::default());
                machine.handler.kick().unwrap();
                assert!(machine.end().stuck.is_empty());
            }
        };
        let eight_times = |count| {
            thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| (0..count).for_each(cycle)))));
        };
        eight_times(5); // for what is allocated only once
        let (threads, descriptors, mappings) = resources();
        eight_times(125);
        // A joined thread stays visible for a moment, and the allocator keeps a few mappings.
        eventually("only the threads from before", || (resources().0 <= threads).then_some(()));
        assert_eq!(resources().1, descriptors, "descriptors");
        assert!(resources().2 < mappings + 100, "{} mappings, {mappings} before", resources().2);
    });
}

#[test]
fn eight_threads_that_kick_ten_thousand_times_each_end_the_machine_once() {
    need_kvm!();
    let kvm = Kvm::new().unwrap();
    let machine = Machine::start(&kvm, &CpuidTemplate::new(&kvm).unwrap(), &SPIN, Buses::default());
    let together = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (handler, together) = (machine.handler.clone(), together.clone());
            thread::spawn(move || {
                together.wait();
                (0..10_000).for_each(|_| handler.kick().unwrap());
            })
        })
        .collect();
    assert!(machine.end().stuck.is_empty());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn shutdown_gives_up_on_a_vcpu_that_a_device_blocks_and_names_it() {
    need_kvm!();
    let (reached, blocked) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let block = OnWrite(move || {
        reached.send(()).unwrap();
        let _ = wait.lock().unwrap().recv(); // until `release` is dropped
    });
    let mut buses = Buses::default();
    buses.ports.insert(0x700, 1, Arc::new(block)).unwrap();
    let kvm = Kvm::new().unwrap();
    let machine = Machine::start(&kvm, &CpuidTemplate::new(&kvm).unwrap(), &TOUCH, buses);
    blocked.recv().unwrap();
    machine.handler.kick().unwrap();
    assert_eq!(machine.end().stuck, [0]);
    drop(release);
}

#[test]
fn the_embedding_example_runs() {
    need_kvm!();
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--all-features", "--example", "embed"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.starts_with("the VM was kicked; exits to user space: "), "{output:?}");
}
