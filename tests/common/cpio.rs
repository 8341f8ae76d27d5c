//! Initramfs archives: a writer of the "new ASCII" cpio format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// Name and content of a file in an archive. All files are executable.
pub type File<'a> = (&'a str, &'a [u8]);

/// An archive of `files`. A name that ends with a slash is a directory.
pub fn archive(files: &[File]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const REGULAR: u32 = 0o100_755;
    let mut bytes = Vec::new();
    for (name, content) in files {
        match name.strip_suffix('/') {
            Some(name) => entry(&mut bytes, DIRECTORY, name, b""),
            None => entry(&mut bytes, REGULAR, name, content),
        }
    }
    entry(&mut bytes, 0, "TRAILER!!!", b"");
    bytes
}

fn entry(bytes: &mut Vec<u8>, mode: u32, name: &str, content: &[u8]) {
    let (size, name_size) = (content.len(), name.len() + 1);
    let (user, group, links, time, device, checksum) = (0, 0, 1, 0, 0, 0);
    let inode = bytes.len(); // different for each file
    bytes.extend(format!("070701{inode:08x}{mode:08x}{user:08x}{group:08x}{links:08x}{time:08x}{size:08x}").bytes());
    bytes.extend(format!("{device:08x}{device:08x}{device:08x}{device:08x}{name_size:08x}{checksum:08x}").bytes());
    bytes.extend(name.bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(content);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
