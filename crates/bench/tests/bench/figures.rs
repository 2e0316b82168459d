//! `hub-bench` as a person runs it, with numbers so small that only correctness is tested.

use std::process::{Output, Stdio};
use std::time::Duration;

use crate::support::{BENCH, nats_server, postgres_programs, redis_server};
use hub_testkit::postgres::{PostgresServer, psql};

const LIMIT: Duration = Duration::from_secs(180);

async fn bench(args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(BENCH);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HUB__") {
            command.env_remove(&name);
        }
    }
    command.args(args).env("HUB_NATS_SERVER", nats_server()).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    output.unwrap_or_else(|_| panic!("`hub-bench {}` still runs", args.join(" "))).expect("it runs")
}

async fn bench_ok(args: &[&str]) -> String {
    let output = bench(args).await;
    assert!(output.status.success(), "`hub-bench {}`: {}", args.join(" "), shown(&output));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

async fn bench_json(args: &[&str]) -> serde_json::Value {
    let text = bench_ok(&[args, &["--output", "json"]].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn shown(output: &Output) -> String {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n---- stdout\n{out}\n---- stderr\n{error}", output.status)
}

#[tokio::test]
async fn each_figure_is_measured_with_the_default_sync_interval_and_nothing_is_lost() {
    measured_with("default").await;
}

#[tokio::test]
async fn each_figure_is_measured_with_fsync_always_and_nothing_is_lost() {
    measured_with("always").await;
}

async fn measured_with(sync: &str) {
    let args = ["--messages", "200", "--figures", "a,b,c", "--duration", "1s", "--sync", sync];
    let figures = bench_json(&args).await;
    let figures = figures.as_array().expect("the figures are an array");
    let measured: Vec<_> = figures.iter().map(|f| (f["figure"].as_str(), f["sync"].as_str())).collect();
    assert_eq!(measured, ["a", "b", "c"].map(|figure| (Some(figure), Some(sync))));
    for figure in figures {
        let arrivals = &figure["arrivals"];
        let expected = if figure["figure"] == "c" { 100 } else { 200 };
        assert_eq!(arrivals["expected"], expected, "{figure}");
        assert_eq!((&arrivals["missing"], &arrivals["unexpected"]), (&0.into(), &0.into()), "{figure}");
        assert_eq!(figure["still_owed"], 0, "{figure}");
        let measures = figure["measures"].as_array().expect("measures are an array");
        assert_eq!(measures.len(), 2, "{figure}");
        for measure in measures {
            let positive = |name: &str| measure[name].as_f64().is_some_and(|value| value > 0.0);
            assert!(positive("value"), "{figure}");
            assert_eq!(measure["unit"], if figure["figure"] == "c" { "ms" } else { "deliveries/s" });
            if measure["name"] != "with every acknowledgement stored" {
                assert!(positive("bare") && positive("ratio"), "{figure}");
                assert!(!measure["goals"].as_array().expect("goals are an array").is_empty(), "{figure}");
            }
        }
    }
}

#[tokio::test]
async fn memory_grows_with_the_subscriptions_and_is_told_on_a_line() {
    let args = ["--figures", "d", "--sync", "default", "--subscriptions", "10,3000"];
    let line = bench_ok(&args).await;
    for part in [
        "(d) resident memory of the hub, sync default: 10 subscriptions ",
        "[goal below 100 MB: ",
        ", 3000 subscriptions ",
        "growth for each further one ",
        "; 2,000 of 2,000 arrived, 0 lost, ",
    ] {
        assert!(line.contains(part), "{part:?} in {line}");
    }
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[tokio::test]
async fn credentials_changes_and_starts_are_measured_and_nothing_is_lost() {
    let args = ["--figures", "o,r,s", "--sync", "default", "--messages", "200", "--duration", "1s"];
    let figures = bench_json(&[&args[..], &["--subscriptions", "15,2000"]].concat()).await;
    let figures = figures.as_array().expect("the figures are an array");
    // Eight drains; at most an event each 2 ms for 3 s, and one for each of ten changes in three replicas; three events
    // for the last tenant of each number.
    let expected = [("o", 1_600..=1_600), ("r", 30..=1_600), ("s", 45..=45)];
    assert_eq!(figures.len(), expected.len());
    for (figure, (letter, arrivals)) in figures.iter().zip(expected) {
        assert_eq!(figure["figure"], letter);
        let counted = &figure["arrivals"];
        let number = counted["expected"].as_u64().expect("a number");
        assert!(arrivals.contains(&number), "{figure}");
        assert_eq!((&counted["missing"], &counted["unexpected"]), (&0.into(), &0.into()), "{figure}");
        assert_eq!(figure["still_owed"], 0, "{figure}");
        let measures = figure["measures"].as_array().expect("measures are an array");
        assert_eq!(measures.len(), if letter == "o" { 7 } else { 2 }, "{figure}");
        for measure in measures {
            assert!(measure["value"].as_f64().is_some_and(|value| value > 0.0), "{figure}");
        }
    }
    // Each of ten changes was seen in each of the three.
    let slowest = &figures[1]["measures"][1];
    assert!(slowest["value"].as_f64().is_some_and(|millis| millis < 60_000.0), "{slowest}");
    assert_eq!(slowest["goals"].as_array().map(Vec::len), Some(1));
}

/// On a server that is given; the bench leaves nothing behind there.
#[tokio::test]
async fn the_outbox_is_measured_and_nothing_is_lost() {
    let Some(programs) = postgres_programs() else { return };
    let postgres = PostgresServer::start(&programs, "bench-tests", &[]).await.expect("it starts");
    let url = postgres.url("postgres");
    let args = ["outbox", "--figures", "nats,latency,outage,archive", "--rows", "1200"];
    let more = ["--archive-rows", "2000", "--duration", "500ms", "--pairs", "1", "--database-url", &url];
    let figures = bench_json(&[&args[..], &more].concat()).await;
    let figures = figures.as_array().expect("the figures are an array");
    // Of the outage: two runs with two brokers, and the third one's rows afterwards.
    let expected = [("nats", 2 * 1_200), ("latency", 150), ("outage", 5 * 1_200), ("archive", 13_000)];
    assert_eq!(figures.len(), expected.len());
    for (figure, (name, arrivals)) in figures.iter().zip(expected) {
        assert_eq!((&figure["figure"], &figure["arrivals"]["expected"]), (&name.into(), &arrivals.into()));
        for wrong in ["missing", "unexpected", "out_of_order"] {
            assert_eq!(figure["arrivals"][wrong], 0, "{figure}");
        }
        assert_eq!(figure["still_owed"], 0, "{figure}");
        for measure in figure["measures"].as_array().expect("measures are an array") {
            assert!(measure["value"].as_f64().is_some_and(|value| value > 0.0), "{figure}");
        }
        assert!(figure["with"][0].as_str().is_some_and(|with| with.contains("fsync on")), "{figure}");
    }
    let left = psql(&programs, &url, "SELECT datname FROM pg_database WHERE datname LIKE 'hub_bench%'");
    let left = left.expect("psql runs");
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "");
}

/// On a server of the bench's own.
#[tokio::test]
async fn the_outbox_is_measured_to_redis_and_told_on_a_line() {
    let (Some(redis), Some(programs)) = (redis_server(), postgres_programs()) else { return };
    let (redis, programs) = (redis.to_string_lossy(), programs.to_string_lossy());
    let args = ["outbox", "--figures", "redis", "--rows", "1200", "--redis-server", &redis];
    let line = bench_ok(&[&args[..], &["--postgres-bin", &programs]].concat()).await;
    for part in
        ["(redis) relay, PostgreSQL to Redis Streams", " rows/s; 1,200 of 1,200 arrived, 0 lost, 0 doubled; "]
    {
        assert!(line.contains(part), "{part:?} in {line}");
    }
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[tokio::test]
async fn a_bench_without_postgresql_says_how_to_get_it() {
    let empty = tempfile::tempdir().expect("temporary folder");
    let folder = empty.path().to_string_lossy();
    let output = bench(&["outbox", "--postgres-bin", &folder]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("apt-get install postgresql"), "{error}");
    assert!(error.contains("--database-url"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_measured_is_a_usage_error() {
    for args in [["--scenario", "hang-0"], ["--seconds", "0"]] {
        let output = bench(&[&["isolation"], &args[..]].concat()).await;
        assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains(args[0]), "{}", shown(&output));
    }
    for args in [["--figures", "e"], ["--messages", "0"], ["--duration", "soon"], ["--subscriptions", "0"]] {
        let output = bench(&args).await;
        assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains(args[0]), "{}", shown(&output));
    }
}

/// A few seconds only: which values there are, not how good they are.
#[tokio::test]
async fn isolation_is_measured_before_and_during_the_disturbance() {
    let args = ["isolation", "--scenario", "hang-1,replay", "--seconds", "2"];
    let rows = bench_json(&args).await;
    let rows = rows.as_array().expect("the rows are an array");
    assert_eq!(rows.len(), 2);
    for (row, scenario) in rows.iter().zip(["hang-1", "replay"]) {
        assert_eq!((&row["scenario"], &row["seconds"]), (&scenario.into(), &2.0.into()), "{row}");
        assert_eq!((&row["missing"], &row["refused"]), (&0.into(), &0.into()), "{row}");
        for value in ["/before/rate", "/before/p50_ms", "/during/rate", "/during/p99_ms", "/kept"] {
            assert!(
                row.pointer(value).and_then(|value| value.as_f64()).is_some_and(|value| value > 0.0),
                "{row}"
            );
        }
        let memory = |name: &str| row[name].as_f64().expect("a number of megabytes");
        assert!(memory("memory_before_mb") > 1.0 && memory("memory_peak_mb") > 1.0, "{row}");
        assert_eq!(row["goals"].as_array().map(Vec::len), Some(4), "{row}");
    }
    let table = bench_ok(&["isolation", "--scenario", "dns-10", "--seconds", "1"]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].starts_with("SCENARIO") && lines[1].starts_with("dns-10"), "{table}");
}
