//! Kernels by name, and the modules that the guest needs from the host.

use super::run::{Ended, Exec};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

on_kernel!(
    stock_only,
    Stock,
    a_package_has_the_modules_for_the_devices,
    modules_are_decompressed_and_need_no_depmod,
    a_missing_driver_is_named,
    a_driver_that_the_guest_lacks_is_a_warning,
    an_initramfs_of_lz4
);
on_kernel!(ours, Pvh, a_compressed_kernel, an_initramfs_that_the_kernel_cannot_unpack);

/// The stock kernel as `dpkg -x` unpacks its package. Returns the command line, and the directory of its modules.
pub fn package(exec: Exec) -> (Exec, PathBuf) {
    let directory = exec.scratch.path().join("package");
    let modules = directory.join("lib/modules").join(&exec.assets.release);
    fs::create_dir_all(directory.join("boot")).unwrap();
    fs::create_dir_all(&modules).unwrap();
    fs::copy(&exec.assets.kernel, directory.join("boot/vmlinuz")).unwrap();
    for entry in fs::read_dir(exec.assets.kernel.with_file_name("modules")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), modules.join(entry.file_name())).unwrap();
    }
    (exec.with_kernel(&directory), modules)
}

/// Prints the size of a disk of 8 sectors.
fn disk_size(exec: Exec) -> Ended {
    let disk = exec.scratch.file("disk", &[0; 4096]);
    exec.options(&["--disk".as_ref(), disk.as_os_str()]).sh("busybox cat /sys/block/vda/size; busybox ls -A /.kickvm")
}

fn a_package_has_the_modules_for_the_devices(exec: Exec) {
    disk_size(package(exec).0).assert(0, "8\ninit\n", "");
}

fn modules_are_decompressed_and_need_no_depmod(exec: Exec) {
    let (exec, modules) = package(exec);
    fs::remove_file(modules.join("modules.dep")).unwrap();
    for (name, program) in [("virtio_blk.ko", "xz"), ("virtio_mmio.ko", "gzip")] {
        assert!(Command::new(program).arg(modules.join(name)).status().unwrap().success());
    }
    disk_size(exec).assert(0, "8\ninit\n", "");
}

fn a_missing_driver_is_named(exec: Exec) {
    let (exec, modules) = package(exec);
    let line = format!(
        "kickvm: --disk needs the driver virtio_mmio (CONFIG_VIRTIO_MMIO, module virtio_mmio), but kernel {} does not have \
         it built in, and '{}' has no such module\n",
        exec.assets.release,
        modules.display()
    );
    fs::write(modules.join("modules.builtin"), "kernel/drivers/tty/serial/8250/8250.ko\n").unwrap();
    fs::write(modules.join("modules.dep"), "virtio_blk.ko:\n").unwrap();
    disk_size(exec).assert(125, "", &line);
}

/// Neither modules nor a configuration are beside the kernel: only the guest can find out.
fn a_driver_that_the_guest_lacks_is_a_warning(exec: Exec) {
    let warning = "kickvm: warning: --disk has no effect yet: the kernel has no driver virtio_mmio (CONFIG_VIRTIO_MMIO, module \
                   virtio_mmio); to load a module, give --kernel the directory with boot/ and lib/modules\n";
    let disk = exec.scratch.file("disk", &[0; 4096]);
    exec.options(&["--disk".as_ref(), disk.as_os_str()]).sh("exit 3").assert(3, "", warning);
}

fn a_compressed_kernel(exec: Exec) {
    let compressed = exec.scratch.path().join("vmlinux.gz");
    let gzip = Command::new("gzip").arg("-1c").arg(&exec.assets.kernel).output().unwrap();
    fs::write(&compressed, gzip.stdout).unwrap();
    exec.with_kernel(&compressed).sh("exit 3").assert(3, "", "");
}

/// The test initramfs, compressed by `lz4 -l`. The archive of `exec` follows it.
fn with_lz4(exec: Exec) -> Ended {
    let lz4 = Command::new("lz4").arg("-lqc").arg(&exec.assets.initramfs).output().unwrap();
    let archive = exec.scratch.file("initramfs.lz4", &lz4.stdout);
    exec.options(&["--initramfs".as_ref(), archive.as_os_str()]).run(&["sh", "-c", "head -n 1 /init"])
}

fn an_initramfs_of_lz4(exec: Exec) {
    with_lz4(exec).assert(0, "#!/bin/sh\n", "");
}

fn an_initramfs_that_the_kernel_cannot_unpack(exec: Exec) {
    let ended = with_lz4(exec);
    let note = "kickvm: this kernel cannot unpack an initramfs that lz4 has compressed: it lacks CONFIG_RD_LZ4";
    assert_eq!(ended.status.code(), Some(120), "{}", ended.stderr);
    assert!(ended.stderr.lines().any(|line| line == note), "{}", ended.stderr);
}
