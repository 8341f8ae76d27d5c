//! The overhead of the event floor over bare system calls, compared with other event loops.
//!
//! `cargo bench --bench event [-- PART…]` prints one table for each part: `dispatch`, `registering`, `threads`. Each
//! figure is a ratio to the same work done with bare system calls. Samples of the two alternate, and the figure is the
//! median of the ratios of neighbouring samples. On a busy machine, times that are measured one after the other are not
//! comparable.

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
