//! How do we get at the kernel? The only room that names aya.

pub mod attach;
pub mod backlog;
pub mod btf;
pub mod btf_blob;
pub mod clsact;
pub mod decode;
pub mod features;
pub mod hooks;
mod netlink;
pub mod plan;
pub mod programs;
pub mod ring;
pub mod symbols;

use thiserror::Error;

/// Why the kernel half could not be put in place.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel does not describe its types.
    #[error("read /sys/kernel/btf/vmlinux: {0} (needs a kernel with CONFIG_DEBUG_INFO_BTF, Linux 5.8 or later)")]
    NoBtf(std::io::Error),
    /// Its description cannot be read.
    #[error("read the kernel's type information: {0}")]
    Btf(#[from] btf_blob::Error),
    /// A structure without which nothing can be traced is not as expected.
    #[error("the kernel's type information has no {0}: this kernel cannot be traced")]
    NoField(String),
    /// The kernel, or this host, has not what nothing can be traced without.
    #[error("this kernel cannot be traced: {what}: {why}")]
    Lacking {
        /// What of.
        what: &'static str,
        /// What it would need, and what it is for.
        why: String,
    },
    /// The object or a program was refused.
    #[error("load {what}: {why}")]
    Load {
        /// Which program or map.
        what: String,
        /// The kernel's word, and the verifier's last lines.
        why: String,
    },
    /// A program could not be attached.
    #[error("attach {what}: {why}")]
    Attach {
        /// Which, and where.
        what: String,
        /// What the kernel said.
        why: String,
    },
}
