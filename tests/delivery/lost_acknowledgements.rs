//! A broker that is killed forgets acknowledgements and delivers envelopes again. The process that delivered them
//! remembers, and does not send them again.

use std::time::Duration;

use hub_testkit::broker_process::{BrokerOptions, SyncInterval};

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, ids, nats_server, subscription,
};

const STEP: Duration = Duration::from_secs(60);
const RECOVERY: Duration = Duration::from_secs(120);
const EVENTS: usize = 4_000;

async fn killed_under_load(sync_interval: SyncInterval) {
    let options = BrokerOptions { sync_interval, ..BrokerOptions::new(nats_server()) };
    let mut broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    // A part of the deliveries is in progress at each kill.
    receiver.set("/slow", Behaviour::slow(Duration::from_millis(20)));
    let settings = TestSettings::patient().with(|settings| {
        // What the broker forgot comes again within the test, and nothing that is being delivered.
        settings.delivery.max_timeout = Some(Duration::from_secs(8));
        settings.delivery.ack_wait = Some(Duration::from_secs(10));
        settings.delivery.max_deliver = Some(20);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let subscriptions = [("steady", "/steady"), ("slow", "/slow")];
    client
        .subscribe(subscriptions.map(|(id, path)| subscription(id, &["user.>"], &receiver.url(path))))
        .await;
    let events = ids("event", EVENTS);
    const KILLS: [usize; 6] = [200, 700, 1_200, 1_700, 2_200, 2_700];
    let kills = async {
        for delivered in KILLS {
            receiver.wait_accepted("/steady", delivered, STEP).await;
            broker.process().kill().await.expect("the broker is killed");
            broker.process().restart().await.expect("the broker starts on the same port");
        }
    };
    tokio::join!(client.publish_all("user.created", &events), kills);
    broker.nothing_pending_within(RECOVERY).await;
    let account =
        Account::of(&events, &subscriptions, &receiver, &client.dead_letters("user-lifecycle").await);
    account.assert_complete("the broker killed under load");
    let deliveries = EVENTS * subscriptions.len();
    let settled = hub.metric("hub_redeliveries_settled_total", &["domain=\"user-lifecycle\""]).await;
    // Under 1% for each kill; it is far less.
    let most = KILLS.len() * deliveries / 100;
    assert!(account.doubles < most, "{} doubles of {deliveries}; {settled} settled again", account.doubles);
    println!("{} doubles of {deliveries}, {settled} settled again", account.doubles);
}

#[tokio::test]
async fn a_broker_killed_under_load_causes_few_doubles() {
    killed_under_load(SyncInterval::Default).await;
}

#[tokio::test]
async fn a_broker_that_syncs_always_killed_under_load_causes_few_doubles() {
    killed_under_load(SyncInterval::Always).await;
}
