//! Quotas of each tenant.

use bytesize::ByteSize;
use serde::Deserialize;

use super::layers::SettingType;
use super::validate::Findings;
use super::{Settings, size};
use crate::domain::access::check_tenant;

/// `[quotas]`: the quotas of every tenant; 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quotas {
    pub subscriptions: usize,
    #[serde(with = "size")]
    pub subscriptions_size: ByteSize,
    pub events_per_second: usize,
    pub bulk_jobs: usize,
    pub traces: usize,
}

/// `[[tenants]]`: the quotas of one tenant; `[quotas]` applies to fields that are not set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub name: String,
    pub subscriptions: Option<usize>,
    #[serde(default, with = "size::optional")]
    pub subscriptions_size: Option<ByteSize>,
    pub events_per_second: Option<usize>,
    pub bulk_jobs: Option<usize>,
    pub traces: Option<usize>,
}

/// A limit and the setting that defines it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    pub limit: usize,
    /// `quotas.traces`, or `tenants[acme].traces`.
    pub setting: String,
}

impl Tenant {
    /// The fields of an entry.
    pub(super) const FIELDS: [(&'static str, SettingType); 6] = [
        ("name", SettingType::Text),
        ("subscriptions", SettingType::Whole),
        ("subscriptions_size", SettingType::Text),
        ("events_per_second", SettingType::Whole),
        ("bulk_jobs", SettingType::Whole),
        ("traces", SettingType::Whole),
    ];
}

/// Converts a limit to a number of items or bytes.
fn whole(limit: impl Limit) -> usize {
    limit.whole()
}

trait Limit {
    fn whole(self) -> usize;
}

impl Limit for usize {
    fn whole(self) -> usize {
        self
    }
}

impl Limit for ByteSize {
    fn whole(self) -> usize {
        usize::try_from(self.as_u64()).unwrap_or(usize::MAX)
    }
}

macro_rules! quotas {
    ($($(#[$doc:meta])* $name:ident: $field:ident),+ $(,)?) => {
        impl Settings {
            $($(#[$doc])*
            pub fn $name(&self, tenant: &str) -> Quota {
                let own = self.tenants.iter().find(|entry| entry.name == tenant);
                match own.and_then(|entry| entry.$field) {
                    Some(limit) => Quota {
                        limit: whole(limit),
                        setting: format!("tenants[{tenant}].{}", stringify!($field)),
                    },
                    None => Quota {
                        limit: whole(self.quotas.$field),
                        setting: format!("quotas.{}", stringify!($field)),
                    },
                }
            })+
        }
    };
}

quotas!(
    /// Most subscriptions of a tenant.
    subscription_quota: subscriptions,
    /// Most bytes of all subscriptions of a tenant together.
    subscriptions_size_quota: subscriptions_size,
    /// Most events per second that a tenant may publish over the API.
    event_quota: events_per_second,
    /// Most concurrent bulk jobs of a tenant.
    bulk_job_quota: bulk_jobs,
    /// Most concurrent traces of a tenant.
    trace_quota: traces,
);

impl Findings<'_> {
    pub(super) fn tenants(&mut self) {
        for tenant in &self.settings.tenants {
            let valid = check_tenant(&tenant.name);
            let problem = valid.as_ref().err().map(ToString::to_string).unwrap_or_default();
            self.require(valid.is_ok(), &format!("tenants[{}].name", tenant.name), problem);
        }
    }
}
