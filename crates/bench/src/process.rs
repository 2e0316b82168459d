//! Resident memory and processor time of a running process, from `/proc`.

use std::time::Duration;

use super::error::BenchError;

/// Resident memory now, in bytes (proc_pid_status(5), `VmRSS`).
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, BenchError> {
    let text = read(pid, "status")?;
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or(BenchError::ProcessField {
        pid,
        file: "status",
        missing: "VmRSS",
    })
}

/// Processor time of all threads so far, in user and system mode (proc_pid_stat(5), fields 14 and 15).
pub(crate) fn processor_time(pid: u32) -> Result<Duration, BenchError> {
    let text = read(pid, "stat")?;
    // The second field, the name, may contain spaces and parentheses; it ends with the last parenthesis.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
    let (Some(user), Some(system)) = (ticks(14), ticks(15)) else {
        return Err(BenchError::ProcessField { pid, file: "stat", missing: "field 14 or 15" });
    };
    Ok(Duration::from_secs_f64((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64))
}

fn read(pid: u32, file: &'static str) -> Result<String, BenchError> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|source| BenchError::ProcessFile {
        pid,
        file,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_memory_and_its_time_grows() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 100_000);
        let before = processor_time(pid).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while processor_time(pid).unwrap() == before {
            if std::time::Instant::now() >= deadline {
                panic!("no tick of processor time was counted");
            }
        }
    }

    #[test]
    fn a_missing_process_is_an_error() {
        assert!(matches!(resident_bytes(u32::MAX), Err(BenchError::ProcessFile { file: "status", .. })));
    }
}
