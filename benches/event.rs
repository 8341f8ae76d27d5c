//! How much the event core adds to the bare system calls, and how that compares with others.
//!
//! `cargo bench --bench event [-- PART…]` prints one table a part: `dispatch`, `registering`, `threads`. Every figure
//! is a ratio to the same thing done with bare system calls, measured in turns: a sample of one, a sample of the
//! other, and so on, and the median of the quotients. On a busy machine nothing else is worth reading, which is why
//! there is no harness here that measures one thing after the other.

#[path = "event/dispatch.rs"]
mod dispatch;
#[path = "event/harness.rs"]
mod harness;
#[path = "event/registering.rs"]
mod registering;
#[path = "event/threads.rs"]
mod threads;

fn main() {
    harness::raise_file_limit();
    let parts: Vec<String> = std::env::args().skip(1).filter(|part| !part.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if wanted("dispatch") {
        dispatch::bench();
    }
    if wanted("registering") {
        registering::bench();
    }
    if wanted("threads") {
        threads::bench();
    }
}
