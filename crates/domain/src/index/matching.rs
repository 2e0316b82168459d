//! Evaluates the filters of the candidates of an event in steps.

use std::sync::Arc;

use super::IndexEntry;
use crate::event::Event;
use crate::filter::Position;

/// The candidates of one event, and the progress of their evaluation.
#[derive(Debug)]
pub struct Matching {
    candidates: Vec<Arc<IndexEntry>>,
    next: usize,
    /// Position in the filters of the next candidate.
    at: Option<Position>,
    wanting: Vec<Arc<IndexEntry>>,
}

impl Matching {
    pub fn new(candidates: Vec<Arc<IndexEntry>>) -> Self {
        Self { candidates, next: 0, at: None, wanting: Vec::new() }
    }

    /// Evaluates at most `steps` steps: one for each candidate and one for each comparison of its filters. Returns the
    /// number of steps taken.
    pub fn advance(&mut self, event: &Event, steps: usize) -> usize {
        let mut left = steps;
        while let Some(entry) = self.candidates.get(self.next) {
            let mut at = match self.at {
                Some(at) => at,
                None => {
                    let Some(rest) = left.checked_sub(1) else { break };
                    left = rest;
                    entry.program.start()
                }
            };
            let wants = entry.program.advance(&mut at, &|name| event.attribute(name), &mut left);
            self.at = Some(at);
            let Some(wants) = wants else { break };
            if wants {
                self.wanting.push(entry.clone());
            }
            self.at = None;
            self.next += 1;
        }
        steps - left
    }

    /// True if all candidates are evaluated.
    pub fn is_done(&self) -> bool {
        self.next >= self.candidates.len()
    }

    /// The evaluated candidates that match the event.
    pub fn into_wanting(self) -> Vec<Arc<IndexEntry>> {
        self.wanting
    }
}
