//! What an operator may ask of a hub, whoever asks: the command line and the HTTP API are two
//! faces of it. Each operation goes through the adapters and answers with values; nothing here
//! prints, and nothing here knows HTTP.

mod error;
mod rotation;
mod samples;
mod subscriptions;

use std::sync::Arc;

pub use error::ManagementError;
pub use rotation::{LONGEST_OVERLAP, Rotated, VerifyWith};
pub use samples::{Sample, SampleAttempt};
pub use subscriptions::{
    PlannedWrite, SubscriptionFilter, SubscriptionPage, WriteAction, keys_without_domain, read_subscription,
};

use crate::domain::category::Categories;
use crate::nats::JetStream;
use crate::seal::{MasterKeyError, Sealer};
use crate::settings::{Domain, Settings};

/// A hub to operate: its broker, its settings, its master key. Cheap to clone.
#[derive(Clone)]
pub struct Management {
    js: JetStream,
    settings: Arc<Settings>,
    /// `None`: no master key in the settings, so no credential can be stored or used.
    sealer: Option<Arc<Sealer>>,
}

impl Management {
    pub fn new(js: JetStream, settings: Arc<Settings>) -> Result<Self, MasterKeyError> {
        let sealer = Sealer::from_settings(&settings.secrets)?.map(Arc::new);
        Ok(Self { js, settings, sealer })
    }

    pub fn jet_stream(&self) -> &JetStream {
        &self.js
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_deref()
    }

    pub fn categories(&self) -> Categories {
        categories(&self.settings)
    }

    /// The domain of that name.
    pub fn domain(&self, name: &str) -> Result<&Domain, ManagementError> {
        self.settings.domains.iter().find(|domain| domain.name == name).ok_or_else(|| {
            ManagementError::UnknownDomain {
                name: name.to_owned(),
                known: self
                    .settings
                    .domains
                    .iter()
                    .map(|domain| domain.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            }
        })
    }

    /// The names of the chosen domains, all where none is named, in the order of the settings.
    pub fn domain_names(&self, chosen: &[String]) -> Result<Vec<String>, ManagementError> {
        for name in chosen {
            self.domain(name)?;
        }
        let all = self.settings.domains.iter().map(|domain| domain.name.clone());
        Ok(all.filter(|name| chosen.is_empty() || chosen.contains(name)).collect())
    }
}

/// The categorisation rules of the settings.
pub fn categories(settings: &Settings) -> Categories {
    Categories::new(
        settings.domains.iter().map(|domain| (domain.name.clone(), domain.events.clone())).collect(),
    )
}
