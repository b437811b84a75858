//! What the process's heap does with memory that is free.

/// Gives free memory back to the system, from wherever in the heap it lies.
///
/// glibc by itself gives back only what lies at the heap's end, and takes ever larger blocks from there: after a few large
/// messages a single small block above keeps megabytes. To have large blocks mapped one by one would return them at
/// once, and made the echo of a message of 600 kB cost two and a half times as much. Other C libraries need no help.
///
/// Work is in proportion to what is free, and shards that allocate meanwhile wait for it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes an integer, and works under the allocator's own locks.
        #[allow(unsafe_code, reason = "rustix has no malloc_trim")]
        let _has_released = unsafe { libc::malloc_trim(0) };
    }
}
