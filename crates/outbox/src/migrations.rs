//! Migrations of the schema: one file each, applied once and in order, never changed after its release.

pub(super) struct Migration {
    pub(super) version: i64,
    pub(super) sql: &'static str,
}

pub(super) fn newest(all: &[Migration]) -> i64 {
    all.last().map_or(0, |migration| migration.version)
}

/// Migrations that are newer than a schema version.
pub(super) fn after(all: &[Migration], version: i64) -> impl Iterator<Item = &Migration> {
    all.iter().filter(move |migration| migration.version > version)
}
