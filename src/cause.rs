//! Operating-system errors as people read them.

use std::io;

/// The text of `error` without Rust's trailing "(os error N)".
pub fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_number_is_left_out() {
        assert_eq!(cause(&io::Error::from_raw_os_error(libc::ENOENT)), "No such file or directory");
        assert_eq!(cause(&io::Error::other("odd")), "odd");
    }
}
