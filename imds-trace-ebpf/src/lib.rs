//! What does the kernel half say to the user half? Only the record layouts; the programs themselves are in `main.rs`.
#![no_std]

pub mod record;
