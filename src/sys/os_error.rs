//! The text of operating-system errors in messages.

use std::io;

/// Returns the text of `error` without the trailing "(os error N)" of Rust's std. `EMFILE` gets a remedy.
pub fn describe(error: &io::Error) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.rfind(" (os error ") {
        text.truncate(end);
    }
    if text == "failed to fill whole buffer" {
        "it is cut off".clone_into(&mut text); // Read::read_exact
    }
    if error.raw_os_error() == Some(libc::EMFILE) {
        text.push_str("; 'sudo prlimit --nofile=4096 --pid $$' allows this shell more");
    }
    text
}

/// Whether the operation on a non-blocking descriptor can be repeated later.
pub fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_number_is_left_out() {
        assert_eq!(describe(&io::Error::from_raw_os_error(libc::ENOENT)), "No such file or directory");
        assert_eq!(describe(&io::Error::other("odd")), "odd");
        assert_eq!(describe(&io::Read::read_exact(&mut io::empty(), &mut [0]).unwrap_err()), "it is cut off");
    }

    #[test]
    fn a_limit_of_the_shell_comes_with_the_line_that_raises_it() {
        let text = describe(&io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(text, "Too many open files; 'sudo prlimit --nofile=4096 --pid $$' allows this shell more");
    }
}
