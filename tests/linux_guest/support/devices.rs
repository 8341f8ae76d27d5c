//! What guests need for virtio devices: a stock kernel has their drivers as modules.

use super::assets::read;
use super::guest::Guest;
use std::env;
use std::path::Path;

/// Shell lines that load the drivers, dependencies first, where they are modules. `order` lists them.
const LOAD: &str = "
modules=/lib/modules/$(uname -r)
for module in $(cat $modules/order 2>/dev/null); do insmod $modules/$module; done
";

/// Has `guest` load the drivers of its virtio devices, run `script`, and power off.
pub fn job(guest: Guest, script: &str) -> Guest {
    let modules = env::var_os("KICKVM_STOCK_MODULES").expect("the runner sets KICKVM_STOCK_MODULES");
    // Our own kernel finds no directory of its release in there.
    guest.archive(&read(Path::new(&modules))).job(&format!("{LOAD}{script}"))
}
