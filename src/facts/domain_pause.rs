//! The pause of a domain, in each process that delivers.

use super::Cause;
use super::limited::{About, limited};

/// A domain is paused: this process starts no attempt.
pub struct DomainPaused<'a> {
    pub domain: &'a str,
}

impl DomainPaused<'_> {
    pub fn emit(self) {
        let Self { domain } = self;
        limited!(INFO "domain paused, deliveries wait", About::domain(domain); domain);
    }
}

/// The pause of a domain was ended, or is over.
pub struct DomainResumed<'a> {
    pub domain: &'a str,
}

impl DomainResumed<'_> {
    pub fn emit(self) {
        let Self { domain } = self;
        limited!(INFO "pause of the domain ended, deliveries continue", About::domain(domain); domain);
    }
}

/// The pause of a domain was not read; it is read again in some seconds.
pub struct DomainPauseNotRead<'a> {
    pub error: Cause<'a>,
    pub domain: &'a str,
}

impl DomainPauseNotRead<'_> {
    pub fn emit(self) {
        let Self { error, domain } = self;
        limited!(
            WARN "pause of the domain not read, will retry", About::domain(domain).cause(error);
            %error, domain
        );
    }
}
