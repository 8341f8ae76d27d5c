//! Whether this user can open `/dev/kvm`.

use std::fs::OpenOptions;

pub fn has_kvm() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/dev/kvm: {error}")),
    }
}
