//! Chapter 7: how a run ends. First the ways that do not work, then the exit handler.

#[path = "../03-exits/bus.rs"]
mod bus;
mod exit_handler;
#[path = "../03-exits/exit_port.rs"]
mod exit_port;
mod kick;
#[path = "../02-long-mode/machine.rs"]
mod machine;
mod threads;
#[path = "../03-exits/vcpu.rs"]
mod vcpu;

use std::error::Error;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bus::Bus;
use exit_handler::WrappedExitHandler;
use exit_port::ExitPort;
use kick::RunPage;
use kickvm::event::{Callback, EventManager, MutEventSubscriber, SubscriberOps, Timer};
use libc::c_int;
use machine::{Machine, guest};
use threads::{shut_down, start_vcpu};

type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;
type Result<T> = std::result::Result<T, Box<dyn Error>>;

guest!(ends, "mov al, 3", "out 0xf4, al",);
guest!(spins, "2: jmp 2b",);

// ANCHOR: wrong
/// A vCPU thread that ends without a kick. The loop would wait forever, so it gets no time to wait.
fn without_kick(body: fn()) -> Result<()> {
    let exit_handler = WrappedExitHandler::new()?;
    let mut event_mgr = Manager::new()?;
    event_mgr.add_subscriber(exit_handler.subscriber());
    let ended = thread::spawn(body).join();
    let events = event_mgr.run_with_timeout(0)?;
    println!("  the thread has ended: {}", if ended.is_ok() { "returned" } else { "panicked" });
    println!("  events for the loop: {events}, keep_running: {}", exit_handler.keep_running());
    Ok(())
}
// ANCHOR_END: wrong

// ANCHOR: lost
extern "C" fn does_nothing(_: c_int) {}

/// Sends the signal after the thread has decided to enter the guest, and before it enters it.
fn kick_before_run(handler: extern "C" fn(c_int)) -> Result<()> {
    kick::install(handler)?;
    let (about_to_run, ready) = channel();
    let (ended, end) = channel();
    let thread = thread::spawn(move || {
        let mut machine = Machine::new(&spins).expect("chapter 2 works");
        let page = RunPage::new(&machine.vcpu).expect("the page can be mapped");
        about_to_run.send(()).expect("the receiver exists");
        // SAFETY: the signal has a handler.
        unsafe { libc::raise(kick::signal()) };
        let result = machine.vcpu.run().map(|exit| format!("{exit:?}")).map_err(|error| error.to_string());
        drop(page);
        let _ = ended.send(result);
    });
    ready.recv()?;
    match end.recv_timeout(Duration::from_secs(1)) {
        Ok(result) => println!("  {result:?}"),
        Err(_) => println!("  still in the guest after a second"),
    }
    shut_down(vec![thread])
}
// ANCHOR_END: lost

// ANCHOR: vcpu
/// Runs one vCPU. Returns why it has ended.
fn run_vcpu(guest: &[u8]) -> Result<String> {
    let (mut machine, mut exit_port, mut bus) = (Machine::new(guest)?, ExitPort, Bus::default());
    bus.insert(0xf4, 1, &mut exit_port);
    let _page = RunPage::new(&machine.vcpu)?;
    let (end, _) = vcpu::run(&mut machine.vcpu, &mut bus)?;
    Ok(format!("{end:?}"))
}
// ANCHOR_END: vcpu

// ANCHOR: run
/// A whole run: one vCPU per guest, and at most one second.
fn run(guests: &[&'static [u8]]) -> Result<()> {
    let exit_handler = WrappedExitHandler::new()?;
    let mut event_mgr = Manager::new()?;
    event_mgr.add_subscriber(exit_handler.subscriber());
    let (timer, timeout) = (Timer::new()?, exit_handler.clone());
    timer.arm(Duration::from_secs(1))?;
    event_mgr.add_subscriber(Arc::new(Mutex::new(Callback::new(timer, move |_, _| {
        let _ = timeout.exit("timeout");
    }))));

    let start = |guest: &&'static [u8]| {
        let guest = *guest;
        start_vcpu(exit_handler.clone(), move || run_vcpu(guest))
    };
    let threads = guests.iter().map(start).collect();
    loop {
        event_mgr.run()?;
        if !exit_handler.keep_running() {
            break;
        }
    }
    println!("  the loop has ended: {}", exit_handler.reason().unwrap_or_default());
    shut_down(threads)?;
    println!("  {} vCPU threads joined", guests.len());
    Ok(())
}
// ANCHOR_END: run

fn main() -> Result<()> {
    println!("no kick:");
    without_kick(|| drop(run_vcpu(&ends)))?;
    println!("no guard, and a panic before the kick:");
    without_kick(|| std::panic::resume_unwind(Box::new("an intended panic, without a message")))?;
    println!("a signal just before KVM_RUN, whose handler does nothing:");
    kick_before_run(does_nothing)?;
    println!("a signal just before KVM_RUN, whose handler sets immediate_exit:");
    kick_before_run(kick::sets_immediate_exit)?;
    println!("the guest ends:");
    run(&[&ends])?;
    println!("two guests never end:");
    run(&[&spins, &spins])
}
