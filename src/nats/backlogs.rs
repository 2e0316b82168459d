//! How many envelopes of each subscription a domain outbox has.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::NatsError;
use super::stream_api::StreamState;
use super::subjects::{SHARED_LANE, lane_consumer, subscription_of_lane};
use crate::domain::backlog::{Backlog, OutboxLook};

impl JetStream {
    /// The backlogs of a domain: all, or that of one subscription, named by its token.
    pub async fn backlogs(&self, domain: &str, subscription: Option<&str>) -> Result<OutboxLook, NatsError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: u64,
            state: StreamState,
        }
        let names = self.names();
        let stream = names.outbox_stream(domain);
        let filter = names.outbox(domain, "*", subscription.unwrap_or("*"));
        let mut found: HashMap<String, Backlog> = HashMap::new();
        let (mut look, mut offset) = (OutboxLook::default(), 0);
        loop {
            let request = json!({"subjects_filter": filter, "offset": offset});
            let page: Page = self.api(&format!("STREAM.INFO.{stream}"), &request).await?;
            (look.messages, look.bytes) = (page.state.messages, page.state.bytes);
            let subjects = page.state.subjects.unwrap_or_default();
            offset += subjects.len() as u64;
            let is_last = subjects.is_empty() || offset >= page.total;
            for (subject, count) in subjects {
                let Some(parsed) = names.parse_outbox(&subject) else { continue };
                let token = parsed.subscription;
                if !found.contains_key(token) {
                    found.insert(token.to_owned(), Backlog { token: token.to_owned(), own: 0, shared: 0 });
                }
                let Some(backlog) = found.get_mut(token) else { continue };
                match subscription_of_lane(parsed.lane) == Some(token) {
                    true => backlog.own += count,
                    false => backlog.shared += count,
                }
            }
            if is_last {
                break;
            }
        }
        look.backlogs = found.into_values().collect();
        Ok(look)
    }

    /// The clock of the server in nanoseconds since 1970, as the stream's leader has it. `None` if the server is too old
    /// to say it.
    pub async fn server_time(&self, stream: &str) -> Result<Option<i128>, NatsError> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default)]
            ts: String,
        }
        let info: Info = self.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        Ok(OffsetDateTime::parse(&info.ts, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp_nanos))
    }

    /// Whether an operator has paused the deliveries of a domain.
    pub async fn is_paused(&self, domain: &str) -> Result<bool, NatsError> {
        let stream = self.names().outbox_stream(domain);
        match self.consumer_info(&stream, &lane_consumer(SHARED_LANE)).await {
            Ok(consumer) => Ok(consumer.paused),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
