//! The whole flow under exactly the permissions of `nats/accounts.conf`, with one process and one user for each
//! role; and each forbidden operation is refused.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use async_nats::{HeaderMap, Request};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};

use super::STEP;
use super::secured::{FORBIDDEN, Secured, User};
use crate::support::outbox::event;
use crate::support::{
    ApiClient, Behaviour, Hub, Receiver, TestDatabase, TestSettings, eventually, subscription,
};

const ROLES: [&str; 6] =
    ["event-processor", "outbox-processor", "dlt-router", "dlt-processor", "outbox-relay", "api"];

/// Subjects to which each user of the hub must not publish.
const KEPT_APART: [(&str, &[&str]); 9] = [
    (
        "event-processor",
        &[
            "$KV.hub-subscriptions.crm",
            "$JS.API.STREAM.MSG.GET.KV_hub-tokens",
            "hub.redrive.due.organization.1",
            "hub.redrive.held.crm",
            "$JS.API.CONSUMER.DELETE.HUB_OUTBOX_ORGANIZATION.lane-own-crm",
        ],
    ),
    (
        "outbox-processor",
        &["hub.events.user.created", "$JS.API.STREAM.MSG.GET.KV_hub-keys", "$KV.hub-tokens.x"],
    ),
    (
        "dlt-router",
        &[
            "hub.events.user.created",
            "$KV.hub-subscriptions.crm",
            "hub.redrive.due.organization.1",
            "$JS.API.CONSUMER.DELETE.HUB_OUTBOX_ORGANIZATION.lane-own-crm",
            "$JS.API.CONSUMER.MSG.NEXT.HUB_OUTBOX_ORGANIZATION.lane-shared",
        ],
    ),
    ("dlt-processor", &["hub.events.user.created", "$KV.hub-subscriptions.crm"]),
    (
        "outbox-relay",
        &["hub.outbox.user-lifecycle.shared.crm", "$KV.hub-subscriptions.crm", "hub.from.acme.user.created"],
    ),
    (
        "api",
        &["$KV.hub-tokens.x", "hub.outbox.user-lifecycle.shared.crm", "$JS.API.STREAM.DELETE.HUB_EVENTS"],
    ),
    ("operator", &["hub.outbox.user-lifecycle.shared.crm", "$JS.API.STREAM.UPDATE.HUB_EVENTS"]),
    (
        "watcher",
        &["$JS.API.STREAM.MSG.GET.HUB_EVENTS", "$JS.API.DIRECT.GET.HUB_EVENTS", "hub.events.user.created"],
    ),
    ("monitor", &["hub.events.user.created", "$JS.API.INFO"]),
];

/// Publishes as a JetStream publisher does, and returns the acknowledgement.
async fn acknowledged(user: &User, subject: &str, headers: &[(&str, &str)]) -> Value {
    let mut map = HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.insert(*name, *value));
    let request = Request::new().payload("{}".into()).headers(map).timeout(Some(STEP));
    let answer = user.client.send_request(subject.to_owned(), request).await;
    let answer = answer.unwrap_or_else(|error| panic!("{} on {subject}: {error}", user.name));
    serde_json::from_slice(&answer.payload).expect("an acknowledgement is JSON")
}

/// The streams, and the number of messages that each has stored so far.
async fn streams(admin: &User) -> Vec<stream::Info> {
    let mut streams: Vec<stream::Info> =
        jetstream::new(admin.client.clone()).streams().try_collect().await.expect("listed");
    streams.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    streams
}

/// The last sequence and the number of messages of each bucket.
async fn buckets(admin: &User) -> Vec<(String, u64, u64)> {
    let streams = streams(admin).await.into_iter().filter(|info| info.config.name.starts_with("KV_"));
    streams.map(|info| (info.config.name, info.state.last_sequence, info.state.messages)).collect()
}

/// The subjects of the messages with that payload which came after `before`.
async fn stored_since(admin: &User, before: &[stream::Info], payload: &str) -> Vec<String> {
    let context = jetstream::new(admin.client.clone());
    let mut found = Vec::new();
    for info in before {
        let stream = context.get_stream(&info.config.name).await.expect("still there");
        let last = stream.cached_info().state.last_sequence;
        for sequence in info.state.last_sequence + 1..=last {
            // The hub may have removed it.
            let Ok(message) = stream.get_raw_message(sequence).await else { continue };
            if message.payload == payload.as_bytes() {
                found.push(message.subject.to_string());
            }
        }
    }
    found
}

struct Stage {
    server: Secured,
    receiver: Receiver,
    /// One process for each role.
    roles: Vec<Hub>,
    operator: Hub,
    database: TestDatabase,
}

impl Stage {
    async fn set() -> Self {
        let server = Secured::start().await;
        let receiver = Receiver::start().await;
        let database = TestDatabase::sqlite().await.expect("it is built in");
        database.outbox(&[]).await;
        let admin = Hub::not_started(&server.url(), &server.settings("hub", TestSettings::quick()));
        let made = admin.cli_json(&["provision"]).await;
        assert!(made["created"].as_array().is_some_and(|all| all.len() > 20), "{made}");
        assert_eq!(admin.cli_json(&["provision", "--check"]).await, json!([]));

        let quick = TestSettings::quick().with_redrives([Duration::from_millis(500); 3]);
        let relayed = quick.clone().with_outbox(&database.url());
        let mut roles = Vec::new();
        for role in ROLES {
            let more = if role == "outbox-relay" { &relayed } else { &quick };
            let mut hub = Hub::serve(&server.url(), &server.settings(role, more.clone()), &["--role", role]);
            hub.ready().await;
            roles.push(hub);
        }
        let operator = Hub::not_started(&server.url(), &server.settings("operator", quick));
        Self { server, receiver, roles, operator, database }
    }

    async fn subscribe(&self, subscription: &Value) {
        let id = subscription["id"].as_str().expect("an id");
        let file = self.operator.folder().join(format!("{id}.json"));
        std::fs::write(&file, subscription.to_string()).expect("written");
        self.operator.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    }

    fn subscription(&self, id: &str, events: &[&str]) -> Value {
        subscription(id, events, &self.receiver.url(&format!("/{id}")))
    }

    async fn parked(&self, subscription: &str) -> Vec<Value> {
        let letters = self.operator.cli_json(&["dlt", "list", "--subscription", subscription]).await;
        let all = letters.as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|letter| letter["state"] == "parked").collect()
    }

    /// Publishing, delivering, and the acknowledgement of each publisher.
    async fn publish(&self, api: &ApiClient) {
        self.subscribe(&self.subscription("crm", &["user.>"])).await;
        let mut acme = self.subscription("acme", &["user.>"]);
        acme["tenant"] = json!("acme");
        self.subscribe(&acme).await;
        let (producer, acme) = (self.server.user("producer").await, self.server.user("acme").await);
        for (user, subject) in [(&producer, "hub.events.user.created"), (&acme, "hub.from.acme.user.created")]
        {
            let ack = acknowledged(user, subject, &[("Nats-Msg-Id", "p-1")]).await;
            assert_eq!(ack["stream"], "HUB_EVENTS", "{}: {ack}", user.name);
            // Also without a request for one.
            user.client.publish(subject.to_owned(), "{}".into()).await.expect("sent");
            user.client.flush().await.expect("flushed");
        }
        self.operator.cli_ok(&["publish", "user.created", "{}", "--id", "o-1"]).await;
        let cloudevent = json!({"specversion": "1.0", "id": "a-1", "source": "/idp", "type": "user.created"});
        let content = [("content-type", "application/cloudevents+json")];
        for duplicate in [false, true] {
            let body = cloudevent.to_string().into_bytes();
            let answer = api.send("POST", "/v1/events", &content, Some(body)).await.expect(202);
            assert_eq!(answer["events"][0]["duplicate"], duplicate);
        }
        self.database.raise(&event("r-1", "user-u1")).await.expect("raised");
        self.receiver.wait_for("/crm", 5, STEP).await;
        self.receiver.wait_for("/acme", 2, STEP).await;
        eventually(STEP, "the trace of an event is complete", async || {
            // Between the delivery and its record in the delivery log, there is no trace.
            let traced = self.operator.cli(&["event", "trace", "a-1", "--output", "json"]).await;
            let story = String::from_utf8_lossy(&traced.stdout).into_owned();
            if story.contains("delivered") { Ok(()) } else { Err(story) }
        })
        .await;
        let story = api.get("/v1/events/a-1").await.expect(200).to_string();
        assert!(story.contains("delivered"), "{story}");
    }

    /// Retries, dead letters, redrive by the timer, replay by the operator, a bulk job by the API.
    async fn dead_letters(&self, api: &ApiClient) {
        let producer = self.server.user("producer").await;
        for (id, key) in [("flaky", "role.granted"), ("picky", "group.made"), ("bulky", "password.reset")] {
            self.subscribe(&self.subscription(id, &[key])).await;
            let behaviour =
                if id == "flaky" { Behaviour::failing_first(4, 500) } else { Behaviour::status(400) };
            self.receiver.set(&format!("/{id}"), behaviour);
            acknowledged(&producer, &format!("hub.events.{key}"), &[]).await;
        }
        // Three attempts, a dead letter, and a redrive whose second attempt is accepted.
        self.receiver.wait_accepted("/flaky", 1, STEP).await;
        for id in ["picky", "bulky"] {
            eventually(STEP, "its dead letter is parked", async || {
                let parked = self.parked(id).await;
                if parked.len() == 1 { Ok(()) } else { Err(parked) }
            })
            .await;
            self.receiver.set(&format!("/{id}"), Behaviour::ok());
        }
        self.operator.cli_ok(&["dlt", "replay", "--subscription", "picky", "--wait"]).await;
        self.receiver.wait_accepted("/picky", 1, STEP).await;
        let order = api.post("/v1/dead-letters/replay", &json!({"subscription": "bulky"})).await.expect(202);
        self.receiver.wait_accepted("/bulky", 1, STEP).await;
        let path = format!("/v1/orders/{}", order["id"].as_str().expect("an id"));
        eventually(STEP, "the bulk job is over", async || {
            let order = api.get(&path).await.expect(200);
            if order["state"] == "done" { Ok(()) } else { Err(order) }
        })
        .await;
        assert_eq!(api.get("/v1/orders").await.expect(200)["orders"].as_array().map(Vec::len), Some(1));
        // Discarded with the command.
        self.receiver.set("/picky", Behaviour::status(400));
        acknowledged(&producer, "hub.events.group.made", &[]).await;
        eventually(STEP, "the next is parked", async || {
            let parked = self.parked("picky").await;
            if parked.len() == 1 { Ok(()) } else { Err(parked) }
        })
        .await;
        self.operator.cli_ok(&["dlt", "discard", "--subscription", "picky", "--yes"]).await;
        assert_eq!(self.parked("picky").await, Vec::<Value>::new());
        self.operator.cli_ok(&["dlt", "stats"]).await;
    }

    /// Endpoints that answer 429 or 410; and the operators' commands.
    async fn operate(&self, api: &ApiClient) {
        let producer = self.server.user("producer").await;
        self.subscribe(&self.subscription("gone", &["email.changed"])).await;
        self.receiver.set("/gone", Behaviour::status(410));
        self.subscribe(&self.subscription("busy", &["registration.begun"])).await;
        self.receiver.set("/busy", Behaviour::retry_after(503, 60));
        acknowledged(&producer, "hub.events.email.changed", &[]).await;
        acknowledged(&producer, "hub.events.registration.begun", &[]).await;
        self.receiver.wait_for("/busy", 1, STEP).await;
        eventually(STEP, "the endpoint that is gone is disabled", async || {
            let shown = self.operator.cli_json(&["subscription", "show", "gone"]).await;
            if shown["state"] == "disabled" { Ok(()) } else { Err(shown) }
        })
        .await;
        let watcher = jetstream::new(self.server.user("watcher").await.client);
        let outbox = watcher.get_stream("HUB_OUTBOX_USER_LIFECYCLE").await.expect("the watcher may look");
        // Envelopes that arrive during the hold move to a lane of their own; the first ones may arrive before it.
        eventually(STEP, "the busy one has a lane of its own", async || {
            acknowledged(&producer, "hub.events.registration.begun", &[]).await;
            let names: Vec<String> = outbox.consumer_names().try_collect().await.expect("listed");
            if names.iter().any(|name| name.starts_with("lane-own-")) { Ok(()) } else { Err(names) }
        })
        .await;

        // A hold is stored by the worker, and read and ended by operators.
        eventually(STEP, "the hold is shown", async || {
            let shown = self.operator.cli_json(&["subscription", "show", "busy", "--circuits"]).await;
            if shown[0]["hold"]["status"] == 503 { Ok(()) } else { Err(shown) }
        })
        .await;
        let resumed = self.operator.cli_ok(&["subscription", "resume", "busy"]).await;
        assert!(resumed.contains("hold ended"), "{resumed}");
        api.post("/v1/subscriptions/busy/resume", &json!({})).await.expect(200);

        self.operator.cli_ok(&["domain", "pause", "user-lifecycle", "--for", "1h"]).await;
        let before = self.receiver.count("/crm");
        acknowledged(&producer, "hub.events.user.created", &[]).await;
        let domains = self.operator.cli_json(&["domain", "list"]).await.to_string();
        assert!(domains.contains("\"paused\":true"), "{domains}");
        self.operator.cli_ok(&["domain", "resume", "user-lifecycle"]).await;
        self.receiver.wait_for("/crm", before + 1, STEP).await;

        api.post("/v1/domains/user-lifecycle/pause", &json!({"for": "1h"})).await.expect(200);
        api.post("/v1/domains/user-lifecycle/resume", &json!({})).await.expect(200);
        assert!(api.get("/v1/subscriptions").await.expect(200).to_string().contains("crm"));
        self.operator.cli_ok(&["subscription", "pause", "crm"]).await;
        self.operator.cli_ok(&["subscription", "resume", "crm"]).await;
        self.operator.cli_ok(&["subscription", "remove", "busy", "--yes"]).await;
        assert_eq!(self.operator.cli_json(&["token", "list"]).await.as_array().map(Vec::len), Some(1));
    }

    /// Operations that only the hub may do.
    async fn forbidden(&self) {
        let admin = self.server.user("hub").await;
        let before = streams(&admin).await;
        const SUBJECTS: [&str; 16] = [
            "$KV.hub-subscriptions.crm",
            "$KV.hub-tokens.ci",
            "$KV.hub-orders.x",
            "$KV.hub-keys.message-ids",
            "hub.outbox.user-lifecycle.shared.crm",
            "hub.outbox.user-lifecycle.shared.crm.DLT",
            "hub.redrive.due.user-lifecycle.1",
            "hub.rejected.malformed",
            "hub.attempts.user-lifecycle.crm",
            "hub.redrive.held.crm",
            "hub.members.00000000000000ab",
            "hub.order.user-lifecycle",
            "hub.settled.user-lifecycle",
            "hub.published.evt_1",
            "$JS.API.STREAM.DELETE.HUB_EVENTS",
            "$JS.API.STREAM.MSG.GET.KV_hub-subscriptions",
        ];
        for (name, others) in [
            ("producer", &["hub.from.acme.user.created", "_INBOX_acme.x", "$JS.API.STREAM.INFO.HUB_EVENTS"]),
            (
                "acme",
                &["hub.from.globex.user.created", "hub.events.user.created", "hub.from.acme2.user.created"],
            ),
        ] {
            let user = self.server.user(name).await;
            for subject in SUBJECTS.iter().chain(others) {
                user.is_refused_to_publish(subject).await;
            }
            let other = if name == "acme" { "_INBOX_producer.>" } else { "_INBOX_acme.>" };
            for subject in
                [other, ">", "_INBOX.>", "_INBOX_hub.>", "hub.>", "hub.events.>", "$KV.>", "$JS.EVENT.>"]
            {
                user.is_refused_to_subscribe(subject).await;
            }
        }
        // The roles are kept apart as well.
        for (name, subjects) in KEPT_APART {
            let user = self.server.user(name).await;
            for subject in subjects {
                user.is_refused_to_publish(subject).await;
            }
            user.is_refused_to_subscribe("_INBOX_hub.>").await;
            user.is_refused_to_subscribe("hub.events.>").await;
        }
        assert_eq!(stored_since(&admin, &before, FORBIDDEN).await, Vec::<String>::new());
    }

    /// The server sends its acknowledgement to any reply subject that a publisher names, but in another account.
    async fn reply_subjects(&self) {
        let admin = self.server.user("hub").await;
        let before = buckets(&admin).await;
        let seen = self.receiver.count("/crm");
        const REPLIES: [&str; 8] = [
            "$KV.hub-subscriptions.crm",
            "$KV.hub-subscriptions.new",
            "$KV.hub-tokens.ops",
            "$KV.hub-orders.x",
            "hub.outbox.user-lifecycle.shared.crm",
            "hub.redrive.due.user-lifecycle.1",
            "hub.from.globex.user.created",
            "$JS.API.STREAM.DELETE.HUB_REJECTED",
        ];
        for (name, subject) in
            [("producer", "hub.events.user.created"), ("acme", "hub.from.acme.user.created")]
        {
            let user = self.server.user(name).await;
            for reply in REPLIES {
                user.client
                    .publish_with_reply(subject.to_owned(), reply.to_owned(), "{}".into())
                    .await
                    .expect("sent");
            }
            user.client.flush().await.expect("flushed");
        }
        self.receiver.wait_for("/crm", seen + REPLIES.len(), STEP).await;
        assert_eq!(buckets(&admin).await, before, "no entry was written");
        let after = streams(&admin).await;
        assert!(after.iter().any(|info| info.config.name == "HUB_REJECTED"), "the stream is still there");
        let listed = self.operator.cli_json(&["subscription", "list"]).await.to_string();
        assert!(listed.contains("crm") && !listed.contains("unreadable"), "{listed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_flow_works_under_the_permissions_of_the_file_and_nothing_else_does() {
    let stage = Stage::set().await;
    let api = {
        let server = &stage.roles[ROLES.iter().position(|role| *role == "api").expect("it is there")];
        let scopes =
            ["token", "create", "ops", "--scope", "read,manage,operate,publish", "--expires-in", "1h"];
        let made = stage.operator.cli_json(&scopes).await;
        let token = made["token"].as_str().expect("shown once");
        ApiClient::with_token(server, Some(token))
    };
    stage.publish(&api).await;
    stage.dead_letters(&api).await;
    stage.operate(&api).await;
    assert_eq!(stage.server.violations(), Vec::<String>::new(), "every operation of the hub is permitted");
    stage.reply_subjects().await;
    stage.forbidden().await;
    stage.operator.cli_ok(&["token", "revoke", "ops", "--yes"]).await;
    eventually(Duration::from_secs(5), "a revoked token is refused", async || {
        match api.get("/v1/subscriptions").await.status {
            401 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    for mut hub in stage.roles {
        assert!(hub.terminate().await.success(), "{}", hub.log());
    }
}
