//! Drivers of virtio devices: a stock kernel has them as modules.

use super::assets::read;
use super::guest::Guest;
use std::env;
use std::path::Path;

/// Shell lines that load the drivers in the order of the file `order`, dependencies first, if they are modules.
const LOAD: &str = "
modules=/lib/modules/$(uname -r)
for module in $(cat $modules/order 2>/dev/null); do insmod $modules/$module; done
";

/// Makes `guest` load the drivers of its virtio devices, run `script`, and power off.
pub fn job(guest: Guest, script: &str) -> Guest {
    let modules = env::var_os("KICKVM_STOCK_MODULES").expect("the runner sets KICKVM_STOCK_MODULES");
    // Our own kernel has its drivers built in: the archive has no directory for its release.
    guest.archive(&read(Path::new(&modules))).job(&format!("{LOAD}{script}"))
}
