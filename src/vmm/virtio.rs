//! The virtio devices of a machine: registers on the MMIO bus, interrupts by irqfd, and a fast path between the two.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use vm_memory::MmapRegion;

use super::Subscriber;
use super::builder::irqfd;
use super::config::{NetConfig, ShareConfig, VMMConfig, VsockConfig};
use super::error::Error;
use super::fast_path::FastPath;
use crate::boot::ByteSize;
use crate::boot::layout::{VIRTIO_GSIS, virtio_slots};
use crate::device::Bus;
use crate::device::virtio::balloon::Balloon;
use crate::device::virtio::block::{Block, Disk};
use crate::device::virtio::console::{self, Console};
use crate::device::virtio::fs::{Fs, Server, Share};
use crate::device::virtio::net::Net;
use crate::device::virtio::net::tap::Tap;
use crate::device::virtio::rng::Rng;
use crate::device::virtio::vsock::{UdsListener, Vsock};
use crate::device::virtio::{HostError, Interrupt, REGISTERS, RegisterPage, Registers, Virtio, VirtioDevice};
use crate::memory::GuestRam;
use crate::sys::os_error;

/// How long all disks together have to finish their requests when the machine stops.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);
/// How long all disks without requests then have to close their files, which releases the locks.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The virtio devices of one machine.
pub struct VirtioDevices {
    /// The devices as subscribers of the event loop, in the order of [`virtio_slots`].
    pub subscribers: Vec<Subscriber>,
    /// The number of frames that each network interface has dropped, by the name of its tap.
    dropped: Vec<(String, Arc<AtomicU64>)>,
    disks: Vec<(PathBuf, Arc<Mutex<Virtio<Block>>>)>,
    shares: Vec<(PathBuf, Server)>,
    fast_path: Arc<FastPath>,
}

impl VirtioDevices {
    /// Creates the devices of `config` and attaches them to `bus`: disks first, so that they are in order. A virtio
    /// console is connected to `hvc`.
    ///
    /// # Errors
    ///
    /// The host does not provide what a device needs (a disk, a tap interface, a socket, memory, descriptors), or there
    /// are more devices than a machine can have.
    pub fn new(
        config: &VMMConfig,
        hvc: Option<&Arc<console::Port>>,
        vm: &Arc<VmFd>,
        ram: &Arc<GuestRam>,
        bus: &mut Bus,
    ) -> Result<Self, Error> {
        let registers = MmapRegion::new(VIRTIO_GSIS.len() * REGISTERS).map_err(io::Error::other);
        let registers = Arc::new(registers.map_err(Error::host("map the registers of virtio devices"))?);
        let fast_path = Arc::new(FastPath::new(vm.clone(), ram.clone(), registers));
        let (disks, shares) = (Vec::new(), Vec::new());
        let mut devices = Self { subscribers: Vec::new(), dropped: Vec::new(), disks, shares, fast_path };
        for disk in &config.disks {
            let file = Disk::open(&disk.path, disk.read_only, disk.direct)?;
            if !disk.raw {
                file.check_raw(&disk.path)?;
            }
            let path = disk.path.clone();
            let report_host_error = Box::new(move |error: &io::Error| {
                let why = os_error::describe(error);
                log::warn!("disk '{}' failed: {why}; the guest gets I/O errors", path.display());
            });
            let id = disk.id.as_deref().unwrap_or("");
            let block = Block::new(file, id, ram.memory(), report_host_error);
            let block = devices.attach(block.map_err(Error::host("create a disk"))?, bus)?;
            devices.disks.push((disk.path.clone(), block));
        }
        for (index, net) in config.nets.iter().enumerate() {
            if config.nets[..index].iter().any(|other| other.tap == net.tap) {
                let source = HostError("it is given twice; use one tap per network interface".to_owned());
                return Err(Error::Tap { tap: net.tap.clone(), source });
            }
            let device = open_net(net)?;
            devices.dropped.push((net.tap.clone(), device.dropped().clone()));
            devices.attach(device, bus)?;
        }
        if let Some(VsockConfig { cid, socket: path }) = &config.vsock {
            let listener = UdsListener::bind(path);
            let listener = listener.map_err(|source| Error::Vsock { path: path.clone(), source })?;
            devices.attach(Vsock::new(*cid, listener), bus)?;
        }
        for ShareConfig { path, tag, read_only, stable } in &config.shares {
            let share = Share::open(path, *read_only, *stable);
            let share = share.map_err(|source| Error::Share { path: path.clone(), source })?;
            let device = devices.attach(Fs::new(tag), bus)?;
            let server = Server::start(share, device, ram.memory()).map_err(Error::host("start a file server"))?;
            devices.shares.push((path.clone(), server));
        }
        if let Some(port) = hvc {
            let console = Console::new(port.clone()).map_err(Error::host("create a virtio console"))?;
            devices.attach(console, bus)?;
        }
        if config.rng {
            devices.attach(Rng::default(), bus)?;
        }
        if let Some(size) = config.balloon {
            if size >= config.memory {
                return Err(Error::Balloon { size: ByteSize(size), memory: ByteSize(config.memory) });
            }
            devices.attach(Balloon::new(size), bus)?;
        }
        Ok(devices)
    }

    fn attach<D: VirtioDevice + 'static>(&mut self, device: D, bus: &mut Bus) -> Result<Arc<Mutex<Virtio<D>>>, Error> {
        let Some((address, gsi)) = virtio_slots().nth(self.subscribers.len()) else {
            return Err(Error::TooManyDevices(VIRTIO_GSIS.len()));
        };
        let synchronous = device.synchronous();
        let FastPath { vm, ram, registers, .. } = &*self.fast_path;
        let interrupt = interrupt(vm, gsi, synchronous)?;
        let page = RegisterPage::new(registers.clone(), self.subscribers.len());
        let fast_path = self.fast_path.clone();
        let on_driver_ok = Box::new(move || fast_path.install());
        let virtio = Virtio::new(device, ram.memory(), interrupt, page, on_driver_ok);
        let virtio = virtio.map_err(Error::host("create a virtio device"))?;
        let doorbells = virtio.doorbells().filter(|_| !synchronous);
        self.fast_path.add(address, doorbells).map_err(Error::host("duplicate an event descriptor"))?;
        let virtio = Arc::new(Mutex::new(virtio));
        bus.insert(address, REGISTERS as u64, Arc::new(Registers::new(virtio.clone())))?;
        self.subscribers.push(virtio.clone());
        Ok(virtio)
    }

    /// Stops the disks and shares, whether they answer or not: requests that do not end in time are abandoned. Returns
    /// a note for each with such requests, and logs how many frames the network interfaces have dropped. To be called
    /// on the event loop's thread after its end, when no vCPU runs any more.
    pub fn stop(&mut self) -> Vec<String> {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut notes = Vec::new();
        for (path, disk) in &self.disks {
            let count = disk.lock().unwrap_or_else(PoisonError::into_inner).device.drain(deadline);
            if count > 0 {
                let requests = if count == 1 { "request" } else { "requests" };
                notes.push(format!("disk '{}' did not answer: {count} {requests} abandoned", path.display()));
            }
        }
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        for (path, server) in &self.shares {
            let count = server.stop(deadline);
            if count > 0 {
                let requests = if count == 1 { "request" } else { "requests" };
                notes.push(format!("share '{}' did not answer: {count} {requests} abandoned", path.display()));
            }
        }
        for (_, disk) in &self.disks {
            disk.lock().unwrap_or_else(PoisonError::into_inner).device.wait(deadline);
        }
        for (tap, dropped) in &self.dropped {
            match dropped.load(Ordering::Relaxed) {
                0 => {}
                count => log::info!("frames of tap interface '{tap}' dropped: {count}"),
            }
        }
        notes
    }
}

impl Drop for VirtioDevices {
    fn drop(&mut self) {
        self.fast_path.stop();
    }
}

fn interrupt(vm: &Arc<VmFd>, gsi: u32, synchronous: bool) -> Result<Interrupt, Error> {
    if synchronous {
        let vm = vm.clone();
        return Ok(Interrupt::Inject(Box::new(move || {
            // An edge. It cannot fail: the GSI exists, as an irqfd would have had the same number.
            let _ = vm.set_irq_line(gsi, true);
            let _ = vm.set_irq_line(gsi, false);
        })));
    }
    irqfd(vm, gsi, "connect a virtio device's interrupt").map(Interrupt::Irqfd)
}

fn open_net(config: &NetConfig) -> Result<Net, Error> {
    let tap = Tap::open(&config.tap).map_err(|source| Error::Tap { tap: config.tap.clone(), source })?;
    let mac = config.mac.map_or_else(random_mac, Ok).map_err(Error::host("choose a MAC address"))?;
    let name = config.tap.clone();
    let on_gone = move || log::warn!("tap interface '{name}' was deleted; the guest sees the link go down");
    Ok(Net::new(tap, mac, Box::new(on_gone)))
}

/// A random address. One made from the tap's name would not be unique where two hosts share a network.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac).map_err(|error| io::Error::other(error.to_string()))?;
    mac[0] = mac[0] & 0xfc | 0x02; // locally administered, of one station
    Ok(mac)
}
