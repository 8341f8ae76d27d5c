//! The names of a file's extended attributes (xattr(7)).

use std::os::fd::{AsRawFd, BorrowedFd};

/// Space for names. The limit of Linux is `XATTR_LIST_MAX`, 64 KiB; few files have more than one attribute.
const ROOM: usize = 4 << 10;

/// The first extended attribute of `file` that `is_wanted` accepts. An error counts as none: the file system may not
/// support attributes.
pub fn find_attribute(file: BorrowedFd<'_>, is_wanted: impl Fn(&str) -> bool) -> Option<String> {
    let mut names = [0u8; ROOM];
    // SAFETY: flistxattr writes at most ROOM bytes to `names`.
    let len = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), ROOM) };
    let names = &names[..usize::try_from(len).unwrap_or(0)];
    let mut names = names.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    names.find(|name| is_wanted(name)).map(str::to_owned)
}

/// Sets an attribute of `file`. Returns whether the file system supports that.
#[cfg(test)]
pub fn set_attribute(file: BorrowedFd<'_>, name: &std::ffi::CStr) -> bool {
    // SAFETY: the name ends with a NUL, and the value is a live byte.
    unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), [1u8].as_ptr().cast(), 1, 0) == 0 }
}
