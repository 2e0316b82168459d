//! How many lines the log has about changes that were made through the API. They show who changed what, so each change has
//! a line of its own; but a caller decides how many changes it makes, and must not decide the length of the log.
//!
//! The tokens of a tenant together have [`LINES`] lines per interval, and so has each token without a tenant for each tenant
//! that it changes, at most [`TOKEN_LINES`] in all: so a portal that has one token for all tenants does not hide the changes
//! of one tenant behind those of another. Further changes are counted by tenant, token, method and route, and one line per
//! interval says how many there were. What is remembered is bounded.
//!
//! Times are durations since any fixed moment.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Lines of the tokens of one tenant, or of one token without a tenant about one tenant, per interval.
pub const LINES: u32 = 100;
/// Lines of one token without a tenant, per interval.
pub const TOKEN_LINES: u32 = 1_000;
/// Tenants and tokens with lines of their own; those beyond share their lines.
const MOST_CALLERS: usize = 1_000;
/// Tenants with lines of their own that one token changes in an interval; those beyond share their lines.
const MOST_TENANTS: usize = 100;
/// Counts of one tenant or token; what is beyond is counted together, without names.
const MOST_COUNTS: usize = 64;
/// Bytes of a name that distinguish it from others.
const MOST_BYTES: usize = 128;

/// A change through the API.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApiChange<'a> {
    /// The tenant that the token is bound to.
    pub bound: Option<&'a str>,
    /// The name of the token.
    pub caller: &'a str,
    /// The tenant that the change is about; empty if it is about none.
    pub tenant: &'a str,
    pub method: &'a str,
    /// The pattern of the path.
    pub route: &'a str,
}

/// Changes without a line of their own; with empty names, those of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangesLeftOut {
    pub caller: String,
    pub tenant: String,
    pub method: String,
    pub route: String,
    pub count: u64,
}

/// Tenant, token, method and route.
type What = [String; 4];

/// The lines that were written lately.
#[derive(Debug)]
pub struct ApiChanges {
    interval: Duration,
    callers: BTreeMap<String, Lines>,
}

/// The lines of one caller: of the tokens of a tenant, or of a token.
#[derive(Debug, Default)]
struct Lines {
    /// Start of the interval in which lines are counted.
    since: Duration,
    lines: u32,
    /// The lines by the tenant that was changed; empty for the tokens of a tenant, which change that one only.
    tenants: HashMap<String, u32>,
    /// The changes without a line, and the time of the first one.
    left_out: BTreeMap<What, u64>,
    left_out_since: Duration,
}

impl ApiChanges {
    /// With an interval of zero every change has a line.
    pub fn new(interval: Duration) -> Self {
        Self { interval, callers: BTreeMap::new() }
    }

    /// Whether a change has a line of its own.
    pub fn has_line(&mut self, change: ApiChange<'_>, now: Duration) -> bool {
        if self.interval.is_zero() {
            return true;
        }
        let (mut key, changed) = match change.bound {
            Some(tenant) => (format!("tenant {}", cut(tenant)), None),
            None => (format!("token {}", cut(change.caller)), Some(cut(change.tenant))),
        };
        if self.callers.len() >= MOST_CALLERS && !self.callers.contains_key(&key) {
            key.clear();
        }
        let lines = self.callers.entry(key).or_default();
        if now.saturating_sub(lines.since) >= self.interval {
            (lines.since, lines.lines) = (now, 0);
            lines.tenants.clear();
        }
        if lines.has_line(changed) {
            return true;
        }
        if lines.left_out.is_empty() {
            lines.left_out_since = now;
        }
        let mut what = [change.tenant, change.caller, change.method, change.route].map(cut);
        if lines.left_out.len() >= MOST_COUNTS && !lines.left_out.contains_key(&what) {
            what = What::default();
        }
        let count = lines.left_out.entry(what).or_default();
        *count = count.saturating_add(1);
        false
    }

    /// The changes that had no line for an interval, each once; to be called every few seconds.
    pub fn due(&mut self, now: Duration) -> Vec<ChangesLeftOut> {
        let (interval, mut found) = (self.interval, Vec::new());
        for lines in self.callers.values_mut() {
            if !lines.left_out.is_empty() && now.saturating_sub(lines.left_out_since) >= interval {
                lines.collect(&mut found);
            }
        }
        self.callers
            .retain(|_, lines| !lines.left_out.is_empty() || now.saturating_sub(lines.since) < interval);
        found
    }

    /// All changes that had no line, at the end of the process.
    pub fn rest(&mut self) -> Vec<ChangesLeftOut> {
        let mut found = Vec::new();
        for mut lines in std::mem::take(&mut self.callers).into_values() {
            lines.collect(&mut found);
        }
        found
    }
}

impl Lines {
    /// Counts a line, if there is one left for the changed tenant.
    fn has_line(&mut self, changed: Option<String>) -> bool {
        let Some(mut tenant) = changed else {
            let is_left = self.lines < LINES;
            self.lines += u32::from(is_left);
            return is_left;
        };
        if self.lines >= TOKEN_LINES {
            return false;
        }
        if self.tenants.len() >= MOST_TENANTS && !self.tenants.contains_key(&tenant) {
            tenant.clear();
        }
        let of_tenant = self.tenants.entry(tenant).or_default();
        let is_left = *of_tenant < LINES;
        *of_tenant += u32::from(is_left);
        self.lines += u32::from(is_left);
        is_left
    }

    fn collect(&mut self, found: &mut Vec<ChangesLeftOut>) {
        let left_out = std::mem::take(&mut self.left_out);
        found.extend(left_out.into_iter().map(|([tenant, caller, method, route], count)| ChangesLeftOut {
            caller,
            tenant,
            method,
            route,
            count,
        }));
    }
}

fn cut(name: &str) -> String {
    name[..name.floor_char_boundary(MOST_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn change<'a>(bound: Option<&'a str>, caller: &'a str, route: &'a str) -> ApiChange<'a> {
        ApiChange { bound, caller, tenant: bound.unwrap_or("acme"), method: "PUT", route }
    }

    #[test]
    fn each_change_has_a_line_until_its_tenant_has_had_its_lines() {
        let mut changes = ApiChanges::new(MINUTE);
        let at = Duration::from_secs;
        // Two tokens of a tenant change a thousand things each; another tenant changes one.
        let mut lines = 0;
        for number in 0..2_000 {
            let caller = if number % 2 == 0 { "ci" } else { "portal" };
            lines += u32::from(changes.has_line(change(Some("acme"), caller, "/s/{id}"), at(number / 100)));
        }
        assert_eq!(lines, LINES);
        assert!(changes.has_line(change(Some("globex"), "ci", "/s/{id}"), at(20)));
        assert!(changes.has_line(change(None, "ci", "/s/{id}"), at(20)), "a token of the same name");
        assert!(changes.due(at(59)).is_empty());
        // The first one without a line was at 1 s.
        let due = changes.due(at(61));
        let named: Vec<_> = due.iter().map(|one| (one.tenant.as_str(), one.caller.as_str())).collect();
        assert_eq!(named, [("acme", "ci"), ("acme", "portal")]);
        assert_eq!(due.iter().map(|one| one.count).sum::<u64>(), 2_000 - u64::from(LINES));
        assert!(due.iter().all(|one| (one.method.as_str(), one.route.as_str()) == ("PUT", "/s/{id}")));
        assert!(changes.due(at(200)).is_empty() && changes.rest().is_empty());
        assert!(changes.callers.is_empty(), "nothing is kept of callers without changes");
        assert!(changes.has_line(change(Some("acme"), "ci", "/s/{id}"), at(201)));
    }

    /// A portal has one token for all tenants.
    #[test]
    fn a_tenant_does_not_hide_the_changes_of_others_behind_a_token_that_they_share() {
        let mut changes = ApiChanges::new(MINUTE);
        fn of(tenant: &str) -> ApiChange<'_> {
            ApiChange { tenant, ..change(None, "portal", "/s/{id}") }
        }
        let at = Duration::from_secs;
        let lines = (0..5_000).filter(|_| changes.has_line(of("acme"), at(1))).count();
        assert_eq!(lines, LINES as usize);
        for number in 0..50 {
            assert!(changes.has_line(of(&format!("t{number}")), at(2)), "{number}");
        }
        assert!(changes.has_line(of(""), at(2)), "of no tenant");
        let due = changes.due(at(61));
        assert_eq!(due.len(), 1, "{due:?}");
        assert_eq!((&*due[0].tenant, &*due[0].caller, due[0].count), ("acme", "portal", 4_900));

        // Many tenants make many changes each: the token has a limit, and another one its own.
        let names: Vec<String> = (0..3_000).map(|number| format!("t{number}")).collect();
        let mut lines = 0;
        for _ in 0..50 {
            lines += names.iter().filter(|name| changes.has_line(of(name), at(70))).count();
        }
        assert!(lines <= TOKEN_LINES as usize && lines > LINES as usize, "{lines}");
        assert!(changes.callers.values().all(|lines| lines.tenants.len() <= MOST_TENANTS + 1));
        assert!(changes.has_line(ApiChange { caller: "ci", ..of("acme") }, at(70)));
        let counted: u64 = changes.rest().iter().map(|one| one.count).sum();
        assert_eq!(lines as u64 + counted, 150_000);
    }

    /// Whatever comes, each change has a line or is counted, and the memory and the lines are bounded.
    #[test]
    fn every_change_has_a_line_or_is_counted() {
        let mut changes = ApiChanges::new(MINUTE);
        let (mut lines, mut counted, mut state, total) = (0_u64, 0_u64, 1_u64, 400_000_u64);
        for number in 0..total {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (tenant, route) = ((state >> 33) % 3_000, (state >> 45) % 300);
            // Some make most of the changes.
            let tenant = if tenant % 2 == 0 { tenant % 5 } else { tenant };
            let (tenant, route) = (format!("t{tenant}"), format!("/{route}"));
            let bound = (state >> 60 > 7).then_some(tenant.as_str());
            let now = Duration::from_millis(number);
            lines += u64::from(changes.has_line(change(bound, &tenant, &route), now));
            if number % 1_000 == 0 {
                counted += changes.due(now).iter().map(|one| one.count).sum::<u64>();
            }
            assert!(changes.callers.len() <= MOST_CALLERS + 1);
            if number % 997 == 0 {
                for lines in changes.callers.values() {
                    assert!(lines.left_out.len() <= MOST_COUNTS + 1 && lines.lines <= TOKEN_LINES);
                    assert!(lines.tenants.len() <= MOST_TENANTS + 1);
                }
            }
        }
        counted += changes.rest().iter().map(|one| one.count).sum::<u64>();
        assert_eq!(lines + counted, total);
        assert!(counted > 0 && lines > 0);
    }

    #[test]
    fn without_an_interval_every_change_has_a_line() {
        let mut changes = ApiChanges::new(Duration::ZERO);
        for _ in 0..1_000 {
            assert!(changes.has_line(change(None, "ci", "/s"), Duration::ZERO));
        }
        assert!(changes.rest().is_empty());
    }
}
