//! Who says who is who? The sources of facts on this machine: the engine, /proc.

pub mod docker;
pub mod listing;
pub mod procfs;
