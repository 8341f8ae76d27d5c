//! Each request on a directory with a file next to it that no request may reach.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempdir::TempDir;

use super::super::{Buffer, Buffers, Chain};
use super::protocol::{OUT_HEADER, ROOT, op, valid};
use super::session::{Scratch, Session};
use super::table::Limits;
use super::{Share, protocol};

const RAM: usize = 4 << 20;
const LIMITS: Limits = Limits { open: 100, known: 1000 };
/// Where a request is, and where its reply.
const REQUEST: u64 = 0;
const REPLY: u64 = 2 << 20;
const ROOM: usize = 1 << 20;
const ROOM_32: u32 = 1 << 20;

struct Host {
    directory: TempDir,
    memory: GuestMemoryMmap,
}

impl Host {
    /// `share/` with a file, a directory, a symbolic link to the outside and a socket; and `canary` next to it.
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let host = Self { directory, memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap() };
        fs::create_dir_all(host.path("sub")).unwrap();
        fs::write(host.path("file"), b"content").unwrap();
        fs::write(host.path("other"), b"").unwrap();
        fs::write(host.path("../canary"), b"secret").unwrap();
        symlink("../canary", host.path("link")).unwrap();
        symlink("..", host.path("up")).unwrap();
        drop(UnixListener::bind(host.path("socket")).unwrap());
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.as_path().join("share").join(name)
    }

    fn share(&self, read_only: bool) -> Share {
        Share::open(&self.path(""), read_only, false).unwrap()
    }

    fn client<'a>(&'a self, share: &'a Share) -> Client<'a> {
        Client { session: Session::with_limits(share, LIMITS).unwrap(), memory: &self.memory }
    }
}

struct Client<'a> {
    session: Session<'a>,
    memory: &'a GuestMemoryMmap,
}

/// The bytes of a reply, or an error number.
type Answer = Result<Vec<u8>, i32>;

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn named(args: &[u32], names: &[&[u8]]) -> Vec<u8> {
    let mut bytes: Vec<u8> = args.iter().flat_map(|value| value.to_le_bytes()).collect();
    names.iter().for_each(|name| bytes.extend([*name, b"\0"].concat()));
    bytes
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Client<'_> {
    /// Sends bytes as they are. Returns the whole reply.
    fn send(&self, request: &[u8], room: usize) -> Vec<u8> {
        self.memory.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let mut chain = Chain { head: 0, readable: Buffers::default(), writable: Buffers::default() };
        // Two buffers each, split at an odd place.
        for (buffers, start, len) in [(&mut chain.readable, REQUEST, request.len()), (&mut chain.writable, REPLY, room)]
        {
            let first = len.min(13);
            buffers.push(Buffer { address: GuestAddress(start), len: first });
            buffers.push(Buffer { address: GuestAddress(start + first as u64), len: len - first });
        }
        let written = self.session.handle(self.memory, &mut chain, &mut Scratch::default());
        assert!(written <= room);
        let mut reply = vec![0; written];
        self.memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        reply
    }

    fn request(opcode: u32, node: u64, args: &[u8]) -> Vec<u8> {
        let len = u32::try_from(protocol::IN_HEADER + args.len()).unwrap();
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let header = [len, opcode, 77, 0].map(u32::to_le_bytes);
        let user = [uid, gid, 1, 0].map(u32::to_le_bytes);
        [header.as_flattened(), &node.to_le_bytes(), user.as_flattened(), args].concat()
    }

    fn call(&self, opcode: u32, node: u64, args: &[u8]) -> Answer {
        let reply = self.send(&Self::request(opcode, node, args), OUT_HEADER + ROOM);
        assert_eq!((word(&reply, 0) as usize, long(&reply, 8)), (reply.len(), 77));
        match word(&reply, 4).cast_signed() {
            0 => Ok(reply[OUT_HEADER..].to_vec()),
            error => {
                assert_eq!(reply.len(), OUT_HEADER);
                Err(-error)
            }
        }
    }

    fn lookup(&self, node: u64, name: &[u8]) -> Result<u64, i32> {
        self.call(op::LOOKUP, node, &named(&[], &[name])).map(|reply| long(&reply, 0))
    }

    fn open(&self, node: u64, flags: i32) -> Result<u64, i32> {
        self.call(op::OPEN, node, &named(&[flags.cast_unsigned(), 0], &[])).map(|reply| long(&reply, 0))
    }

    fn read(&self, handle: u64, offset: u64, size: u32) -> Answer {
        self.call(op::READ, ROOT, &[words(&[handle, offset, size.into()]), vec![0; 16]].concat())
    }

    fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let args = [words(&[handle, offset, data.len() as u64]), vec![0; 16], data.to_vec()].concat();
        self.call(op::WRITE, ROOT, &args).map(|reply| word(&reply, 0))
    }

    fn create(&self, name: &[u8], flags: i32, mode: u32) -> Result<(u64, u64), i32> {
        let reply = self.call(op::CREATE, ROOT, &named(&[flags.cast_unsigned(), mode, 0, 0], &[name]))?;
        Ok((long(&reply, 0), long(&reply, 128)))
    }

    fn setattr(&self, node: u64, set: u32, handle: u64, size: u64, mode: u32) -> Answer {
        let args =
            [words(&[set.into(), handle, size, 0, 1_000_000_000, 2_000_000_000, 0]), named(&[5, 6, 0, mode], &[])];
        self.call(op::SETATTR, node, &[args.concat(), vec![0; 16]].concat())
    }

    /// The names in a directory, from reads of this size.
    fn names(&self, node: u64, opcode: u32, size: u64) -> Vec<Vec<u8>> {
        let handle = long(&self.call(op::OPENDIR, node, &[0; 8]).unwrap(), 0);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let reply = self.call(opcode, node, &[words(&[handle, offset, size]), vec![0; 16]].concat()).unwrap();
            if reply.is_empty() {
                break;
            }
            assert!(reply.len() as u64 <= size);
            let mut rest = &reply[..];
            while !rest.is_empty() {
                rest = &rest[if opcode == op::READDIRPLUS { 128 } else { 0 }..];
                let len = word(rest, 16) as usize;
                offset = long(rest, 8);
                names.push(rest[24..24 + len].to_vec());
                rest = &rest[(24 + len).next_multiple_of(8)..];
            }
        }
        self.call(op::RELEASEDIR, node, &words(&[handle, 0, 0])).unwrap();
        names.sort();
        names
    }
}

#[test]
fn files_are_read_written_and_truncated() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let file = client.lookup(ROOT, b"file").unwrap();
    let handle = client.open(file, libc::O_RDWR).unwrap();
    assert_eq!(client.read(handle, 3, 100), Ok(b"tent".to_vec()));
    assert_eq!(client.read(handle, 7, 100), Ok(Vec::new()));
    assert_eq!(client.write(handle, 5, b"iner ship"), Ok(9));
    assert_eq!(fs::read(host.path("file")).unwrap(), b"conteiner ship");
    let data: Vec<u8> = (0..ROOM / 2).map(|n| n.to_le_bytes()[0]).collect();
    assert_eq!(client.write(handle, 1, &data), Ok(ROOM_32 / 2));
    assert_eq!(client.read(handle, 1, ROOM_32), Ok(data));
    client.setattr(file, valid::SIZE, 0, 3, 0).unwrap();
    client.setattr(file, valid::SIZE | valid::FH, handle, 5, 0).unwrap();
    assert_eq!(fs::read(host.path("file")).unwrap(), b"c\0\x01\0\0");
    client.call(op::FSYNC, file, &words(&[handle, 0])).unwrap();
    client.call(op::FLUSH, file, &words(&[handle, 0, 0])).unwrap();
    client.call(op::RELEASE, file, &words(&[handle, 0, 0])).unwrap();
    assert_eq!(client.read(handle, 0, 1), Err(libc::EBADF));
    // What the host changes is there at once.
    fs::write(host.path("file"), b"changed").unwrap();
    let handle = client.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(handle, 0, 100), Ok(b"changed".to_vec()));
    assert_eq!(client.write(handle, 0, b"x"), Err(libc::EBADF));
    let appended = client.open(file, libc::O_WRONLY | libc::O_APPEND).unwrap();
    assert_eq!(client.write(appended, 0, b"!"), Ok(1));
    assert_eq!(fs::read(host.path("file")).unwrap(), b"changed!");
}

#[test]
fn names_are_created_linked_renamed_and_removed() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let odd = [b'\xff'; 255];
    let (node, handle) = client.create(&odd, libc::O_WRONLY | libc::O_EXCL, 0o444).unwrap();
    assert_eq!(client.write(handle, 0, b"new"), Ok(3), "though its mode permits no writing");
    assert_eq!(client.create(&odd, libc::O_WRONLY | libc::O_EXCL, 0o600), Err(libc::EEXIST));
    assert_eq!(client.create(&[b'x'; 256], libc::O_WRONLY, 0o600), Err(libc::ENAMETOOLONG));
    client.call(op::LINK, ROOT, &[words(&[node]), b"hard\0".to_vec()].concat()).unwrap();
    assert_eq!(client.lookup(ROOT, b"hard"), Ok(node));
    let directory = long(&client.call(op::MKDIR, ROOT, &named(&[0o750, 0], &[b"dir"])).unwrap(), 0);
    client.call(op::SYMLINK, directory, &named(&[], &[b"sym", b"/anywhere"])).unwrap();
    let sym = client.lookup(directory, b"sym").unwrap();
    assert_eq!(client.call(op::READLINK, sym, &[]), Ok(b"/anywhere".to_vec()));
    client.call(op::MKNOD, directory, &named(&[libc::S_IFIFO | 0o600, 0, 0, 0], &[b"fifo"])).unwrap();
    assert!(fs::symlink_metadata(host.path("dir/fifo")).unwrap().file_type().is_fifo());
    let renamed = |flags: u64, from: &[u8], to: &[u8]| {
        client.call(op::RENAME2, ROOT, &[words(&[directory, flags]), named(&[], &[from, to])].concat())
    };
    assert_eq!(renamed(0, b"hard", b"moved"), Ok(Vec::new()));
    assert_eq!(renamed(1, b"file", b"moved"), Err(libc::EEXIST), "RENAME_NOREPLACE");
    assert_eq!(renamed(1 << 9, b"file", b"moved"), Err(libc::EINVAL));
    assert_eq!(
        fs::metadata(host.path("dir/moved")).unwrap().ino(),
        fs::metadata(host.path("dir/moved")).unwrap().ino()
    );
    assert_eq!(client.call(op::RMDIR, ROOT, &named(&[], &[b"dir"])), Err(libc::ENOTEMPTY));
    for name in [&b"moved"[..], b"fifo", b"sym"] {
        client.call(op::UNLINK, directory, &named(&[], &[name])).unwrap();
    }
    client.call(op::RMDIR, ROOT, &named(&[], &[b"dir"])).unwrap();
    assert!(!host.path("dir").exists());
    assert_eq!(client.lookup(directory, b"x"), Err(libc::ENOENT), "a removed directory is empty");
}

#[test]
fn a_file_without_a_name_can_be_used_and_linked() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let flags = (libc::O_RDWR | libc::O_TMPFILE).cast_unsigned();
    let reply = client.call(op::TMPFILE, ROOT, &named(&[flags, 0o640, 0, 0], &[b"#1"])).unwrap();
    let (node, handle) = (long(&reply, 0), long(&reply, 128));
    assert_eq!(client.write(handle, 0, b"tmp"), Ok(3));
    let attributes = client.call(op::GETATTR, node, &[0; 16]).unwrap();
    assert_eq!((long(&attributes, 24), word(&attributes, 76)), (3, libc::S_IFREG | 0o640));
    client.call(op::LINK, ROOT, &[words(&[node]), b"named\0".to_vec()].concat()).unwrap();
    assert_eq!(fs::read(host.path("named")).unwrap(), b"tmp");
}

#[test]
fn attributes_are_those_of_the_host() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let file = client.lookup(ROOT, b"file").unwrap();
    client.setattr(file, valid::MODE | valid::ATIME | valid::MTIME, 0, 0, 0o4711).unwrap();
    let host_file = fs::metadata(host.path("file")).unwrap();
    assert_eq!(host_file.permissions().mode(), libc::S_IFREG | 0o4711);
    assert_eq!((host_file.atime(), host_file.mtime(), host_file.mtime_nsec()), (1_000_000_000, 2_000_000_000, 6));
    let attributes = client.call(op::GETATTR, file, &[0; 16]).unwrap();
    assert_eq!((long(&attributes, 16), long(&attributes, 24)), (host_file.ino(), 7));
    assert_eq!((word(&attributes, 76), word(&attributes, 80)), (host_file.mode(), 1));
    // Writing without CAP_FSETID clears the set-user-ID bit.
    let handle = client.open(file, libc::O_WRONLY).unwrap();
    let kill = [words(&[handle, 0, 1 | u64::from(protocol::WRITE_KILL_SUIDGID) << 32]), vec![0; 16], b"C".to_vec()];
    client.call(op::WRITE, file, &kill.concat()).unwrap();
    assert_eq!(fs::metadata(host.path("file")).unwrap().permissions().mode(), libc::S_IFREG | 0o711);
    let statx = client.call(op::STATX, file, &[vec![0; 20], named(&[0xfff], &[])].concat()).unwrap();
    assert_eq!((statx.len(), long(&statx, 32 + 40)), (288, 7));
    assert_eq!(client.call(op::STATFS, ROOT, &[]).unwrap().len(), 80);

    let set = |name: &[u8], value: &[u8]| {
        let args = [named(&[u32::try_from(value.len()).unwrap(), 0], &[name]), value.to_vec()];
        client.call(op::SETXATTR, file, &args.concat())
    };
    let get = |name: &[u8], size: u32| client.call(op::GETXATTR, file, &named(&[size, 0], &[name]));
    if set(b"user.kick", b"vm") != Err(libc::EOPNOTSUPP) {
        assert_eq!(get(b"user.kick", 100), Ok(b"vm".to_vec()));
        assert_eq!(get(b"user.kick", 0), Ok(words(&[2])));
        assert_eq!(get(b"user.kick", 1), Err(libc::ERANGE));
        assert_eq!(client.call(op::LISTXATTR, file, &words(&[100])), Ok(b"user.kick\0".to_vec()));
        client.call(op::REMOVEXATTR, file, &named(&[], &[b"user.kick"])).unwrap();
        assert_eq!(get(b"user.kick", 100), Err(libc::ENODATA));
    }
    assert_eq!(get(b"system.posix_acl_access", 100), Err(libc::EOPNOTSUPP));
}

#[test]
fn holes_ranges_and_copies_are_the_hosts() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let (_, handle) = client.create(b"sparse", libc::O_RDWR, 0o600).unwrap();
    let end = 5 << 30;
    client.call(op::FALLOCATE, ROOT, &words(&[handle, 0, 4096, 0, 0])).unwrap();
    assert_eq!(client.write(handle, end, b"end"), Ok(3));
    assert_eq!(fs::metadata(host.path("sparse")).unwrap().len(), end + 3);
    let found = client.call(op::LSEEK, ROOT, &words(&[handle, 1 << 20, libc::SEEK_DATA as u64])).unwrap();
    assert!(long(&found, 0) <= end && long(&found, 0) >= 1 << 20);
    let (_, copy) = client.create(b"copy", libc::O_RDWR, 0o600).unwrap();
    let copied = client.call(op::COPY_FILE_RANGE, ROOT, &words(&[handle, end, ROOT, copy, 0, 3, 0])).unwrap();
    assert_eq!((word(&copied, 0), client.read(copy, 0, 10)), (3, Ok(b"end".to_vec())));
}

#[test]
fn directories_are_listed_in_parts() {
    let host = Host::new();
    for n in 0..300 {
        fs::write(host.path(&format!("sub/file-{n:03}")), b"").unwrap();
    }
    let share = host.share(true);
    let client = host.client(&share);
    let sub = client.lookup(ROOT, b"sub").unwrap();
    let mut expected: Vec<_> = (0..300).map(|n| format!("file-{n:03}").into_bytes()).collect();
    expected.splice(0..0, [b".".to_vec(), b"..".to_vec()]);
    assert_eq!(client.names(sub, op::READDIR, 600), expected);
    assert_eq!(client.names(sub, op::READDIRPLUS, 600), expected);
    let (known, open) = client.session.inodes.len();
    assert!(known == 301 && open <= LIMITS.open, "{open}");
    for node in sub + 1..=sub + 300 {
        assert!(client.send(&Client::request(op::FORGET, node, &words(&[1])), 0).is_empty());
    }
    assert_eq!(client.session.inodes.len(), (1, 1));
}

#[test]
fn a_directory_of_100_000_files_is_listed() {
    let host = Host::new();
    for n in 0..100_000 {
        fs::hard_link(host.path(if n < 50_000 { "file" } else { "other" }), host.path(&format!("sub/{n}"))).unwrap();
    }
    let share = host.share(true);
    let client = host.client(&share);
    let sub = client.lookup(ROOT, b"sub").unwrap();
    assert_eq!(client.names(sub, op::READDIR, 1 << 16).len(), 100_002);
    let names = client.names(sub, op::READDIRPLUS, 1 << 16);
    assert!(names.len() == 100_002 && names.windows(2).all(|pair| pair[0] != pair[1]));
    assert_eq!(client.session.inodes.len().0, 3);
}

#[test]
fn an_inode_that_was_closed_is_found_by_its_last_name() {
    let host = Host::new();
    for n in 0..300 {
        fs::write(host.path(&format!("sub/{n}")), vec![b'x'; n]).unwrap();
    }
    let share = host.share(false);
    let client = host.client(&share);
    let sub = client.lookup(ROOT, b"sub").unwrap();
    let nodes: Vec<_> = (0..300).map(|n| client.lookup(sub, n.to_string().as_bytes()).unwrap()).collect();
    let size = |node| client.call(op::GETATTR, node, &[0; 16]).map(|reply| long(&reply, 24));
    let close = || (1..300).for_each(|n| assert_eq!(size(nodes[n]), Ok(n as u64)));
    // The file of a handle needs no name.
    let deleted = client.lookup(sub, b"0").unwrap();
    let handle = client.open(deleted, libc::O_RDWR).unwrap();
    client.call(op::UNLINK, sub, &named(&[], &[b"0"])).unwrap();
    close();
    assert_eq!((client.write(handle, 0, b"more"), size(deleted)), (Ok(4), Ok(4)));
    // The guest renames its directory, and then it.
    client.call(op::RENAME2, ROOT, &[words(&[ROOT, 0]), named(&[], &[b"sub", b"new"])].concat()).unwrap();
    close();
    client.call(op::RENAME2, sub, &[words(&[ROOT, 2]), named(&[], &[b"7", b"file"])].concat()).unwrap();
    close();
    // The host renames it, or gives its name to another file.
    fs::rename(host.path("new/8"), host.path("8")).unwrap();
    fs::remove_file(host.path("new/9")).unwrap();
    fs::write(host.path("new/9"), b"another").unwrap();
    let rest = || (10..300).for_each(|n| assert_eq!(size(nodes[n]), Ok(n as u64)));
    rest();
    assert_eq!((size(nodes[8]), size(nodes[9])), (Err(libc::ESTALE), Err(libc::ESTALE)));
    assert_eq!(client.lookup(ROOT, b"8"), Ok(nodes[8]));
    assert_eq!(size(nodes[8]), Ok(8));
    assert!(client.session.inodes.len().1 <= LIMITS.open + 1);
}

#[test]
fn a_guest_knows_at_most_as_many_inodes_as_fit_in_its_memory() {
    let host = Host::new();
    let share = host.share(true);
    let limits = Limits { open: 100, known: 2 };
    let client = Client { session: Session::with_limits(&share, limits).unwrap(), memory: &host.memory };
    let sub = client.lookup(ROOT, b"sub").unwrap();
    assert!(client.lookup(ROOT, b"file").is_ok() && client.lookup(ROOT, b"sub") == Ok(sub));
    assert_eq!(client.lookup(ROOT, b"link"), Err(libc::ENFILE));
    client.send(&Client::request(op::FORGET, sub, &words(&[2])), 0);
    assert!(client.lookup(ROOT, b"link").is_ok());
}

#[test]
fn an_inode_is_kept_until_each_lookup_is_forgotten() {
    let host = Host::new();
    let share = host.share(true);
    let client = host.client(&share);
    let node = client.lookup(ROOT, b"file").unwrap();
    assert_eq!((client.lookup(ROOT, b"file"), client.lookup(ROOT, b"file")), (Ok(node), Ok(node)));
    let forget = [words(&[2, node, 1, node, 1])].concat();
    client.send(&Client::request(op::BATCH_FORGET, 0, &forget), 0);
    assert!(client.call(op::GETATTR, node, &[0; 16]).is_ok());
    client.send(&Client::request(op::FORGET, node, &words(&[u64::MAX])), 0);
    client.send(&Client::request(op::FORGET, ROOT, &words(&[u64::MAX])), 0);
    assert_eq!(client.call(op::GETATTR, node, &[0; 16]), Err(libc::ENOENT));
    assert!(client.lookup(ROOT, b"file").unwrap() > node, "node IDs are not reused");
}

#[test]
fn a_read_only_share_refuses_each_change() {
    let host = Host::new();
    let share = host.share(true);
    let client = host.client(&share);
    let file = client.lookup(ROOT, b"file").unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(client.open(file, flags), Err(libc::EROFS), "{flags:#x}");
    }
    let handle = client.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(client.write(handle, 0, b"x"), Err(libc::EROFS));
    assert_eq!(client.setattr(file, valid::SIZE, 0, 0, 0), Err(libc::EROFS));
    assert_eq!(client.create(b"new", libc::O_WRONLY, 0o600), Err(libc::EROFS));
    for opcode in [
        op::SYMLINK,
        op::MKNOD,
        op::MKDIR,
        op::UNLINK,
        op::RMDIR,
        op::RENAME,
        op::RENAME2,
        op::LINK,
        op::TMPFILE,
        op::FALLOCATE,
        op::COPY_FILE_RANGE,
        op::SETXATTR,
        op::REMOVEXATTR,
    ] {
        assert_eq!(client.call(opcode, ROOT, &[1; 64]), Err(libc::EROFS), "{opcode}");
    }
    assert_eq!(fs::read(host.path("file")).unwrap(), b"content");
}

#[test]
fn no_name_leads_out_of_the_share() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let sub = client.lookup(ROOT, b"sub").unwrap();
    assert_eq!(client.lookup(ROOT, b".."), Ok(ROOT));
    for name in [&b""[..], b"/", b"a/b", b"../canary", b"sub/..", b"/etc/passwd"] {
        assert_eq!(client.lookup(ROOT, name), Err(libc::EINVAL), "{name:?}");
        assert_eq!(client.create(name, libc::O_RDWR, 0o600), Err(libc::EINVAL), "{name:?}");
        assert_eq!(client.call(op::UNLINK, ROOT, &named(&[], &[name])), Err(libc::EINVAL), "{name:?}");
    }
    assert_eq!((client.lookup(sub, b".."), client.lookup(sub, b".")), (Err(libc::EINVAL), Err(libc::EINVAL)));
    for name in [&b"link"[..], b"up"] {
        let link = client.lookup(ROOT, name).unwrap();
        assert_eq!(client.lookup(link, b"canary"), Err(libc::ENOTDIR));
        assert_eq!(client.open(link, libc::O_RDONLY), Err(libc::EINVAL));
        assert_eq!(client.call(op::OPENDIR, link, &[0; 8]), Err(libc::ENOTDIR));
        assert_eq!(client.setattr(link, valid::SIZE, 0, 0, 0), Err(libc::EINVAL));
        // The name exists, so it is not followed.
        assert_eq!(client.create(name, libc::O_RDWR, 0o600), Err(libc::EINVAL));
    }
    assert_eq!(fs::read(host.path("../canary")).unwrap(), b"secret");
}

#[test]
fn devices_fifos_and_sockets_are_not_opened() {
    let host = Host::new();
    let fifo = CString::new(host.path("fifo").as_os_str().as_encoded_bytes()).unwrap();
    nix::unistd::mkfifo(&*fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let share = host.share(false);
    let client = host.client(&share);
    for name in [&b"fifo"[..], b"socket"] {
        let node = client.lookup(ROOT, name).unwrap();
        assert_eq!(client.open(node, libc::O_RDWR), Err(libc::EINVAL));
        assert_eq!(client.create(name, libc::O_RDWR, 0o600), Err(libc::EINVAL));
        assert_eq!(client.setattr(node, valid::SIZE, 0, 0, 0), Err(libc::EINVAL));
    }
}

#[test]
fn invalid_requests_get_errors() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    for opcode in 0..64 {
        if !matches!(
            opcode,
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::DESTROY | op::GETATTR | op::STATFS | op::OPENDIR
        ) {
            assert!(client.call(opcode, ROOT, &[]).is_err(), "{opcode} without arguments");
        }
        if !matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::DESTROY) {
            assert!(client.call(opcode, 12345, &[0xff; 200]).is_err(), "{opcode} with a node and handles of nothing");
        }
        for len in 0..60 {
            // The length in the header is wrong, or there is no whole header.
            let request = Client::request(opcode, ROOT, &[0; 100]);
            let reply = client.send(&request[..len], OUT_HEADER);
            if !reply.is_empty() {
                assert_eq!(word(&reply, 4).cast_signed(), -libc::EINVAL, "{opcode}, {len} bytes");
            }
        }
        // No room for a reply.
        let reply = client.send(&Client::request(opcode, ROOT, &[0; 100]), OUT_HEADER - 1);
        assert!(reply.is_empty());
    }
    let file = client.lookup(ROOT, b"file").unwrap();
    let handle = client.open(file, libc::O_RDWR).unwrap();
    assert_eq!(client.read(handle, u64::MAX, 10), Err(libc::EINVAL));
    assert_eq!(client.write(handle, u64::MAX, b"x"), Err(libc::EINVAL));
    let too_long = [words(&[handle, 0, 100]), vec![0; 16], b"short".to_vec()].concat();
    assert_eq!(client.call(op::WRITE, file, &too_long), Err(libc::EINVAL));
    assert_eq!(client.call(op::LSEEK, file, &words(&[handle, 0, 0])), Err(libc::EINVAL), "SEEK_SET");
    let unterminated = client.call(op::LOOKUP, ROOT, b"file");
    assert_eq!(unterminated, Err(libc::EINVAL));
    assert_eq!(fs::read(host.path("file")).unwrap(), b"content");
}

#[test]
fn a_new_session_forgets_the_last_one() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let file = client.lookup(ROOT, b"file").unwrap();
    let handle = client.open(file, libc::O_RDONLY).unwrap();
    let args = named(&[7, 38, 128 << 10, u32::MAX, 0, 0, 0, 0], &[]);
    let reply = client.call(op::INIT, 0, &args).unwrap();
    assert_eq!((reply.len(), word(&reply, 0), word(&reply, 20)), (64, 7, ROOM_32));
    assert_eq!(word(&reply, 12) & (1 << 1 | 1 << 10 | 1 << 16), 0, "no locks and no write-back cache");
    assert_eq!(client.call(op::GETATTR, file, &[0; 16]), Err(libc::ENOENT));
    assert_eq!(client.read(handle, 0, 1), Err(libc::EBADF));
    let old = named(&[7, 30, 0, 0], &[]);
    assert_eq!(client.call(op::INIT, 0, &old), Err(libc::EPROTO));
}

#[test]
fn interfaces_of_the_hosts_kernel_are_not_shared() {
    for path in ["/proc", "/proc/self", "/sys", "/dev", "/dev/shm"] {
        assert!(Share::open(path.as_ref(), true, true).is_err(), "{path}");
    }
    // As directories of a share they are empty.
    let share = Share::open("/".as_ref(), true, true).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let client = Client { session: Session::with_limits(&share, LIMITS).unwrap(), memory: &memory };
    let proc = client.lookup(ROOT, b"proc").unwrap();
    assert_eq!(client.lookup(proc, b"1"), Ok(0), "no such entry");
    assert!(client.names(proc, op::READDIRPLUS, 600).is_empty());
}

#[test]
fn directories_of_the_hosts_kernel_take_no_changes() {
    let share = Share::open("/".as_ref(), false, false).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let client = Client { session: Session::with_limits(&share, LIMITS).unwrap(), memory: &memory };
    let dev = client.lookup(ROOT, b"dev").unwrap();
    let (new, null): (&[u8], &[u8]) = (b"kickvm-test", b"null");
    for (opcode, args) in [
        (op::CREATE, named(&[libc::O_RDWR.cast_unsigned(), 0o600, 0, 0], &[new])),
        (op::TMPFILE, named(&[libc::O_RDWR.cast_unsigned(), 0o600, 0, 0], &[b""])),
        (op::MKDIR, named(&[0o700, 0], &[new])),
        (op::MKNOD, named(&[libc::S_IFREG | 0o600, 0, 0, 0], &[new])),
        (op::SYMLINK, named(&[], &[new, b"target"])),
        (op::LINK, [&words(&[dev])[..], &named(&[], &[new])].concat()),
        (op::UNLINK, named(&[], &[null])),
        (op::RMDIR, named(&[], &[b"shm"])),
        (op::RENAME, [&words(&[dev])[..], &named(&[], &[null, new])].concat()),
        (op::RENAME2, [&words(&[dev, 0])[..], &named(&[], &[null, new])].concat()),
        (op::SETATTR, words(&[valid::MODE.into(), 0, 0, 0, 0, 0, 0, 0, 0o700, 0, 0])),
        (op::REMOVEXATTR, named(&[], &[b"user.x"])),
    ] {
        assert_eq!(client.call(opcode, dev, &args), Err(libc::EROFS), "opcode {opcode}");
    }
    assert!(!fs::exists("/dev/kickvm-test").unwrap() && fs::exists("/dev/null").unwrap());
}

#[test]
fn a_handle_reads_its_own_directory_only() {
    let host = Host::new();
    let share = host.share(false);
    let client = host.client(&share);
    let sub = client.lookup(ROOT, b"sub").unwrap();
    let handle = long(&client.call(op::OPENDIR, sub, &words(&[0])).unwrap(), 0);
    let args = [&words(&[handle, 0])[..], &named(&[600, 0, 0, 0, 0, 0], &[])].concat();
    assert_eq!(client.call(op::READDIR, ROOT, &args), Err(libc::EBADF));
    assert!(client.call(op::READDIR, sub, &args).is_ok());
}

#[test]
fn a_directory_is_complete_without_a_buffer() {
    let host = Host::new();
    (0..2000).for_each(|n| fs::write(host.path(&format!("sub/{n}")), b"").unwrap());
    let share = host.share(false);
    let client = host.client(&share);
    let sub = client.lookup(ROOT, b"sub").unwrap();
    let read = |handle: u64, offset: u64| {
        let args = [&words(&[handle, offset])[..], &named(&[100, 0, 0, 0, 0, 0], &[])].concat();
        client.call(op::READDIR, sub, &args).unwrap()
    };
    let open = || long(&client.call(op::OPENDIR, sub, &words(&[0])).unwrap(), 0);
    let handles: Vec<_> = std::iter::repeat_with(open).take(100).collect();
    handles.iter().for_each(|handle| drop(read(*handle, 0)));
    let buffers = client.session.handles.buffers.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(buffers, 64);
    assert_eq!(client.names(sub, op::READDIR, 600).len(), 2002);
    handles.iter().for_each(|handle| drop(client.call(op::RELEASEDIR, sub, &words(&[*handle, 0, 0])).unwrap()));
    assert_eq!(client.session.handles.buffers.load(std::sync::atomic::Ordering::Relaxed), 0);
}
