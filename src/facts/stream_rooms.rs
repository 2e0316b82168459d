//! How full the streams are that reject messages when they are full. What publishers and endpoints do decides how often that
//! changes.

use std::time::Duration;

use super::limited::{About, limited};
use crate::domain::stream_fill::{Fill, StreamKind};
use crate::domain::words::rounded;

/// A stream is nearly full.
pub struct StreamNearlyFull<'a> {
    pub stream: &'a str,
    pub domain: Option<&'a str>,
    pub kind: StreamKind,
    pub fill: &'a Fill,
}

impl StreamNearlyFull<'_> {
    pub fn emit(self) {
        let Self { stream, domain, kind, fill } = self;
        let (percent, when_full, remedy) = (fill.percent(), kind.consequence(), kind.remedy());
        limited!(
            WARN "stream is nearly full", About::detail(stream);
            stream, domain, percent, used = %fill, when_full, remedy
        );
    }
}

/// A stream is full.
pub struct StreamFull<'a> {
    pub stream: &'a str,
    pub domain: Option<&'a str>,
    pub kind: StreamKind,
    pub fill: &'a Fill,
}

impl StreamFull<'_> {
    pub fn emit(self) {
        let Self { stream, domain, kind, fill } = self;
        let (meanwhile, remedy) = (kind.consequence(), kind.remedy());
        limited!(
            WARN "stream is full", About::detail(stream);
            stream, domain, used = %fill, meanwhile, remedy
        );
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
        limited!(
            INFO "stream has room again", About::detail(stream);
            stream, domain, after = %rounded(after)
        );
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
        limited!(
            WARN "outbox and dead letters of the domain are both full", About::domain(domain);
            domain, remedy
        );
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
        limited!(
            INFO "outbox or dead letters of the domain have room again", About::domain(domain);
            domain, after = %rounded(after)
        );
    }
}
