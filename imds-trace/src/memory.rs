//! How does the heap give back what a start or a storm has left in it?

/// What is larger than this is mapped by itself.
#[cfg(target_env = "gnu")]
const LARGE: nix::libc::c_int = 128 << 10;

/// From now on what is large goes back to the kernel when it is freed. Without this the allocator takes the first such thing that is
/// freed for a sign that there will be more, and keeps all that are not larger.
pub fn begin() {
    // SAFETY: sets a number of the allocator's own.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives free pages back to the kernel. The allocator keeps them, those between others for ever: what was read at the start, and what
/// a storm needed.
pub fn give_back() {
    // SAFETY: takes the allocator's own locks and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
