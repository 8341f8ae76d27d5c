//! `cargo test` runs this in a guest; see `.cargo/config.toml`.

#[test]
fn this_is_a_guest_of_kickvm() {
    assert!(std::path::Path::new("/.kickvm").is_dir());
}
