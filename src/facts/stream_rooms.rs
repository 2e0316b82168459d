//! How full the streams are that reject messages when they are full.

use std::time::Duration;

use crate::domain::stream_fill::{Fill, Kind};
use crate::domain::words::rounded;

/// A stream is nearly full.
pub struct StreamNearlyFull<'a> {
    pub stream: &'a str,
    pub domain: Option<&'a str>,
    pub kind: Kind,
    pub fill: &'a Fill,
}

impl StreamNearlyFull<'_> {
    pub fn emit(self) {
        let Self { stream, domain, kind, fill } = self;
        let (percent, when_full, remedy) = (fill.percent(), kind.consequence(), kind.remedy());
        tracing::warn!(stream, domain, percent, used = %fill, when_full, remedy, "stream is nearly full");
    }
}

/// A stream is full.
pub struct StreamFull<'a> {
    pub stream: &'a str,
    pub domain: Option<&'a str>,
    pub kind: Kind,
    pub fill: &'a Fill,
}

impl StreamFull<'_> {
    pub fn emit(self) {
        let Self { stream, domain, kind, fill } = self;
        let (meanwhile, remedy) = (kind.consequence(), kind.remedy());
        tracing::warn!(stream, domain, used = %fill, meanwhile, remedy, "stream is full");
    }
}

/// A stream that was full, or nearly, has room again.
pub struct StreamHasRoomAgain<'a> {
    pub stream: &'a str,
    pub domain: Option<&'a str>,
    pub after: Duration,
}

impl StreamHasRoomAgain<'_> {
    pub fn emit(self) {
        let Self { stream, domain, after } = self;
        tracing::info!(stream, domain, after = %rounded(after), "stream has room again");
    }
}

/// Neither the outbox of a domain nor its dead-letter stream takes envelopes over quota.
pub struct ExcessHasNoRoom<'a> {
    pub domain: &'a str,
}

impl ExcessHasNoRoom<'_> {
    pub const REMEDY: &'static str = "repair the endpoints with the largest backlogs, run `hub dlt discard`, or raise \
                                      limits.dlt or limits.outbox";

    pub fn emit(self) {
        let (domain, remedy) = (self.domain, Self::REMEDY);
        tracing::warn!(domain, remedy, "outbox and dead letters of the domain are both full");
    }
}

/// The outbox of a domain or its dead-letter stream takes envelopes over quota again.
pub struct ExcessHasRoomAgain<'a> {
    pub domain: &'a str,
    pub after: Duration,
}

impl ExcessHasRoomAgain<'_> {
    pub fn emit(self) {
        let Self { domain, after } = self;
        tracing::info!(domain, after = %rounded(after), "outbox or dead letters of the domain have room again");
    }
}
