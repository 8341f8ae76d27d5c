//! 32 connections at once in each direction, each of which echoes 1 MiB.

use super::{
    Host, accept_from_guest, accept_in_guest, connect_to_host, echo, expect_echo, in_guest, listen_in_guest,
    wait_for_host,
};
use crate::common::noise;
use crate::support::guest::Guest;
use crate::this_test;
use std::thread;

const CONNECTIONS: usize = 32;
const SIZE: usize = 1 << 20;
const GUEST_PORT: u32 = 1000;
const HOST_PORT: u32 = 2000;

/// The data of all connections. Each sends its own part of it: first the guest's connections, then the host's.
fn content() -> Vec<u8> {
    noise(SIZE + 2 * CONNECTIONS)
}

fn part(content: &[u8], index: usize) -> &[u8] {
    &content[index..][..SIZE]
}

fn guest_part() {
    let content = &content();
    let listener = listen_in_guest(GUEST_PORT);
    println!("\nthe guest listens");
    thread::scope(|scope| {
        for index in 0..CONNECTIONS {
            scope.spawn(move || {
                let stream = connect_to_host(HOST_PORT).expect("the host listens");
                expect_echo(stream, part(content, index));
            });
        }
        for _ in 0..CONNECTIONS {
            let stream = accept_in_guest(&listener);
            scope.spawn(|| echo(stream));
        }
    });
    wait_for_host();
}

fn host_part(guest: Guest, test: &str) {
    let content = &content();
    let host = Host::start(guest, test);
    let listener = host.listen(HOST_PORT);
    let host = thread::scope(|scope| {
        scope.spawn(move || {
            thread::scope(|scope| {
                for _ in 0..CONNECTIONS {
                    let stream = accept_from_guest(&listener);
                    scope.spawn(|| echo(stream));
                }
            });
        });
        host.running.wait_for_line("the guest listens");
        thread::scope(|scope| {
            for index in 0..CONNECTIONS {
                let host = &host;
                scope.spawn(move || expect_echo(host.connect(GUEST_PORT), part(content, index + CONNECTIONS)));
            }
        });
        host
    });
    host.finish();
}

#[test]
fn a_stock_kernel_has_32_connections_at_once_each_way() {
    if in_guest() {
        return guest_part();
    }
    host_part(linux!(Stock), this_test!());
}

#[test]
fn our_kernel_has_32_connections_at_once_each_way() {
    if in_guest() {
        return guest_part();
    }
    host_part(linux!(BzImage), this_test!());
}
