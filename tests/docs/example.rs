//! The commands of the Protean example, with its producer and its subscriber.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::blocks::{Block, blocks, root};
use super::programs::Programs;
use super::stage::{LIMIT, run};
use super::support::{RedisServer, TestBroker, TestDatabase, eventually, require_tool};

pub(crate) const PAGE: &str = "examples/protean_subscriber/README.md";

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("the folder is readable") {
        let path = entry.expect("listed").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}

/// The script with its last command instead of the shell, so that a signal reaches it.
fn ending_with_exec(text: &str) -> String {
    let (first, last) = text.trim_end().rsplit_once('\n').expect("two commands");
    format!("set -eu\n{first}\nexec {last}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_protean_example_run() {
    let packages = std::env::var_os("HUB_TEST_PROTEAN").map(PathBuf::from);
    let Some(packages) = require_tool("Protean (its folder in HUB_TEST_PROTEAN)", packages) else { return };
    let Some(programs) = Programs::find() else { return };
    let Some(redis) = RedisServer::start(&[]).await else { return };
    let Some(database) = TestDatabase::postgres().await else { return };
    let broker = TestBroker::start().await;
    let mut blocks = blocks("sh");
    blocks.retain(|block| block.page == PAGE);
    let [subscriber, producer]: [Block; 2] = blocks.try_into().ok().expect("two blocks");
    let folder = programs.work().join("example");
    copy(&root().join("examples/protean_subscriber"), &folder);

    assert!(subscriber.until_stopped, "{}", subscriber.at);
    let mut command = programs.script(&ending_with_exec(&subscriber.text), &folder);
    command.env("PYTHONPATH", packages).env("REDIS_URL", redis.url());
    let mut service = command.spawn().expect("it starts");
    eventually(LIMIT, "the subscriber has its consumer group", async || {
        let ended = service.try_wait().expect("waited for");
        assert!(ended.is_none(), "{}: it ended with {ended:?}", subscriber.at);
        let mut query = redis::cmd("XINFO");
        query.arg("GROUPS").arg("user");
        let groups: Result<Vec<redis::Value>, _> = query.query_async(&mut redis.connect().await).await;
        if groups.as_ref().is_ok_and(|groups| !groups.is_empty()) { Ok(()) } else { Err(groups) }
    })
    .await;

    // The relay runs beside the commands that follow, as in a terminal of its own.
    let relay = "hub serve --role outbox-relay\n";
    assert!(producer.text.contains(relay), "{}", producer.at);
    let text = producer
        .text
        .replace("postgres://app:secret@127.0.0.1/app", &database.url())
        .replace("redis://127.0.0.1:6379", redis.url().trim_end_matches('/'))
        .replace(relay, "hub serve --role outbox-relay & trap 'kill $!; wait $!' EXIT\n");
    let mut command = programs.script(&format!("set -eu\n{text}"), &folder);
    command.env("HUB__NATS__URL", broker.url()).env("HUB__HEALTH__LISTEN", "127.0.0.1:0");
    run(&producer.at, &mut command).await;
    let stopped = tokio::time::timeout(Duration::from_secs(1), service.kill()).await;
    stopped.expect("it ends").expect("killed");
}
