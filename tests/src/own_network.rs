//! Is this the machine's own network? There a request to IMDS may reach a real one, and a client of the lab must not ask.

use std::os::unix::fs::MetadataExt;

/// The inode of the first network namespace (`enum init_ns_ino` of include/uapi/linux/nsfs.h, Linux 6.18; on older kernels any number).
const FIRST: u64 = 0xEFFF_FFF9;

/// What to say, and to exit with 2, if it is.
pub fn refusal() -> Option<String> {
    refused(std::fs::metadata("/proc/self/ns/net").ok()?.ino())
}

/// The same of a namespace with this inode.
pub fn refused(inode: u64) -> Option<String> {
    (inode == FIRST).then(|| {
        "this is the machine's own network namespace, where a real IMDS may answer: run it in one of the lab's"
            .to_owned()
    })
}
