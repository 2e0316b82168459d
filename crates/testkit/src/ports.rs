//! Ports for servers that must know theirs before they start.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// A free loopback port from 15,000 to 29,999, below the range (32768 and up, on Linux) of outgoing connections: the
/// system assigns it to no other process before it is used.
///
/// # Errors
///
/// No port was free in 1,000 attempts; the error is that of the last attempt.
pub fn free_port() -> io::Result<u16> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..1_000 {
        let port = rand::random_range(15_000..30_000);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_is_free() {
        let port = free_port().expect("a port is free");
        assert!((15_000..30_000).contains(&port));
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("nobody listens there");
    }
}
