//! The subscription resolver that this process asks, and the one that it serves.

use std::sync::Arc;

use super::{Role, ServeError, ServeOptions};
use crate::facts::Metrics;
use crate::roles::event_processor::RemoteResolver;
use crate::settings::{Settings, SubscriptionSource};
use crate::subscriptions_grpc::{ClientOptions, ResolverClient, ServerOptions};

/// The remote resolver, if one is configured.
pub(super) fn remote(
    settings: &Settings,
    metrics: &Metrics,
) -> Result<Option<Arc<RemoteResolver>>, ServeError> {
    let subscriptions = &settings.subscriptions;
    let (SubscriptionSource::Grpc, Some(url)) = (subscriptions.source, &subscriptions.grpc_url) else {
        return Ok(None);
    };
    let client = ResolverClient::new(&ClientOptions {
        url: url.clone(),
        token: subscriptions.token.clone(),
        ca_file: subscriptions.tls_ca_file.clone(),
        identity_files: subscriptions.tls_cert_file.clone().zip(subscriptions.tls_key_file.clone()),
        deadline: subscriptions.deadline,
    })?;
    let remote = RemoteResolver::new(
        client,
        subscriptions.cache_entries,
        subscriptions.max_staleness,
        metrics.clone(),
    );
    Ok(Some(Arc::new(remote)))
}

/// The options of the resolver role, if this process runs it.
pub(super) fn server_options(
    settings: &Settings,
    options: &ServeOptions,
) -> Result<Option<ServerOptions>, ServeError> {
    if !options.roles.contains(&Role::SubscriptionResolver) {
        return Ok(None);
    }
    let subscriptions = &settings.subscriptions;
    if subscriptions.listen_token.is_none() && !subscriptions.listen_anonymous {
        return Err(ServeError::NoResolverToken);
    }
    Ok(Some(ServerOptions {
        listen: subscriptions.listen,
        token: subscriptions.listen_token.clone(),
        identity_files: subscriptions
            .listen_tls_cert_file
            .clone()
            .zip(subscriptions.listen_tls_key_file.clone()),
        client_ca_file: subscriptions.listen_tls_client_ca_file.clone(),
    }))
}
