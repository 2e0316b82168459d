//! Text for standard error, standard output or a log file that never holds up its writer.
//!
//! A log reader may go away (EPIPE), stop reading (a full pipe), or the disk may be full (ENOSPC). None of these
//! may block, panic or end a process whose work is something else. So text goes into a queue that is bounded in
//! bytes, and one thread writes it; what does not fit or cannot be written is dropped and counted.
//!
//! `tracing-appender` has such a writer, but bounds its queue in lines only, and counts neither a line whose
//! write failed nor one that was never written; both are what happens here.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// Bytes that wait at most; at 200 bytes a line about 5,000 lines.
const MOST_BYTES: usize = 1024 * 1024;
/// What a short text counts in the queue, for its own bookkeeping.
const LEAST_BYTES: usize = 64;
/// Longest wait for the last lines at the end of a process.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Of the whole process, for its metrics.
static LOST: AtomicU64 = AtomicU64::new(0);
static STDERR: LazyLock<Outlet> = LazyLock::new(|| Outlet::on("stderr", &io::stderr()));
static STDOUT: LazyLock<Outlet> = LazyLock::new(|| Outlet::on("stdout", &io::stdout()));

/// Standard error of this process.
pub fn stderr() -> &'static Outlet {
    &STDERR
}

/// Standard output of this process, for the text of a service. The answer of a command is written directly, so
/// that its reader sets the pace.
pub fn stdout() -> &'static Outlet {
    &STDOUT
}

/// Texts that this process has dropped so far, whatever their outlet.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// A bounded queue of texts and the thread that writes them. Cheap to clone; the thread ends once the last clone is
/// gone and the queue is written.
#[derive(Debug, Clone)]
pub struct Outlet {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    texts: VecDeque<Vec<u8>>,
    /// Of the texts that wait and of the one that is being written.
    bytes: usize,
    /// Nothing is added any more.
    closed: bool,
    /// Nobody writes: the descriptor could not be duplicated, or the thread not started.
    unwritten: bool,
}

impl Outlet {
    fn on(name: &str, descriptor: &impl AsFd) -> Self {
        match descriptor.as_fd().try_clone_to_owned() {
            Ok(own) => Self::new(name, own.into()),
            Err(_) => Self::unwritten(),
        }
    }

    /// Writes to `file`; `name` is the thread's.
    pub fn new(name: &str, file: File) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        let thread = std::thread::Builder::new().name(format!("{name}-outlet"));
        match thread.spawn(move || writer.write_to(file)) {
            Ok(_) => Self { handle: Arc::new(Handle { shared }) },
            Err(_) => Self::unwritten(),
        }
    }

    fn unwritten() -> Self {
        let shared =
            Shared { queue: Queue { unwritten: true, ..Queue::default() }.into(), ..Shared::default() };
        Self { handle: Arc::new(Handle { shared: Arc::new(shared) }) }
    }

    /// Queues one text, or drops and counts it if it does not fit. Never waits for the reader.
    pub fn put(&self, text: impl Into<Vec<u8>>) {
        let (text, shared) = (text.into(), &self.handle.shared);
        let mut queue = shared.lock();
        if queue.unwritten || queue.bytes + size(&text) > MOST_BYTES {
            drop(queue);
            shared.count_lost();
            return;
        }
        queue.bytes += size(&text);
        queue.texts.push_back(text);
        drop(queue);
        shared.changed.notify_all();
    }

    /// Waits until everything is written or dropped, for `limit` at most; true if it is.
    pub fn flush(&self, limit: Duration) -> bool {
        let shared = &self.handle.shared;
        let waited = shared.changed.wait_timeout_while(shared.lock(), limit, |queue| queue.bytes > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.bytes == 0
    }

    /// Texts that this outlet has dropped so far.
    pub fn lost(&self) -> u64 {
        self.handle.shared.lost.load(Ordering::Relaxed)
    }
}

/// One write is one text, as `tracing_subscriber` and `writeln!` of a whole line make it.
impl Write for Outlet {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.put(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        LOST.fetch_add(1, Ordering::Relaxed);
    }

    /// The next text; none once the outlet is closed and empty.
    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = self.lock();
        loop {
            if let Some(text) = queue.texts.pop_front() {
                return Some(text);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write_to(&self, mut file: File) {
        // Whether the last text broke off in the middle of its line.
        let mut torn = false;
        while let Some(text) = self.next() {
            let written = if torn { write(&mut file, b"\n").1 } else { Ok(()) };
            let (count, written) = match written {
                Ok(()) => write(&mut file, &text),
                Err(error) => (0, Err(error)),
            };
            match written {
                Ok(()) => torn = false,
                // Whoever reads may come back (a disk gets room again), so the next text is tried as well.
                Err(_) => {
                    torn |= count > 0;
                    self.count_lost();
                }
            }
            self.lock().bytes -= size(&text);
            self.changed.notify_all();
        }
    }
}

fn size(text: &[u8]) -> usize {
    text.len().max(LEAST_BYTES)
}

/// Writes all of it, and gives how many bytes went out even if the rest did not.
fn write(file: &mut File, text: &[u8]) -> (usize, io::Result<()>) {
    let mut done = 0;
    while done < text.len() {
        match file.write(&text[done..]) {
            Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares the terminal or pipe has made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if let Err(error) = poll(&mut [PollFd::new(&*file, PollFlags::OUT)], None)
                    && error != rustix::io::Errno::INTR
                {
                    return (done, Err(error.into()));
                }
            }
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, pipe};
    use std::os::fd::OwnedFd;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn into_pipe() -> (std::io::PipeReader, Outlet) {
        let (reader, writer) = pipe().expect("a pipe");
        (reader, Outlet::new("test", OwnedFd::from(writer).into()))
    }

    #[test]
    fn what_is_put_arrives_in_its_order_and_the_writer_ends_with_its_outlet() {
        let (mut reader, outlet) = into_pipe();
        for number in 0..100 {
            outlet.put(format!("{number}\n"));
        }
        assert!(outlet.flush(LIMIT));
        assert_eq!(outlet.lost(), 0);
        drop(outlet);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the pipe ends with the outlet");
        let expected: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_bounded_memory_and_nobody_waits() {
        let (reader, outlet) = into_pipe();
        let line = vec![b'x'; 1000];
        for _ in 0..5_000 {
            outlet.put(line.clone());
        }
        // The queue and the pipe itself hold 1 MiB and 64 KiB.
        assert!((3_700..=4_000).contains(&outlet.lost()), "{}", outlet.lost());
        assert!(!outlet.flush(Duration::from_millis(50)));
        drop(reader);
        assert!(outlet.flush(LIMIT), "a reader that has gone ends the wait");
    }

    #[test]
    fn a_reader_that_has_gone_and_a_full_disk_are_counted() {
        let (reader, outlet) = into_pipe();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        for outlet in [outlet, Outlet::new("test", full), Outlet::unwritten()] {
            for _ in 0..3 {
                outlet.put("line\n");
            }
            assert!(outlet.flush(LIMIT));
            assert_eq!(outlet.lost(), 3);
        }
    }

    #[test]
    fn a_pipe_that_another_process_made_non_blocking_loses_nothing() {
        let (mut reader, writer) = pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&writer, true).expect("non-blocking");
        let outlet = Outlet::new("test", OwnedFd::from(writer).into());
        for _ in 0..500 {
            outlet.put(vec![b'x'; 1000]);
        }
        let mut bytes = vec![0; 500_000];
        reader.read_exact(&mut bytes).expect("all of it arrives");
        assert_eq!(outlet.lost(), 0);
    }
}
