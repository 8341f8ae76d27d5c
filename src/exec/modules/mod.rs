//! The modules of a guest's kernel: where they are on the host, which ones the guest needs, and whether the kernel has
//! a driver at all.
//!
//! [`KernelModules::find`] searches for the directory that belongs to the kernel's release. [`KernelModules::support`]
//! states whether a driver is built in, a module, or missing. [`KernelModules::collect`] reads modules with those that
//! they need, in the order in which the guest's init loads them.

mod directory;

pub use directory::{Module, ModuleDirectory};

use std::fs;
use std::path::{Path, PathBuf};

use crate::boot::{self, MODULE_DIRECTORIES, RELEASE_FILE, embedded_config, kernel_release, retain_distinct};
use crate::vmm::VMMConfig;

/// The directories above a kernel in which its modules are searched for: a build tree is the fourth above its bzImage.
const MAX_ABOVE: usize = 4;
/// The most bytes of a kernel configuration that are read.
const MAX_CONFIG: u64 = 4 << 20;

/// The symbols of drivers in the kernel's configuration, by the name of the module.
const SYMBOLS: [(&str, &str); 9] = [
    ("virtio_mmio", "CONFIG_VIRTIO_MMIO"),
    ("virtio_blk", "CONFIG_VIRTIO_BLK"),
    ("virtio_net", "CONFIG_VIRTIO_NET"),
    ("vmw_vsock_virtio_transport", "CONFIG_VIRTIO_VSOCKETS"),
    ("virtio_balloon", "CONFIG_VIRTIO_BALLOON"),
    ("virtio_rng", "CONFIG_HW_RANDOM_VIRTIO"),
    ("fuse", "CONFIG_FUSE_FS"),
    ("virtiofs", "CONFIG_VIRTIO_FS"),
    ("overlay", "CONFIG_OVERLAY_FS"),
];

/// How a kernel has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As a part of the kernel.
    BuiltIn,
    /// As a module that the host has.
    Module,
    /// Not at all, or as a module that the host does not have.
    Missing,
    /// The host has neither the kernel's modules nor its configuration.
    Unknown,
}

/// What the host has of a kernel besides its image.
#[derive(Debug, Default)]
pub struct KernelModules {
    image: PathBuf,
    release: String,
    directories: Vec<ModuleDirectory>,
    config: Option<String>,
}

impl KernelModules {
    /// Searches for the modules and the configuration of the kernel `image`: beside it, then in `root`, then on the
    /// host.
    ///
    /// # Errors
    ///
    /// The image cannot be read, or is not a kernel.
    pub fn find(image: &Path, root: Option<&Path>) -> Result<Self, boot::Error> {
        let Some(release) = kernel_release(image)? else { return Ok(Self::default()) };
        let image = std::path::absolute(image).unwrap_or_else(|_| image.to_owned());
        let above: Vec<_> = image.ancestors().skip(1).take(MAX_ABOVE).collect();
        let roots = above.iter().copied().chain(root).chain([Path::new("/")]);
        let mut paths: Vec<PathBuf> = above.iter().filter(|tree| is_of(tree, &release)).map(PathBuf::from).collect();
        paths.extend(roots.clone().flat_map(|root| MODULE_DIRECTORIES.map(|name| root.join(name).join(&release))));
        retain_distinct(&mut paths);
        let directories: Vec<_> = paths.iter().filter_map(|path| ModuleDirectory::open(path).ok()).collect();
        let configs = above.iter().filter(|tree| is_of(tree, &release)).map(|tree| tree.join(".config"));
        let configs = configs.chain(above.first().map(|directory| directory.join(format!("config-{release}"))));
        let configs = configs.chain(paths.iter().map(|path| path.join("config")));
        let mut configs = configs.chain(roots.map(|root| root.join(format!("boot/config-{release}"))));
        let config = configs.find_map(|path| read_config(&path));
        Ok(Self { image: image.clone(), release, directories, config })
    }

    /// How the kernel has the driver or file system whose module is called `module`.
    pub fn support(&self, module: &str) -> Support {
        let builtin = || self.directories.iter().filter_map(|directory| directory.has_builtin(module));
        if builtin().any(|is_builtin| is_builtin) {
            Support::BuiltIn
        } else if self.directories.iter().any(|directory| directory.has_module(module)) {
            Support::Module
        } else if let (Some(config), Some(symbol)) = (&self.config, symbol(module)) {
            let line = format!("{symbol}=y");
            if config.lines().any(|it| it == line) { Support::BuiltIn } else { Support::Missing }
        } else if builtin().next().is_some() {
            Support::Missing
        } else {
            Support::Unknown
        }
    }

    /// Reads the configuration in the image, if the host has no other, and if a driver in `modules` would be
    /// [unknown](Support::Unknown) without it. This takes some time: a bzImage must be unpacked.
    ///
    /// # Errors
    ///
    /// The image cannot be read.
    pub fn read_embedded_config(&mut self, modules: &[&str]) -> Result<(), boot::Error> {
        let is_unknown = |module: &&str| self.support(module) == Support::Unknown;
        if self.config.is_none() && !self.release.is_empty() && modules.iter().any(is_unknown) {
            self.config = embedded_config(&self.image)?;
        }
        Ok(())
    }

    /// Reads the modules `names` and those that they need. Parts of the kernel are left out.
    ///
    /// # Errors
    ///
    /// A module cannot be read, or one that it needs is missing. The error is a message for the user.
    pub fn collect<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Module>, String> {
        let mut modules = Vec::new();
        for name in names.into_iter().filter(|name| self.support(name) == Support::Module) {
            for directory in &self.directories {
                if directory.add(name, &mut modules)? {
                    break;
                }
            }
        }
        Ok(modules)
    }

    /// The message for drivers that are missing, which `user` needs.
    pub fn missing(&self, modules: &[&str], user: &str) -> String {
        let name = |module: &&str| {
            let symbol = symbol(module).map_or(String::new(), |symbol| format!("{symbol}, "));
            format!("{module} ({symbol}module {module})")
        };
        let names = modules.iter().map(name).collect::<Vec<_>>().join(" and ");
        let [drivers, them, module] =
            if modules.len() == 1 { ["driver", "it", "module"] } else { ["drivers", "them", "modules"] };
        let places: Vec<_> = self.directories.iter().map(|it| format!("'{}'", it.path().display())).collect();
        let places = if places.is_empty() { "lib/modules".to_owned() } else { places.join(", ") };
        let Self { release, .. } = self;
        format!(
            "{user} needs the {drivers} {names}, but kernel {release} does not have {them} built in, and {places} has no \
             such {module}"
        )
    }
}

/// The place in sysfs of a driver for a virtio device, of the transport, or of a file system, if the kernel has it.
pub fn driver_path(module: &str) -> PathBuf {
    match module {
        "overlay" => "/sys/module/overlay".into(),
        "virtio_mmio" => "/sys/bus/platform/drivers/virtio-mmio".into(),
        _ => Path::new("/sys/bus/virtio/drivers").join(module),
    }
}

/// Whether `tree` has the output of the build of this release.
fn is_of(tree: &Path, release: &str) -> bool {
    fs::read_to_string(tree.join(RELEASE_FILE)).is_ok_and(|text| text.trim_end() == release)
}

fn read_config(path: &Path) -> Option<String> {
    fs::metadata(path).ok().filter(|file| file.is_file() && file.len() <= MAX_CONFIG)?;
    fs::read_to_string(path).ok()
}

/// The symbol of a driver in the kernel's configuration.
pub fn symbol(module: &str) -> Option<&'static str> {
    SYMBOLS.iter().find(|(name, _)| *name == module).map(|(_, symbol)| *symbol)
}

/// The modules that the devices of `vmm` need, each with the option that requests the device.
pub fn needed_by_devices(vmm: &VMMConfig) -> Vec<(&'static str, &'static str)> {
    let devices = [
        (!vmm.disks.is_empty(), "virtio_blk", "--disk"),
        (!vmm.nets.is_empty(), "virtio_net", "--net"),
        (vmm.vsock.is_some(), "vmw_vsock_virtio_transport", "--vsock"),
        (vmm.balloon.is_some(), "virtio_balloon", "--balloon"),
        (!vmm.shares.is_empty(), "virtiofs", "--share"),
        (vmm.shares.iter().any(|share| share.stable), "overlay", "--share"),
    ];
    let requested: Vec<_> =
        devices.iter().filter(|(is_used, ..)| *is_used).map(|(_, module, option)| (*module, *option)).collect();
    requested.first().map(|(_, option)| ("virtio_mmio", *option)).into_iter().chain(requested.iter().copied()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    /// A bzImage header with this release, in a file of a new directory with these other files.
    pub fn tree(image: &str, release: &str, files: &[(&str, &str)]) -> (TempDir, PathBuf) {
        let mut kernel = vec![0; 0x1000];
        for (at, bytes) in [
            (0x1f4, &[1][..]), // syssize
            (0x1f1, &[1]),     // setup_sects
            (0x202, b"HdrS\x0f\x02"),
            (0x20e, &[0, 4]), // kernel_version: at 0x600
            (0x236, &[1]),    // xloadflags
            (0x258, &[0, 0, 0x10]),
            (0x600, release.as_bytes()),
        ] {
            kernel[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let directory = TempDir::new().unwrap();
        let write = |path: &str, content: &[u8]| {
            let path = directory.as_path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        };
        files.iter().for_each(|(path, content)| drop(write(path, content.as_bytes())));
        let image = write(image, &kernel);
        (directory, image)
    }

    fn support(modules: &KernelModules) -> [Support; 3] {
        ["virtiofs", "fuse", "overlay"].map(|name| modules.support(name))
    }

    #[test]
    fn a_driver_is_built_in_a_module_missing_or_unknown() {
        use Support::{BuiltIn, Missing, Module, Unknown};
        const LIB: &str = "lib/modules/0.1-kickvm";
        let elf = "\x7fELF\0depends=fuse\0";
        let config =
            ("CONFIG_VIRTIO_FS=y\n# CONFIG_OVERLAY_FS is not set\nCONFIG_FUSE_FS=m\n", [BuiltIn, Missing, Missing]);
        let package =
            [(&*format!("{LIB}/modules.builtin"), "kernel/fs/fuse/fuse.ko\n"), (&format!("{LIB}/virtiofs.ko"), elf)];
        for (image, files, expected) in [
            ("boot/vmlinuz", &package[..], [Module, BuiltIn, Missing]),
            ("boot/vmlinuz", &[], [Unknown; 3]),
            ("boot/vmlinuz", &[("boot/config-0.1-kickvm", config.0)], config.1),
            ("boot/vmlinuz", &[("boot/config-0.2", config.0)], [Unknown; 3]),
            ("arch/x86/boot/bzImage", &[(RELEASE_FILE, "0.1-kickvm\n"), (".config", config.0)], config.1),
            ("arch/x86/boot/bzImage", &[(RELEASE_FILE, "0.2\n"), (".config", config.0)], [Unknown; 3]),
            (
                "arch/x86/boot/bzImage",
                &[
                    (RELEASE_FILE, "0.1-kickvm"),
                    ("modules.order", "fs/fuse/virtiofs.o\n"),
                    ("fs/fuse/virtiofs.ko", elf),
                ],
                [Module, Unknown, Unknown],
            ),
        ] {
            let (_directory, image) = tree(image, "0.1-kickvm (x)", files);
            let modules = KernelModules::find(&image, None).unwrap();
            assert_eq!(support(&modules), expected, "{files:?}");
        }
        let (root, _) = tree("boot/vmlinuz", "", &package);
        let (_directory, image) = tree("vmlinuz", "0.1-kickvm\0", &[]);
        let modules = KernelModules::find(&image, Some(root.as_path())).unwrap();
        assert_eq!(support(&modules), [Module, BuiltIn, Missing], "in the root");
        let names: Vec<_> =
            modules.collect(["virtiofs", "fuse"]).unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["virtiofs"]);
        let expected = format!(
            "--disk needs the driver virtio_mmio (CONFIG_VIRTIO_MMIO, module virtio_mmio), but kernel 0.1-kickvm does not have \
             it built in, and '{}/{LIB}' has no such module",
            root.as_path().display()
        );
        assert_eq!(modules.missing(&["virtio_mmio"], "--disk"), expected);
    }
}
