//! How does the heap give back what a start or a storm has left in it?

/// Gives free pages back to the kernel. The allocator keeps them, those between others for ever: what was read at the start, and what
/// a storm needed.
pub fn give_back() {
    // SAFETY: takes the allocator's own locks and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
