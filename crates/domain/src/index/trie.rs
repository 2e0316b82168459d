//! A trie over the tokens of key patterns.

use std::collections::HashMap;

use crate::key::{EventKey, KeyPattern};

/// The place of a subscription in the index.
pub(super) type Slot = u32;

/// One node: a prefix of tokens.
#[derive(Debug, Default)]
pub(super) struct Trie {
    /// Boxed, because a small map allocates space for four nodes.
    literal: HashMap<Box<str>, Box<Trie>>,
    /// `*`: any one token.
    any: Option<Box<Trie>>,
    /// Slots whose pattern ends at this node, in ascending order.
    here: Vec<Slot>,
    /// Slots whose pattern ends with `>` at this node, in ascending order.
    below: Vec<Slot>,
}

impl Trie {
    /// Inserts a pattern. Inserting it again has no effect.
    pub(super) fn insert(&mut self, pattern: &KeyPattern, slot: Slot) {
        let mut node = self;
        for token in pattern.tokens() {
            node = match token {
                ">" => return insert_sorted(&mut node.below, slot),
                "*" => node.any.get_or_insert_default(),
                literal => {
                    if !node.literal.contains_key(literal) {
                        node.literal.insert(literal.into(), Box::default());
                    }
                    node.literal.get_mut(literal).expect("inserted above")
                }
            };
        }
        insert_sorted(&mut node.here, slot);
    }

    /// Removes the slot from the pattern's node, and the nodes that are then empty.
    pub(super) fn remove(&mut self, pattern: &KeyPattern, slot: Slot) {
        self.remove_below(&mut pattern.tokens(), slot);
    }

    fn remove_below(&mut self, tokens: &mut dyn Iterator<Item = &str>, slot: Slot) {
        match tokens.next() {
            None => remove_sorted(&mut self.here, slot),
            Some(">") => remove_sorted(&mut self.below, slot),
            Some("*") => {
                if let Some(any) = &mut self.any {
                    any.remove_below(tokens, slot);
                    if any.is_empty() {
                        self.any = None;
                    }
                }
            }
            Some(literal) => {
                if let Some(child) = self.literal.get_mut(literal) {
                    child.remove_below(tokens, slot);
                    if child.is_empty() {
                        self.literal.remove(literal);
                        if self.literal.is_empty() {
                            self.literal.shrink_to_fit();
                        }
                    }
                }
            }
        }
    }

    /// The slots whose patterns match, each once and in ascending order, and the number of nodes
    /// visited.
    pub(super) fn matching(&self, key: &EventKey) -> (Vec<Slot>, usize) {
        let mut slots = Vec::new();
        let mut lists = 0;
        let mut visited = 0;
        // The nodes for the tokens so far.
        let mut front = vec![self];
        let mut collect = |list: &[Slot]| {
            lists += usize::from(!list.is_empty());
            slots.extend_from_slice(list);
        };
        for token in key.as_str().split('.') {
            let mut next = Vec::with_capacity(front.len() * 2);
            for node in front {
                visited += 1;
                // At least one token is left, as `>` requires.
                collect(&node.below);
                next.extend(node.literal.get(token).map(Box::as_ref));
                next.extend(node.any.as_deref());
            }
            front = next;
        }
        for node in front {
            visited += 1;
            collect(&node.here);
        }
        if lists > 1 {
            slots.sort_unstable();
            slots.dedup();
        }
        (slots, visited)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.any.is_none() && self.here.is_empty() && self.below.is_empty()
    }
}

fn insert_sorted(list: &mut Vec<Slot>, slot: Slot) {
    if let Err(position) = list.binary_search(&slot) {
        list.insert(position, slot);
    }
}

fn remove_sorted(list: &mut Vec<Slot>, slot: Slot) {
    if let Ok(position) = list.binary_search(&slot) {
        list.remove(position);
        if list.is_empty() {
            list.shrink_to_fit();
        }
    }
}
