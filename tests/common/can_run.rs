//! Tests that need something of the host: without it they print so, instead of counting as passed.

use std::io::Write;

/// The path of the test function that contains the call, with the name of the test binary in front.
#[macro_export]
macro_rules! this_test {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}

/// Returns whether `test` can run. If not, prints its name and the reason, and panics if `KICKVM_REQUIRE_KVM` is 1.
pub fn can_run(test: &str, possible: Result<(), String>) -> bool {
    let Err(why) = possible else { return true };
    let message = format!("kickvm: could not run {test}: {why}");
    assert_ne!(std::env::var("KICKVM_REQUIRE_KVM").as_deref(), Ok("1"), "{message}");
    // Not eprintln, which libtest would capture. One write, so that other tests' output does not end up in the line.
    let _ = std::io::stderr().write_all(format!("\n{message}\n").as_bytes());
    false
}
