//! What?
fn main() {}
