//! The address guard: resolves names, and passes on permitted addresses only. The connection uses the addresses that were
//! checked, so a second look-up cannot return other ones (DNS rebinding).

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use crate::domain::address::AddressPolicy;

/// Deliveries may not reach the endpoint's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host}: the address is not on the public internet; add its network to delivery.allow_networks to permit it"
)]
pub(super) struct AddressRefused {
    pub(super) host: String,
}

/// The name has no address, or no name server answered.
#[derive(Debug, thiserror::Error)]
#[error("{host}: name resolution failed")]
pub(super) struct Unresolved {
    host: String,
    #[source]
    source: Option<std::io::Error>,
}

#[derive(Clone)]
pub(super) struct GuardedResolver {
    policy: AddressPolicy,
}

impl GuardedResolver {
    pub(super) fn new(policy: AddressPolicy) -> Self {
        Self { policy }
    }
}

/// An [`AddressRefused`], an [`Unresolved`], or any other error of a connection.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let policy = self.policy.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let looked_up = tokio::net::lookup_host((host.as_str(), 0)).await;
            let resolved: Vec<SocketAddr> = match looked_up.map(Iterator::collect) {
                Ok(resolved) => resolved,
                Err(source) => return Err(Unresolved { host, source: Some(source) }.into()),
            };
            if resolved.is_empty() {
                return Err(Unresolved { host, source: None }.into());
            }
            let permitted: Vec<SocketAddr> =
                resolved.into_iter().filter(|address| policy.permits(address.ip())).collect();
            if permitted.is_empty() {
                return Err(AddressRefused { host }.into());
            }
            Ok(permitted.into_iter())
        })
    }
}
