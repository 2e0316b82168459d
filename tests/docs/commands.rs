//! Every command block.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use super::blocks::{Block, blocks};
use super::example::PAGE as EXAMPLE;
use super::programs::Programs;
use super::stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn every_command_block_runs() {
    let Some(programs) = Programs::find() else { return };
    let mut blocks = blocks("sh");
    // The Protean example has a test of its own.
    blocks.retain(|block| block.page != EXAMPLE);
    let mut skipped = Vec::new();
    blocks.retain(|block| {
        programs.can_run(block) || {
            skipped.push(block.at.clone());
            false
        }
    });
    assert!(blocks.len() > 60, "{} blocks are run; skipped: {skipped:?}", blocks.len());
    let stage = Stage::set(programs).await;
    stage.prepare().await;
    if let Some(install) = blocks.iter().find(|block| block.text.contains("helm upgrade --install")) {
        stage.install_the_chart(&values_of_the_chart(), install).await;
    }
    // A block that fails does not hide the next ones.
    let mut failed = Vec::new();
    for block in &blocks {
        if AssertUnwindSafe(stage.carry_out(block)).catch_unwind().await.is_err() {
            failed.push(&block.at);
        }
    }
    assert!(failed.is_empty(), "{failed:?}: the reasons are above");
    every_metric_is_documented(&stage.hub.metrics().await);
}

fn values_of_the_chart() -> String {
    let blocks: Vec<Block> = blocks("yaml");
    let values = blocks.into_iter().find(|block| block.text.starts_with("# values.yaml\n"));
    values.expect("helm/README.md has a values.yaml").text
}

fn every_metric_is_documented(metrics: &str) {
    let pages = [include_str!("../../docs/operating.md"), include_str!("../../docs/producer-outbox.md")];
    let names: Vec<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 10, "{metrics}");
    for name in names {
        assert!(pages.iter().any(|page| page.contains(name)), "docs/operating.md does not describe {name}");
    }
}
