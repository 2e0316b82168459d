//! Compiled filters: a list of comparisons, each with the next position for a match and for a mismatch. An evaluation
//! takes one step for each comparison. It can pause after any step and continue later.

use std::borrow::Cow;

use super::{Filter, Pairs};

/// The compiled filters of a subscription; all must match.
#[derive(Debug, Default)]
pub struct Program {
    steps: Box<[Instruction]>,
    start: Position,
}

/// The position of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(u32);

const HOLDS: Position = Position(u32::MAX);
const HOLDS_NOT: Position = Position(u32::MAX - 1);

impl Default for Position {
    /// The end of an evaluation that matched: without filters, every event matches.
    fn default() -> Self {
        HOLDS
    }
}

#[derive(Debug)]
struct Instruction {
    test: Test,
    name: Box<str>,
    wanted: Box<str>,
    if_holds: Position,
    if_not: Position,
}

#[derive(Debug, Clone, Copy)]
enum Test {
    Exact,
    Prefix,
    Suffix,
}

impl Program {
    pub fn new(filters: &[Filter]) -> Self {
        let mut steps = Vec::new();
        let start = all(&mut steps, filters, HOLDS, HOLDS_NOT);
        Self { steps: steps.into(), start }
    }

    /// Number of comparisons, which is the maximum number of steps of an evaluation.
    pub fn comparisons(&self) -> usize {
        self.steps.len()
    }

    /// The first position of an evaluation.
    pub fn start(&self) -> Position {
        self.start
    }

    /// Continues an evaluation from `at` for at most `steps` steps, and subtracts the steps taken. Returns the result, or
    /// `None` if steps remain.
    pub fn advance<'e>(
        &self,
        at: &mut Position,
        attribute: &dyn Fn(&str) -> Option<Cow<'e, str>>,
        steps: &mut usize,
    ) -> Option<bool> {
        loop {
            let Some(step) = self.steps.get(at.0 as usize) else { return Some(*at == HOLDS) };
            *steps = steps.checked_sub(1)?;
            *at = if step.holds(attribute) { step.if_holds } else { step.if_not };
        }
    }

    /// Evaluates all filters without a limit of steps.
    pub fn matches<'e>(&self, attribute: &dyn Fn(&str) -> Option<Cow<'e, str>>) -> bool {
        let (mut at, mut steps) = (self.start, usize::MAX);
        self.advance(&mut at, attribute, &mut steps).unwrap_or_default()
    }
}

impl Instruction {
    fn holds<'e>(&self, attribute: &dyn Fn(&str) -> Option<Cow<'e, str>>) -> bool {
        let Some(value) = attribute(&self.name) else { return false };
        match self.test {
            Test::Exact => *value == *self.wanted,
            Test::Prefix => value.starts_with(&*self.wanted),
            Test::Suffix => value.ends_with(&*self.wanted),
        }
    }
}

// The list is built from the end, so that the next positions of each comparison are known.

fn all(steps: &mut Vec<Instruction>, filters: &[Filter], if_holds: Position, if_not: Position) -> Position {
    filters.iter().rev().fold(if_holds, |next, filter| one(steps, filter, next, if_not))
}

fn one(steps: &mut Vec<Instruction>, filter: &Filter, if_holds: Position, if_not: Position) -> Position {
    match filter {
        Filter::Exact(wanted) => pairs(steps, Test::Exact, wanted, if_holds, if_not),
        Filter::Prefix(wanted) => pairs(steps, Test::Prefix, wanted, if_holds, if_not),
        Filter::Suffix(wanted) => pairs(steps, Test::Suffix, wanted, if_holds, if_not),
        Filter::All(filters) => all(steps, filters, if_holds, if_not),
        Filter::Any(filters) => {
            filters.iter().rev().fold(if_not, |next, filter| one(steps, filter, if_holds, next))
        }
        Filter::Not(filter) => one(steps, filter, if_not, if_holds),
    }
}

fn pairs(
    steps: &mut Vec<Instruction>,
    test: Test,
    wanted: &Pairs,
    if_holds: Position,
    if_not: Position,
) -> Position {
    wanted.0.iter().rev().fold(if_holds, |next, (name, wanted)| {
        let position = Position(u32::try_from(steps.len()).expect("a body has fewer than 2^32 comparisons"));
        steps.push(Instruction { test, name: name.clone(), wanted: wanted.clone(), if_holds: next, if_not });
        position
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(json: &str) -> Program {
        Program::new(&serde_json::from_str::<Vec<Filter>>(json).unwrap())
    }

    fn attribute(name: &str) -> Option<Cow<'static, str>> {
        (name == "source").then(|| "idp".into())
    }

    #[test]
    fn an_evaluation_pauses_after_its_steps_and_continues() {
        let leaves: Vec<String> =
            (0..24_000).map(|number| format!(r#"{{"exact":{{"source":"{number}"}}}}"#)).collect();
        let program =
            program(&format!(r#"[{{"any":[{},{{"exact":{{"source":"idp"}}}}]}}]"#, leaves.join(",")));
        assert_eq!(program.comparisons(), 24_001);
        let (mut at, mut turns) = (program.start(), 0);
        let found = loop {
            let mut steps = 4_096;
            turns += 1;
            if let Some(found) = program.advance(&mut at, &attribute, &mut steps) {
                assert_eq!(steps, 6 * 4_096 - 24_001);
                break found;
            }
            assert_eq!(steps, 0);
        };
        assert_eq!((found, turns), (true, 6));
    }

    #[test]
    fn without_filters_every_event_matches_in_no_step() {
        let program = Program::new(&[]);
        let (mut at, mut steps) = (program.start(), 0);
        assert_eq!(program.advance(&mut at, &attribute, &mut steps), Some(true));
        assert!(Program::default().matches(&attribute));
    }

    #[test]
    fn an_evaluation_ends_when_the_result_is_known() {
        let program = program(r#"[{"exact":{"source":"other"}},{"exact":{"source":"idp"}}]"#);
        let (mut at, mut steps) = (program.start(), 10);
        assert_eq!(program.advance(&mut at, &attribute, &mut steps), Some(false));
        assert_eq!(steps, 9);
    }
}
