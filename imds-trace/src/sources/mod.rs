//! Who says who is who? The sources of facts on this machine: the engines, the files of runtimes, /proc.

pub mod docker;
pub mod labels;
pub mod listing;
pub mod procfs;
pub mod runtime;
