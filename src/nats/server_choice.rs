//! Chooses the server of the next attempt to reconnect.
//!
//! The client prefers servers with few failed attempts, and so it may choose the one whose connection has just failed: a
//! frozen server still accepts connections. Here, the server that was tried the longest ago is next.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use async_nats::{ReconnectToServer, Server};

/// Turns of servers that were never tried: first those that were never connected.
const NEVER_CONNECTED: u64 = 0;
const CONNECTED_AT_START: u64 = 1;

#[derive(Debug, Default)]
pub(super) struct ServerChoice {
    tried: Mutex<Tried>,
}

#[derive(Debug, Default)]
struct Tried {
    turn: u64,
    /// The last turn of each server, by its URL; at most the servers of the pool.
    turns: HashMap<String, u64>,
}

impl ServerChoice {
    /// The server to try; `None` before the first connection, when the client tries all of them.
    pub(super) fn next(&self, pool: &[Server]) -> Option<ReconnectToServer> {
        if !pool.iter().any(|server| server.did_connect) {
            return None;
        }
        let servers: Vec<(String, bool)> =
            pool.iter().map(|server| (server.to_string(), server.did_connect)).collect();
        let chosen = self.choose(&servers, rand::random)?;
        // The delay is that of the connection's options.
        pool.get(chosen).map(|server| ReconnectToServer { addr: server.addr.clone(), delay: None })
    }

    /// The position of the server to try. `random` decides between equals, so that the clients of a lost server spread.
    fn choose(&self, servers: &[(String, bool)], random: impl Fn() -> u32) -> Option<usize> {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        tried.turns.retain(|url, _| servers.iter().any(|(known, _)| known == url));
        let turn_of = |(url, did_connect): &(String, bool)| match tried.turns.get(url) {
            Some(turn) => *turn,
            None if *did_connect => CONNECTED_AT_START,
            None => NEVER_CONNECTED,
        };
        let order =
            servers.iter().enumerate().map(|(position, server)| (turn_of(server), random(), position));
        let (_, _, chosen) = order.min()?;
        tried.turn = tried.turn.max(CONNECTED_AT_START) + 1;
        let turn = tried.turn;
        tried.turns.insert(servers.get(chosen)?.0.clone(), turn);
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(all: &[(&str, bool)]) -> Vec<(String, bool)> {
        all.iter().map(|(url, did_connect)| ((*url).to_owned(), *did_connect)).collect()
    }

    #[test]
    fn the_lost_server_is_the_last_choice_and_each_server_has_its_turn() {
        let choice = ServerChoice::default();
        let pool = servers(&[("a", true), ("b", false), ("c", false)]);
        let picks: Vec<usize> = (0..7).filter_map(|_| choice.choose(&pool, || 0)).collect();
        assert_eq!(picks, [1, 2, 0, 1, 2, 0, 1]);
        // It is now connected to the second server, and loses it.
        assert_eq!(choice.choose(&servers(&[("a", true), ("b", true), ("c", false)]), || 0), Some(2));
        // A discovered server was never tried.
        let more = servers(&[("a", true), ("b", true), ("c", true), ("d", false)]);
        assert_eq!(choice.choose(&more, || 0), Some(3));
    }

    #[test]
    fn a_single_server_is_tried_again_and_none_is_forgotten_for_good() {
        let choice = ServerChoice::default();
        let one = servers(&[("a", true)]);
        assert_eq!((choice.choose(&one, || 0), choice.choose(&one, || 0)), (Some(0), Some(0)));
        assert_eq!(choice.choose(&[], || 0), None);
        assert!(choice.tried.lock().unwrap().turns.is_empty());
    }
}
