use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::layout::PAGE_SIZE;
use crate::sys::xattr::set_attribute;

const MIB: u64 = 1 << 20;

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kickvm-pack-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An archive's entry, as the kernel reads it (init/initramfs.c).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    inode: u32,
    mode: u32,
    links: u32,
    time: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

/// Reads an archive strictly: headers in place, padding of zeros, the trailer last.
fn read(archive: &[u8]) -> Vec<(Vec<u8>, Entry)> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        let header = &archive[at..at + 110];
        assert_eq!(&header[..6], b"070701", "at {at}");
        let field = |n: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).unwrap();
            u32::from_str_radix(digits, 16).unwrap()
        };
        let (name_size, size) = (field(11) as usize, field(6) as usize);
        let padded = |at: usize| at.next_multiple_of(4);
        let name_end = at + 110 + name_size;
        assert_eq!(archive[name_end - 1], 0);
        let name = archive[at + 110..name_end - 1].to_vec();
        let start = padded(name_end);
        let content = archive[start..start + size].to_vec();
        at = padded(start + size);
        assert!(archive[name_end..start].iter().chain(&archive[start + size..at]).all(|byte| *byte == 0), "padding");
        if name == b"TRAILER!!!" {
            assert_eq!(at, archive.len());
            return entries;
        }
        let entry = Entry {
            inode: field(0),
            mode: field(1),
            links: field(4),
            time: field(5),
            device: (field(9), field(10)),
            content,
        };
        entries.push((name, entry));
    }
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 256 << 20)]).unwrap()
}

const RANGE: Range<u64> = 2 * MIB..256 * MIB;

/// Packs `root`. Returns the entries without those that every archive begins with, and the warnings.
fn packed(root: &RootfsSpec) -> (Vec<(Vec<u8>, Entry)>, Vec<String>) {
    let memory = memory();
    let (written, warnings) = root.pack(&memory, RANGE).unwrap();
    let mut bytes = vec![0; usize::try_from(written.len).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(RANGE.start)).unwrap();
    let mut entries = read(&bytes);
    let first: Vec<_> = entries.drain(..3).map(|(name, _)| name).collect();
    assert_eq!(first, [&b"."[..], b"dev", b"dev/console"]);
    (entries, warnings)
}

fn directory(path: &Path) -> RootfsSpec {
    RootfsSpec { directory: Some(path.to_owned()), ..RootfsSpec::default() }
}

#[test]
fn kinds_modes_times_and_links_are_kept_in_the_order_of_names() {
    let root = Directory::new();
    let at = |name: &str| root.0.join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/file"), b"content").unwrap();
    fs::set_permissions(at("sub/file"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(at("sub/file"), at("a link")).unwrap();
    symlink("sub/file", at("soft")).unwrap();
    symlink("loop", at("loop")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let (entries, warnings) = packed(&directory(&root.0));
    let names: Vec<_> = entries.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(names, [&b"."[..], b"a link", b"fifo", b"loop", b"soft", b"sub", b"sub/file"]);
    assert_eq!(warnings, ["'socket' is left out: it is a socket"]);
    let entry = |name: &[u8]| &entries.iter().find(|(it, _)| it == name).unwrap().1;
    let stat = fs::metadata(at("sub/file")).unwrap();
    let (link, file) = (entry(b"a link"), entry(b"sub/file"));
    assert_eq!((link.mode, link.links, i64::from(link.time)), (stat.mode(), 2, stat.mtime()));
    // The first has the content, and the kernel links the second to it by the number.
    assert_eq!((&link.content[..], &file.content[..], link.inode), (&b"content"[..], &b""[..], file.inode));
    assert_eq!(entry(b"soft").content, b"sub/file");
    assert_eq!(entry(b"fifo").mode & libc::S_IFMT, libc::S_IFIFO);
    let numbers = entries.iter().filter(|(name, _)| name != b"sub/file").map(|(_, entry)| entry.inode);
    assert_eq!(numbers.collect::<std::collections::HashSet<_>>().len(), 6, "numbers are all different");
}

#[test]
fn overlays_get_parent_directories_and_new_files_come_last() {
    let root = Directory::new();
    fs::write(root.0.join("one"), b"1").unwrap();
    let addition = |guest: &str| Overlay::new(root.0.join("one"), guest);
    let new = NewFile { guest: "/etc/deep/new".into(), mode: 0o600, content: b"new".to_vec() };
    let root = RootfsSpec {
        overlays: vec![addition("/etc/deep/../one"), addition("two"), addition("/etc/three")],
        files: vec![new],
        ..RootfsSpec::default()
    };
    let (entries, _) = packed(&root);
    let names: Vec<_> = entries.iter().map(|(name, _)| String::from_utf8(name.clone()).unwrap()).collect();
    assert_eq!(names, ["etc", "etc/one", "two", "etc/three", "etc/deep", "etc/deep/new"]);
    assert_eq!((entries[5].1.mode, &entries[5].1.content[..]), (libc::S_IFREG | 0o600, &b"new"[..]));
}

/// On many hosts `/lib` is a symbolic link, and so it is in a root directory that was copied from one.
#[test]
fn an_overlay_goes_through_a_symbolic_link_of_the_root() {
    let root = Directory::new();
    fs::create_dir(root.0.join("usr")).unwrap();
    symlink("usr", root.0.join("lib")).unwrap();
    fs::write(root.0.join("usr/file"), b"").unwrap();
    let addition = Overlay::new(root.0.join("usr/file"), "/lib/new/file");
    let (entries, _) = packed(&RootfsSpec { overlays: vec![addition], ..directory(&root.0) });
    let libs: Vec<_> =
        entries.iter().filter(|(name, _)| name == b"lib").map(|(_, entry)| entry.mode & libc::S_IFMT).collect();
    assert_eq!(libs, [libc::S_IFLNK]);
    assert_eq!(entries.last().unwrap().0, b"usr/new/file");
}

/// Unpacks entries as the kernel does (init/initramfs.c): a map from names to inodes.
fn unpack(entries: &[(Vec<u8>, Entry)]) -> BTreeMap<Vec<u8>, std::rc::Rc<std::cell::RefCell<Entry>>> {
    let (mut files, mut links) = (BTreeMap::new(), BTreeMap::new());
    let kind = |entry: &Entry| entry.mode & libc::S_IFMT;
    for (name, entry) in entries {
        let new = || std::rc::Rc::new(std::cell::RefCell::new(entry.clone()));
        let is = |it: &std::rc::Rc<std::cell::RefCell<Entry>>| kind(&it.borrow());
        if files.get(name).is_some_and(|old| is(old) != kind(entry) || is(old) == libc::S_IFLNK) {
            let below = [name, &b"/"[..]].concat();
            assert!(!files.keys().any(|other: &Vec<u8>| other.starts_with(&below)), "a directory that is not empty");
            files.remove(name);
        }
        if entry.links > 1 && kind(entry) == libc::S_IFREG {
            if let Some(first) = links.get(&entry.inode) {
                files.remove(name);
                let first = files.get(first).expect("its first name is there").clone();
                files.insert(name.clone(), first);
                continue;
            }
            links.insert(entry.inode, name.clone());
        }
        files.entry(name.clone()).or_insert_with(new).replace(entry.clone());
    }
    files
}

fn names(entries: &[(Vec<u8>, Entry)]) -> Vec<String> {
    entries.iter().map(|(name, _)| String::from_utf8(name.clone()).unwrap()).collect()
}

#[test]
fn overlays_keep_the_directories_and_links_of_the_root() {
    let (root, overlay) = (Directory::new(), Directory::new());
    fs::create_dir_all(root.0.join("usr/lib/deep")).unwrap();
    fs::create_dir(root.0.join("tmp")).unwrap();
    fs::set_permissions(root.0.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    for (target, name) in [("/usr/../usr/lib", "lib"), ("lib", "link"), ("nowhere", "gone"), ("loop", "loop")] {
        symlink(target, root.0.join(name)).unwrap();
    }
    for name in ["lib/deep", "link", "gone", "loop", "own"] {
        fs::create_dir_all(overlay.0.join(name)).unwrap();
        fs::write(overlay.0.join(name).join("file"), b"").unwrap();
    }
    fs::set_permissions(overlay.0.join("own"), fs::Permissions::from_mode(0o700)).unwrap();
    let file = Overlay::new(overlay.0.join("own/file"), "/tmp/x");
    // What was only made on the way to a file takes the mode of the directory that comes for it.
    let early = Overlay::new(overlay.0.join("own/file"), "/own/early");
    let additions = vec![file, early, Overlay::new(&overlay.0, "/")];
    let (before, _) = packed(&directory(&root.0));
    let (entries, warnings) = packed(&RootfsSpec { overlays: additions, ..directory(&root.0) });
    assert_eq!((&entries[..before.len()], &warnings[..]), (&before[..], &[][..]));
    let added = &entries[before.len()..];
    let expected = ["tmp/x", "own", "own/early", "gone", "gone/file", "usr/lib/deep/file", "usr/lib/file"];
    assert_eq!(names(added), [&expected[..], &["loop", "loop/file", "own", "own/file"]].concat());
    assert_eq!(added[9].1.mode, libc::S_IFDIR | 0o700);
    let files = unpack(&entries);
    assert_eq!(files[&b"tmp"[..]].borrow().mode, libc::S_IFDIR | 0o1777);
    assert_eq!(files[&b"lib"[..]].borrow().mode & libc::S_IFMT, libc::S_IFLNK);
}

/// The archive is the upper layer of an overlay, which hides what is below it, attributes included.
#[test]
fn directories_and_links_of_a_root_below_are_kept() {
    let (root, overlay) = (Directory::new(), Directory::new());
    let at = |name: &str| root.0.join(name);
    fs::create_dir_all(at("usr/lib/sub")).unwrap();
    fs::create_dir(at("tmp")).unwrap();
    fs::set_permissions(at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("/usr/lib", at("lib")).unwrap();
    fs::create_dir_all(overlay.0.join("lib/sub")).unwrap();
    fs::write(overlay.0.join("lib/sub/file"), b"").unwrap();
    let overlays = vec![Overlay::new(&overlay.0, "/"), Overlay::new(overlay.0.join("lib/sub/file"), "/tmp/x")];
    let (entries, warnings) = packed(&RootfsSpec { below: Some(root.0.clone()), overlays, ..RootfsSpec::default() });
    assert_eq!(names(&entries), ["lib", "usr", "usr/lib", "usr/lib/sub", "usr/lib/sub/file", "tmp", "tmp/x"]);
    assert!(warnings.is_empty());
    assert_eq!(entries[0].1.content, b"/usr/lib");
    assert_eq!((entries[5].1.mode, entries[5].1.time), {
        let stat = fs::metadata(at("tmp")).unwrap();
        (stat.mode(), u32::try_from(stat.mtime()).unwrap())
    });
}

#[test]
fn a_file_that_replaces_a_hard_link_is_a_new_file() {
    let (root, new) = (Directory::new(), Directory::new());
    let at = |name: &str| root.0.join(name);
    fs::create_dir(at("bin")).unwrap();
    fs::write(at("bin/busybox"), b"busybox").unwrap();
    for name in ["bin/ash", "bin/sh", "top"] {
        fs::hard_link(at("bin/busybox"), at(name)).unwrap();
    }
    symlink("bin", at("sbin")).unwrap();
    fs::write(new.0.join("my-sh"), b"mine").unwrap();
    let content = |additions: Vec<Overlay>| {
        let (entries, _) = packed(&RootfsSpec { overlays: additions, ..directory(&root.0) });
        let files = unpack(&entries);
        let names = ["bin/ash", "bin/busybox", "bin/sh", "top"];
        names.map(|name| String::from_utf8(files[name.as_bytes()].borrow().content.clone()).unwrap())
    };
    assert_eq!(content(vec![]), ["busybox"; 4]);
    let mine = |guest: &str| Overlay::new(new.0.join("my-sh"), guest);
    assert_eq!(content(vec![mine("/bin/sh")]), ["busybox", "busybox", "mine", "busybox"]);
    assert_eq!(content(vec![mine("/sbin/ash")]), ["mine", "busybox", "busybox", "busybox"]);
    // The same file again, and a file whose first name became another's.
    assert_eq!(content(vec![Overlay::new(at("top"), "/bin/ash")]), ["busybox"; 4]);
    assert_eq!(content(vec![mine("/bin/ash"), Overlay::new(at("top"), "/bin/sh")])[2], "busybox");
    assert_eq!(content(vec![mine("/bin/ash"), Overlay::new(&root.0, "/")]), ["busybox"; 4]);
    // Two names on the host that are one in the guest.
    fs::create_dir_all(new.0.join("sbin")).unwrap();
    fs::create_dir_all(new.0.join("bin")).unwrap();
    fs::write(new.0.join("bin/sh"), b"both").unwrap();
    fs::hard_link(new.0.join("bin/sh"), new.0.join("sbin/sh")).unwrap();
    assert_eq!(content(vec![Overlay::new(&new.0, "/")])[2], "both");
}

/// For each file with several links, the kernel allocates space for the longest name.
#[test]
fn only_a_file_with_several_names_in_the_tree_has_links() {
    let (root, other) = (Directory::new(), Directory::new());
    fs::write(root.0.join("a"), b"").unwrap();
    fs::hard_link(root.0.join("a"), other.0.join("a")).unwrap();
    let unpacked = |root: &RootfsSpec| root.pack(&memory(), RANGE).unwrap().0.unpacked;
    let (entries, _) = packed(&directory(&root.0));
    assert_eq!(entries[1].1.links, 1);
    let one = unpacked(&directory(&root.0));
    for (name, links) in [("b", 3), ("c", 4)] {
        fs::hard_link(root.0.join("a"), root.0.join(name)).unwrap();
        let (entries, _) = packed(&directory(&root.0));
        assert!(entries[1..].iter().all(|(_, entry)| entry.links == links), "{entries:?}");
    }
    assert_eq!(unpacked(&directory(&root.0)) - one, 2 * 1024 + 8192);
}

#[test]
fn a_file_goes_into_a_directory() {
    let (root, new) = (Directory::new(), Directory::new());
    fs::create_dir_all(root.0.join("usr/bin")).unwrap();
    symlink("usr/bin", root.0.join("bin")).unwrap();
    fs::write(new.0.join("tool"), b"").unwrap();
    for (guest, name) in [
        ("/", "tool"),
        ("/new/", "new/tool"),
        ("/usr/bin", "usr/bin/tool"),
        ("/bin", "usr/bin/tool"),
        ("/bin/", "usr/bin/tool"),
        ("bin/other", "usr/bin/other"),
    ] {
        let additions = vec![Overlay::new(new.0.join("tool"), guest)];
        let (entries, _) = packed(&RootfsSpec { overlays: additions, ..directory(&root.0) });
        assert_eq!(names(&entries).last().unwrap(), name, "{guest}");
    }
}

#[test]
fn entries_that_the_kernel_would_skip_are_left_out() {
    let (root, overlay) = (Directory::new(), Directory::new());
    fs::create_dir(root.0.join("etc")).unwrap();
    fs::write(root.0.join("TRAILER!!!"), b"").unwrap();
    fs::write(overlay.0.join("etc"), b"").unwrap();
    fs::write(overlay.0.join("last"), b"").unwrap();
    let long = "x/".repeat((4095 - "last".len()) / 2);
    let additions = vec![Overlay::new(&overlay.0, "/"), Overlay::new(overlay.0.join("last"), format!("{long}/last"))];
    let (entries, warnings) = packed(&RootfsSpec { overlays: additions, ..directory(&root.0) });
    assert_eq!(
        (&names(&entries)[..3], entries.last().unwrap().0.len()),
        (&[".", "etc", "last"].map(String::from)[..], 4094)
    );
    assert_eq!(
        warnings,
        ["'TRAILER!!!' is left out: that name ends an initramfs", "'etc' is left out: a directory has the same name"]
    );
    fs::write(overlay.0.join("longer"), b"").unwrap();
    let (_, warnings) =
        packed(&RootfsSpec { overlays: vec![Overlay::new(&overlay.0, &long)], ..RootfsSpec::default() });
    assert!(
        warnings.len() == 1 && warnings[0].ends_with("longer' is left out: its path in the guest would be too long")
    );
    for guest in [format!("{long}/longer"), "x".repeat(256), "/etc".into()] {
        fs::create_dir_all(root.0.join("etc/last")).unwrap();
        let root = RootfsSpec { overlays: vec![Overlay::new(overlay.0.join("last"), guest)], ..directory(&root.0) };
        let error = root.pack(&memory(), RANGE).unwrap_err().to_string();
        assert!(
            error.ends_with("/last': its path in the guest would be too long")
                || error.ends_with("/last': a directory has the same name"),
            "{error}"
        );
    }
}

#[test]
fn content_that_is_missing_is_zeros() {
    let root = Directory::new();
    let path = root.0.join("short");
    fs::write(&path, b"short").unwrap();
    let (memory, file) = (memory(), fs::File::open(&path).unwrap());
    memory.write_slice(&[0xff; 8192], GuestAddress(MIB)).unwrap();
    let mut archive = Archive::new(&memory, MIB..2 * MIB, None);
    let done = archive.read(std::os::fd::AsFd::as_fd(&file), MIB..MIB + 5000).unwrap();
    let mut bytes = [1; 5001];
    memory.read_slice(&mut bytes, GuestAddress(MIB)).unwrap();
    assert_eq!((done, &bytes[..5]), (5, &b"short"[..]));
    assert!(bytes[5..5000].iter().all(|byte| *byte == 0) && bytes[5000] == 0xff);
}

#[test]
fn a_mount_point_is_a_directory_without_files() {
    assert_ne!(fs::metadata("/dev").unwrap().dev(), fs::metadata("/dev/pts").unwrap().dev(), "no mount to test with");
    let (entries, warnings) = packed(&directory(Path::new("/dev")));
    assert!(
        entries.iter().any(|(name, _)| name == b"pts") && !entries.iter().any(|(name, _)| name.starts_with(b"pts/"))
    );
    assert!(
        warnings.iter().any(|warning| warning.starts_with("'pts' is left out: another file system")),
        "{warnings:?}"
    );
}

#[test]
fn a_root_that_is_not_a_directory_is_an_error() {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (path, why) in [
        ("/no/such", "cannot pack '/no/such': No such file or directory"),
        ("/dev/null", "cannot use --root '/dev/null': it is not a regular file"),
        (own, &format!("cannot unpack '{own}': it is neither a directory nor a tar archive")),
    ] {
        let error = directory(Path::new(path)).pack(&memory(), RANGE).unwrap_err();
        assert_eq!(error.to_string(), why);
    }
}

/// The same tree, as a directory and as tar archives of it.
#[test]
fn a_tar_archive_is_packed_like_its_directory() {
    let root = Directory::new();
    let at = |name: &str| root.0.join(name);
    fs::create_dir_all(at("usr/lib")).unwrap();
    fs::write(at("usr/lib/file"), b"content").unwrap();
    fs::set_permissions(at("usr/lib/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::write(at(&"n".repeat(200)), b"long").unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::hard_link(at("usr/lib/file"), at("usr/link")).unwrap();
    symlink("usr/lib", at("lib")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    // Inode numbers differ, and the number of links is what tar does not store.
    let sorted = |spec: &RootfsSpec| {
        let (entries, warnings) = packed(spec);
        let contents: BTreeMap<_, _> = entries
            .iter()
            .filter(|(_, it)| !it.content.is_empty())
            .map(|(_, it)| (it.inode, it.content.clone()))
            .collect();
        let by_name = |(name, entry): (Vec<u8>, Entry)| {
            let content = contents.get(&entry.inode).cloned().unwrap_or_default();
            (name, Entry { inode: 0, links: 0, content, ..entry })
        };
        (entries.into_iter().map(by_name).collect::<BTreeMap<_, _>>(), warnings)
    };
    let expected = sorted(&directory(&root.0));
    let files = Directory::new();
    for (option, name) in [("", "x.tar"), ("-z", "x.tar.gz"), ("-J", "x.tar.xz"), ("--zstd", "x.tar.zst")] {
        let path = files.0.join(name);
        let mut tar = std::process::Command::new("tar");
        tar.args(Some(option).filter(|option| !option.is_empty()))
            .arg("-cf")
            .arg(&path)
            .arg("-C")
            .arg(&root.0)
            .arg(".");
        assert!(tar.status().unwrap().success());
        let found = sorted(&directory(&path));
        assert_eq!(found, expected, "{name}");
        let content = fs::read(&path).unwrap();
        fs::write(&path, &content[..content.len() / 2]).unwrap();
        let error = directory(&path).pack(&memory(), RANGE).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot unpack '{}': ", path.display())), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_measured_and_not_written() {
    let root = Directory::new();
    fs::write(root.0.join("large"), vec![1; 40 << 20]).unwrap();
    fs::write(root.0.join("last"), b"last").unwrap();
    let memory = memory();
    let whole = directory(&root.0).pack(&memory, RANGE).unwrap().0;
    assert!(whole.len > 40 * MIB && whole.unpacked > 40 * MIB, "{whole:?}");
    for end in [32 * MIB, 2 * MIB + 100, 2 * MIB] {
        memory.write_slice(&[0xaa; 4096], GuestAddress(end)).unwrap();
        let (written, warnings) = directory(&root.0).pack(&memory, RANGE.start..end).unwrap();
        assert_eq!((written, &warnings[..]), (whole, &[][..]));
        let mut after = [0; 4096];
        memory.read_slice(&mut after, GuestAddress(end)).unwrap();
        assert!(after == [0xaa; 4096], "nothing is written after the range");
    }
    let enough = RANGE.start..RANGE.start + whole.len;
    assert_eq!(directory(&root.0).pack(&memory, enough).unwrap().0, whole);
}

#[test]
fn a_tree_is_packed_however_deep_it_is() {
    crate::sys::rlimit::raise_nofile_limit(); // each level has a descriptor
    let root = Directory::new();
    let mut open = fs::File::open(&root.0).unwrap();
    for _ in 0..2040 {
        nix::sys::stat::mkdirat(&open, "d", nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
        open = nix::fcntl::openat(&open, "d", flags, nix::sys::stat::Mode::empty()).unwrap().into();
    }
    nix::unistd::symlinkat("here", &open, "leaf").unwrap();
    // A test's thread has 2 MiB of stack; so little is enough.
    let small = std::thread::Builder::new().stack_size(128 << 10);
    let spec = directory(&root.0);
    let (entries, warnings) = small.spawn(move || packed(&spec)).unwrap().join().unwrap();
    assert_eq!((entries.len(), &warnings[..]), (2042, &[][..]));
    assert_eq!(entries[2041].0, ["d/".repeat(2040).as_bytes(), b"leaf"].concat());
}

#[test]
fn warnings_are_limited_to_ten_and_a_count() {
    let root = Directory::new();
    let sockets: Vec<_> = (0..30).map(|n| UnixListener::bind(root.0.join(n.to_string())).unwrap()).collect();
    let (_, warnings) = packed(&directory(&root.0));
    assert_eq!((warnings.len(), warnings[10].as_str(), sockets.len()), (11, "20 more like these", 30));
}

#[test]
fn the_loaded_part_of_a_program_runs() {
    let root = Directory::new();
    let whole = fs::read("/proc/self/exe").unwrap();
    let program = Overlay { strip: true, ..Overlay::new("/proc/self/exe", "program") };
    let text = Overlay { strip: true, ..Overlay::new("/proc/self/../../etc/passwd", "text") };
    let (entries, warnings) = packed(&RootfsSpec { overlays: vec![program, text], ..RootfsSpec::default() });
    let part = &entries[0].1.content;
    assert!(part.len() < whole.len() && whole.starts_with(part) && warnings.is_empty());
    assert_eq!(entries[1].1.content, fs::read("/etc/passwd").unwrap(), "a file that is not an executable is whole");
    let path = root.0.join("program");
    fs::write(&path, part).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(std::process::Command::new(&path).arg("--list").output().unwrap().status.success());
}

/// Any name that a file can have.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("a name's byte", |byte| !matches!(byte, 0 | b'/'));
    proptest::collection::vec(byte, 1..40).prop_filter("a name", |name| name != b"." && name != b"..")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_read_back_as_it_is(
        files in proptest::collection::btree_map(
            (0usize..4, name()),
            proptest::collection::vec(any::<u8>(), 0..9000),
            0..30,
        ),
    ) {
        let root = Directory::new();
        let mut expected = BTreeMap::new();
        for ((depth, name), content) in &files {
            let mut path = Vec::new();
            for level in 0..*depth {
                path.extend_from_slice(format!("dir{level}/").as_bytes());
            }
            fs::create_dir_all(root.0.join(OsStr::from_bytes(&path))).unwrap();
            path.extend_from_slice(name);
            if name.starts_with(b"dir") || fs::write(root.0.join(OsStr::from_bytes(&path)), content).is_err() {
                continue; // some file systems do not accept every name
            }
            expected.insert(path, content.clone());
        }
        let (entries, warnings) = packed(&directory(&root.0));
        let found: BTreeMap<_, _> = entries
            .into_iter()
            .filter(|(_, entry)| entry.mode & libc::S_IFMT == libc::S_IFREG)
            .map(|(name, entry)| (name, entry.content))
            .collect();
        prop_assert!(found == expected);
        prop_assert!(warnings.is_empty());
        prop_assert_eq!(RANGE.start % PAGE_SIZE, 0);
    }

    #[test]
    fn any_bytes_are_no_panic_as_an_executable(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
        magic in any::<bool>(),
    ) {
        if magic && bytes.len() > 64 {
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
            bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
            bytes[56..58].copy_from_slice(&4u16.to_le_bytes());
            bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        }
        let root = Directory::new();
        let path = root.0.join("file");
        fs::write(&path, &bytes).unwrap();
        let _ = libraries_of(&path);
        let _ = elf::loaded_len(&path);
    }
}

#[test]
fn all_files_belong_to_the_owner_that_is_given() {
    let root = Directory::new();
    fs::create_dir(root.0.join("sub")).unwrap();
    fs::write(root.0.join("sub/file"), b"x").unwrap();
    symlink("file", root.0.join("sub/link")).unwrap();
    let spec = RootfsSpec { owner: Some((7, 8)), ..directory(&root.0) };
    let memory = memory();
    let (written, _) = spec.pack(&memory, RANGE).unwrap();
    let mut bytes = vec![0; usize::try_from(written.len).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(RANGE.start)).unwrap();
    for name in ["sub\0", "sub/file\0", "sub/link\0"] {
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() - 110;
        assert_eq!(&bytes[at + 22..at + 38], b"0000000700000008", "{name}");
    }
}

#[test]
fn lost_attributes_are_reported_once() {
    let root = Directory::new();
    for name in ["a", "b"] {
        let file = fs::File::create(root.0.join(name)).unwrap();
        if !set_attribute(file.as_fd(), c"user.kickvm") {
            println!("lost_attributes_are_reported_once could not run: {} has no attributes", root.0.display());
            return;
        }
    }
    let what = "an initramfs has no capabilities, access control lists and other extended attributes";
    assert_eq!(packed(&directory(&root.0)).1, [format!("{what}; 2 files had some: user.kickvm of 'a'")]);
}
