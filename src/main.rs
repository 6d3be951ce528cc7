//! The `ekm` program: everything is in the library's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ekm::cli::run()
}
