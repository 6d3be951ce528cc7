//! The `ekm` program.
fn main() {}
