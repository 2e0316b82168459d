//! The schema's versions: each is one file, applied once, in order, and never changed afterwards.

pub(super) struct Migration {
    pub(super) version: i64,
    pub(super) sql: &'static str,
}

pub(super) fn newest(all: &[Migration]) -> i64 {
    all.last().map_or(0, |migration| migration.version)
}

/// Those that a schema of this version has not had.
pub(super) fn after(all: &[Migration], version: i64) -> impl Iterator<Item = &Migration> {
    all.iter().filter(move |migration| migration.version > version)
}
