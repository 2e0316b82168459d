//! A writer for standard error, standard output or a log file that never blocks its caller.
//!
//! The reader of a log may exit (EPIPE) or stop reading (a full pipe), or the disk may be full (ENOSPC). None of these may
//! block or end the process, or make it panic. Text goes into a queue with a limit in bytes, and one thread writes it. Text
//! that does not fit, or whose write fails, is dropped and counted.
//!
//! `tracing-appender` has a similar writer, but limits its queue in lines only, and does not count lines whose write failed
//! or that were never written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// Maximum size of the queue, in bytes: about 5,000 lines of 200 bytes.
const MOST_BYTES: usize = 1024 * 1024;
/// Minimum size at which a text is counted, to cover its overhead in the queue.
const LEAST_BYTES: usize = 64;
/// Maximum wait for the last lines at the end of a process.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Texts dropped by the whole process, for its metrics.
static LOST: AtomicU64 = AtomicU64::new(0);
static STDERR: LazyLock<QueuedWriter> = LazyLock::new(|| QueuedWriter::on("stderr", &io::stderr()));
static STDOUT: LazyLock<QueuedWriter> = LazyLock::new(|| QueuedWriter::on("stdout", &io::stdout()));

/// Standard error of this process.
pub fn stderr() -> &'static QueuedWriter {
    &STDERR
}

/// Standard output of this process, for the text of a service. The answer of a command is written directly, so that its
/// reader sets the pace.
pub fn stdout() -> &'static QueuedWriter {
    &STDOUT
}

/// Number of texts that all writers of this process have dropped.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// A bounded queue of texts and the thread that writes them. Cheap to clone. The thread ends when the last clone is
/// dropped and the queue is empty.
#[derive(Debug, Clone)]
pub struct QueuedWriter {
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
    /// Size of the waiting texts and of the text that is being written.
    bytes: usize,
    /// True when the last clone was dropped: no text is added any more.
    closed: bool,
    /// True if no thread writes: the descriptor could not be duplicated, or the thread could not start.
    unwritten: bool,
}

impl QueuedWriter {
    fn on(name: &str, descriptor: &impl AsFd) -> Self {
        match descriptor.as_fd().try_clone_to_owned() {
            Ok(own) => Self::new(name, own.into()),
            Err(_) => Self::unwritten(),
        }
    }

    /// Writes to `file`.
    ///
    /// * `name`: the thread's name, without the suffix `-writer`
    pub fn new(name: &str, file: File) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        let thread = std::thread::Builder::new().name(format!("{name}-writer"));
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

    /// Waits until everything is written or dropped, for at most `limit`. True if the queue is empty.
    pub fn flush(&self, limit: Duration) -> bool {
        let shared = &self.handle.shared;
        let waited = shared.changed.wait_timeout_while(shared.lock(), limit, |queue| queue.bytes > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.bytes == 0
    }

    /// Number of texts that this writer has dropped.
    pub fn lost(&self) -> u64 {
        self.handle.shared.lost.load(Ordering::Relaxed)
    }
}

/// One write is one text: `tracing_subscriber` writes a whole record at once.
impl Write for QueuedWriter {
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

    /// Waits for the next text. `None` when the writer is closed and the queue is empty.
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
        // True if the last text broke off in the middle of its line.
        let mut torn = false;
        while let Some(text) = self.next() {
            let written = if torn { write(&mut file, b"\n").1 } else { Ok(()) };
            let (count, written) = match written {
                Ok(()) => write(&mut file, &text),
                Err(error) => (0, Err(error)),
            };
            match written {
                Ok(()) => torn = false,
                // The error may pass (the disk gets free space again), so the next text is tried too.
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

/// Writes a text. Returns the number of bytes written, even if the rest failed.
fn write(file: &mut File, text: &[u8]) -> (usize, io::Result<()>) {
    let mut done = 0;
    while done < text.len() {
        match file.write(&text[done..]) {
            Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares the terminal or pipe made it non-blocking.
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

    fn into_pipe() -> (std::io::PipeReader, QueuedWriter) {
        let (reader, writer) = pipe().expect("a pipe");
        (reader, QueuedWriter::new("test", OwnedFd::from(writer).into()))
    }

    #[test]
    fn texts_arrive_in_order_and_the_thread_ends_with_its_writer() {
        let (mut reader, writer) = into_pipe();
        for number in 0..100 {
            writer.put(format!("{number}\n"));
        }
        assert!(writer.flush(LIMIT));
        assert_eq!(writer.lost(), 0);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the pipe ends with the writer");
        let expected: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_bounded_memory_and_blocks_nobody() {
        let (reader, writer) = into_pipe();
        let line = vec![b'x'; 1000];
        for _ in 0..5_000 {
            writer.put(line.clone());
        }
        // The queue and the pipe itself hold 1 MiB and 64 KiB.
        assert!((3_700..=4_000).contains(&writer.lost()), "{}", writer.lost());
        assert!(!writer.flush(Duration::from_millis(50)));
        drop(reader);
        assert!(writer.flush(LIMIT), "a closed reader ends the wait");
    }

    #[test]
    fn texts_lost_to_a_closed_reader_or_a_full_disk_are_counted() {
        let (reader, writer) = into_pipe();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        for writer in [writer, QueuedWriter::new("test", full), QueuedWriter::unwritten()] {
            for _ in 0..3 {
                writer.put("line\n");
            }
            assert!(writer.flush(LIMIT));
            assert_eq!(writer.lost(), 3);
        }
    }

    #[test]
    fn a_pipe_that_another_process_made_non_blocking_loses_nothing() {
        let (mut reader, writer) = pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&writer, true).expect("non-blocking");
        let writer = QueuedWriter::new("test", OwnedFd::from(writer).into());
        for _ in 0..500 {
            writer.put(vec![b'x'; 1000]);
        }
        let mut bytes = vec![0; 500_000];
        reader.read_exact(&mut bytes).expect("all of it arrives");
        assert_eq!(writer.lost(), 0);
    }
}
