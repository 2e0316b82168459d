//! The plan of a seed: the servers, the processes, and the faults with their moments. A pure function.

use std::fmt;
use std::time::Duration;

/// Time of publishing. Each fault begins in the first two thirds of it.
pub(crate) const LENGTH: Duration = Duration::from_secs(12);

/// A kind of fault; its name is that of `HUB_CHAOS_FAULTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL for one process of the hub, and its start after a while.
    KillHub,
    /// SIGSTOP and SIGCONT for one process of the hub.
    FreezeHub,
    /// SIGTERM and a start for one process after the other.
    RollingRestart,
    /// SIGSTOP and SIGCONT for the server, or for one node of a cluster.
    FreezeBroker,
    /// The shared lane of a domain is deleted.
    DeleteLane,
    /// The consumer of the events is deleted.
    DeleteEventProcessor,
    /// The stream of the advisories is deleted.
    DeleteAdvisories,
    /// An endpoint alternates between success, a refusal and a broken answer.
    Flap,
    /// An endpoint does not answer.
    Hang,
    /// An endpoint refuses every delivery.
    Refuse,
    /// An operator pauses a domain, and resumes it.
    PauseDomain,
    /// An operator replays all dead letters.
    Replay,
    /// The domain outboxes have so little room that a hanging endpoint fills them.
    FullOutbox,
    /// SIGKILL for the server, and its start after a while.
    KillBroker,
    /// The connections of one process are closed, and new ones are refused for a while.
    Cut,
    /// The connections of one process are silent for a while.
    Silence,
    /// The server cannot write to its files until an operator makes room and restarts it.
    FullDisk,
    /// SIGKILL for the node that leads the outbox of a domain, and its return.
    LoseLeader,
    /// The wall clock of one process jumps by minutes or hours, forward or back, and later to another wrong time.
    ClockJump,
}

/// Kinds that every topology has.
pub(crate) const COMMON: [Kind; 13] = [
    Kind::KillHub,
    Kind::DeleteLane,
    Kind::Flap,
    Kind::Replay,
    Kind::RollingRestart,
    Kind::DeleteEventProcessor,
    Kind::Hang,
    Kind::PauseDomain,
    Kind::FreezeHub,
    Kind::DeleteAdvisories,
    Kind::Refuse,
    Kind::FreezeBroker,
    Kind::FullOutbox,
];
/// Kinds of a single server.
pub(crate) const SINGLE: [Kind; 4] = [Kind::KillBroker, Kind::Cut, Kind::Silence, Kind::FullDisk];
/// Kinds of a cluster.
pub(crate) const CLUSTER: [Kind; 1] = [Kind::LoseLeader];
/// Kinds that every plan has.
pub(crate) const ALWAYS: [Kind; 1] = [Kind::ClockJump];
/// Faults of a plan besides the one of its topology and those that every plan has.
pub(crate) const FAULTS: usize = 4;

impl Kind {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        COMMON.into_iter().chain(SINGLE).chain(CLUSTER).chain(ALWAYS)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillHub => "kill-hub",
            Self::FreezeHub => "freeze-hub",
            Self::RollingRestart => "rolling-restart",
            Self::FreezeBroker => "freeze-broker",
            Self::DeleteLane => "delete-lane",
            Self::DeleteEventProcessor => "delete-event-processor",
            Self::DeleteAdvisories => "delete-advisories",
            Self::Flap => "flap",
            Self::Hang => "hang",
            Self::Refuse => "refuse",
            Self::PauseDomain => "pause-domain",
            Self::Replay => "replay",
            Self::FullOutbox => "full-outbox",
            Self::KillBroker => "kill-broker",
            Self::Cut => "cut",
            Self::Silence => "silence",
            Self::FullDisk => "full-disk",
            Self::LoseLeader => "lose-leader",
            Self::ClockJump => "clock-jump",
        }
    }

    /// True if an acknowledgement or an answer may be lost in it, so that a delivery is repeated.
    pub(crate) fn repeats(self) -> bool {
        match self {
            Self::KillHub
            | Self::FreezeHub
            | Self::FreezeBroker
            | Self::DeleteLane
            | Self::KillBroker
            | Self::Cut
            | Self::Silence
            | Self::FullDisk
            | Self::LoseLeader => true,
            Self::RollingRestart
            | Self::DeleteEventProcessor
            | Self::DeleteAdvisories
            | Self::Flap
            | Self::Hang
            | Self::Refuse
            | Self::PauseDomain
            | Self::Replay
            | Self::FullOutbox
            | Self::ClockJump => false,
        }
    }

    /// Who carries it out. Each actor has one fault at a time.
    pub(crate) fn actor(self) -> Actor {
        match self {
            Self::KillHub | Self::FreezeHub | Self::RollingRestart => Actor::Processes,
            Self::KillBroker | Self::FreezeBroker | Self::FullDisk | Self::LoseLeader => Actor::Broker,
            Self::Cut | Self::Silence => Actor::Network,
            Self::Flap | Self::Hang | Self::Refuse | Self::FullOutbox => Actor::Endpoints,
            Self::DeleteLane
            | Self::DeleteEventProcessor
            | Self::DeleteAdvisories
            | Self::PauseDomain
            | Self::Replay => Actor::Operator,
            Self::ClockJump => Actor::Clocks,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Actor {
    Processes,
    Broker,
    Network,
    Endpoints,
    Operator,
    Clocks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topology {
    Single,
    /// Three nodes, and three replicas of each stream.
    Cluster,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Roles {
    /// Two processes, each with every role.
    Together,
    /// Two processes for each role.
    Apart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// From the start of publishing.
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    /// Chooses among the processes, domains or endpoints: an index modulo their number.
    pub(crate) target: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) topology: Topology,
    pub(crate) roles: Roles,
    /// In order of their moments.
    pub(crate) faults: Vec<Fault>,
}

impl Plan {
    /// The plan of a seed. Consecutive seeds take the kinds in rotation, so that a few seeds have all of them; moments,
    /// durations and targets are random.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random(seed);
        let index = usize::try_from(seed % 1_000_000).expect("below a million");
        let topology = if index % 4 == 3 { Topology::Cluster } else { Topology::Single };
        // A cluster and eight processes at once would mostly wait for the processor.
        let apart = topology == Topology::Single && index % 4 == 1;
        let roles = if apart { Roles::Apart } else { Roles::Together };
        let own = match topology {
            Topology::Single => SINGLE[(index - index / 4) % SINGLE.len()],
            Topology::Cluster => CLUSTER[0],
        };
        let common = (0..FAULTS).map(|position| COMMON[(index * FAULTS + position) % COMMON.len()]);
        let kinds = common.chain([own]).chain(ALWAYS);
        let mut faults: Vec<Fault> = kinds.map(|kind| random.fault(kind)).collect();
        faults.sort_by_key(|fault| fault.at);
        Self { seed, topology, roles, faults }
    }

    /// The same servers and processes without any fault.
    pub(crate) fn calm(seed: u64) -> Self {
        Self { faults: Vec::new(), ..Self::of(seed) }
    }

    /// With the permitted kinds only.
    pub(crate) fn filtered(mut self, filter: &Filter) -> Self {
        self.faults.retain(|fault| filter.permits(fault.kind));
        self
    }

    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.faults.iter().any(|fault| fault.kind == kind)
    }

    /// The faults of an actor, in order.
    pub(crate) fn of_actor(&self, actor: Actor) -> Vec<Fault> {
        self.faults.iter().copied().filter(|fault| fault.kind.actor() == actor).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {:?}, roles {:?}", self.seed, self.topology, self.roles)?;
        for Fault { kind, at, lasts, target } in &self.faults {
            let (at, lasts) = (at.as_secs_f64(), lasts.as_secs_f64());
            write!(f, "; {} {target} at {at:.1} s for {lasts:.1} s", kind.name())?;
        }
        Ok(())
    }
}

/// The kinds to inject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    only: Vec<Kind>,
    without: Vec<Kind>,
}

impl Filter {
    /// Reads `kill-hub,flap` (only these) or `-kill-hub` (all others).
    ///
    /// # Errors
    ///
    /// An unknown name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (list, name) = match word.strip_prefix('-') {
                Some(name) => (&mut filter.without, name),
                None => (&mut filter.only, word),
            };
            let kind = Kind::all().find(|kind| kind.name() == name);
            list.push(kind.ok_or_else(|| {
                let known: Vec<&str> = Kind::all().map(Kind::name).collect();
                format!("unknown fault {name:?}; known: {}", known.join(", "))
            })?);
        }
        Ok(filter)
    }

    fn permits(&self, kind: Kind) -> bool {
        (self.only.is_empty() || self.only.contains(&kind)) && !self.without.contains(&kind)
    }
}

/// Reads `3`, `0-9` or `1,4-6`.
///
/// # Errors
///
/// Neither a number nor a range of numbers.
pub(crate) fn seeds(text: &str) -> Result<Vec<u64>, String> {
    let mut seeds = Vec::new();
    for word in text.split(',').map(str::trim) {
        let (from, to) = word.split_once('-').unwrap_or((word, word));
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("seed {word:?}: {error}"));
        seeds.extend(number(from)?..=number(to)?);
    }
    Ok(seeds)
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same numbers on every machine and with every version of a library.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let (from, to) = (from.as_millis() as u64, to.as_millis() as u64);
        Duration::from_millis(from + self.next() % (to - from).max(1))
    }

    fn fault(&mut self, kind: Kind) -> Fault {
        let at = self.between(Duration::from_millis(500), LENGTH * 2 / 3);
        let lasts = self.between(Duration::from_millis(300), Duration::from_secs(4));
        Fault { kind, at, lasts, target: (self.next() % 1_000) as usize }
    }
}
