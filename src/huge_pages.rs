//! Transparent huge pages of the process.

/// Goes without them: the allocator asks for them, and each burst of envelopes would then take 2 MB for what needs 4 KB.
/// Deliveries are as fast without them. Some sandboxes refuse it, which costs only memory.
pub(crate) fn disable() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
