//! Several TCP requests at the same time, on one thread, with [`Poll`] and tokens.
//!
//! A slow server, here on its own thread, replies to `GET /<delay in ms>/<text>` after the delay. The client sends all
//! requests and then waits for the next reply from any of them. The first request has the longest delay, so that the
//! replies arrive in reverse order. Waiting for one reply after the other would take the sum of the delays; this takes
//! the longest one.
//!
//! ```text
//! $ cargo run --no-default-features --example tcp_poll
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use kickvm::event::{EventSet, Poll};

const REQUESTS: usize = 5;

fn main() -> io::Result<()> {
    let server = start_server()?;
    let start = Instant::now();
    let mut queue = Poll::new()?;

    let mut streams = Vec::new();
    for token in 0..REQUESTS {
        let delay = (REQUESTS - token) * 100;
        let mut stream = TcpStream::connect(server)?;
        stream.set_nonblocking(true)?;
        stream.write_all(format!("GET /{delay}/request-{token} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
        // The token is the index in `streams`. Edge-triggered, because each event is handled by reading all data.
        queue.registry().register(&stream, token, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        println!("{:>4} ms   {token}: sent a request with a delay of {delay} ms", start.elapsed().as_millis());
        streams.push((stream, String::new()));
    }

    let mut events = Vec::with_capacity(10);
    let mut replies = 0;
    while replies < REQUESTS {
        queue.poll(&mut events, None)?;
        for event in &events {
            let token = event.token();
            let (stream, text) = &mut streams[token.0];
            if read_all(stream, text)? {
                let reply = text.lines().last().unwrap_or_default();
                println!("{:>4} ms   {}: {reply}", start.elapsed().as_millis(), token.0);
                queue.registry().deregister(stream)?;
                replies += 1;
            }
        }
    }
    Ok(())
}

/// Reads all available data and returns whether the stream has ended. An edge-triggered source that is not read until
/// it would block is not reported again.
fn read_all(stream: &mut TcpStream, text: &mut String) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Starts the server, which has a thread for each request, and returns its address.
fn start_server() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || reply(stream));
        }
    });
    Ok(address)
}

/// Replies to one request after the delay in its path.
fn reply(mut stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut parts = request.split(['/', ' ']).skip(2);
    let delay = parts.next().and_then(|delay| delay.parse().ok()).unwrap_or(0);
    thread::sleep(Duration::from_millis(delay));
    let text = format!("{} after {delay} ms", parts.next().unwrap_or_default());
    write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}
