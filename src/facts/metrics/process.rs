//! The process itself, under the names that Prometheus's own libraries use: without the prefix of the hub. The values are
//! those of `/proc/self`, read at each scrape; elsewhere than on Linux these metrics are absent.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

#[derive(Debug)]
pub(super) struct Process {
    /// Unix time of the start of the machine in seconds; the start of the process is counted from it.
    booted: Option<u64>,
}

/// The fields of `/proc/self/stat` that are shown (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    /// After the start of the machine.
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    pub(super) fn new() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { booted: booted(&text) }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        if let Some(stat) = stat.as_deref().and_then(Stat::parse) {
            let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second().max(1) as f64;
            let cpu = ConstCounter::new(seconds(stat.cpu_ticks));
            write(&mut encoder, "process_cpu_seconds", "CPU time of the process in seconds", &cpu)?;
            let resident = gauge(stat.resident_pages.saturating_mul(page_size() as u64));
            write(&mut encoder, "process_resident_memory_bytes", "Resident memory in bytes", &resident)?;
            let virtual_memory = gauge(stat.virtual_bytes);
            write(&mut encoder, "process_virtual_memory_bytes", "Virtual memory in bytes", &virtual_memory)?;
            write(&mut encoder, "process_threads", "Threads of the process", &gauge(stat.threads))?;
            if let Some(booted) = self.booted {
                let started = ConstGauge::new(booted as f64 + seconds(stat.started_ticks));
                write(&mut encoder, "process_start_time_seconds", "Unix time of the start", &started)?;
            }
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is this look.
            let open = gauge(files.count().saturating_sub(1) as u64);
            write(&mut encoder, "process_open_fds", "Open file descriptors", &open)?;
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            write(&mut encoder, "process_max_fds", "Most file descriptors that may be open", &gauge(most))?;
        }
        Ok(())
    }
}

fn write<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &M,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(super::gauge(value))
}

fn booted(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the name of the program, which may contain spaces and parentheses.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            threads: number(20)?,
            started_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_moves_no_field() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15 16 21 18 9000 4096000 77 0 0";
        let wanted = Stat {
            cpu_ticks: 300,
            threads: 21,
            started_ticks: 9000,
            virtual_bytes: 4_096_000,
            resident_pages: 77,
        };
        for name in ["hub", "a b", "a) R 9 (", ") "] {
            assert_eq!(Stat::parse(&format!("42 ({name}) {rest}")).as_ref(), Some(&wanted), "{name}");
        }
        for damaged in ["", "42 (hub)", "42 (hub) S 1", "42 hub S 1 2"] {
            assert_eq!(Stat::parse(damaged), None, "{damaged}");
        }
        assert_eq!(booted("cpu 1 2\nbtime 1700000000\nctxt 3\n"), Some(1_700_000_000));
        assert_eq!(booted("btime x\n"), None);
    }
}
