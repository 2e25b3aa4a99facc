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

/// Lets go of the pages of the program's own file that only the start took: most of them. What is used again is there again at once, for
/// the kernel keeps the file.
pub fn let_go_of_the_start() {
    #[cfg(target_env = "gnu")]
    {
        // Linkers say where a program begins, and where its text ends. Nothing up to there is ever written.
        unsafe extern "C" {
            static __executable_start: u8;
            static etext: u8;
        }
        let (begin, end) = (&raw const __executable_start as usize, &raw const etext as usize);
        // 0 if it fails, with which `begin` is no multiple of it.
        // SAFETY: asks for a number.
        let page = unsafe { nix::libc::sysconf(nix::libc::_SC_PAGESIZE) }.max(1) as usize;
        let whole = end.saturating_sub(begin) / page * page;
        // SAFETY: these pages are mapped from a file and only read: they are read from there again.
        unsafe {
            nix::libc::madvise(begin as *mut nix::libc::c_void, whole, nix::libc::MADV_DONTNEED);
        }
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
