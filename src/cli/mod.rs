//! The commands, one file each.

/// Runs the command line; returns the process's exit code (0 good, 1 failed, 2 misused).
pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::from(2)
}
