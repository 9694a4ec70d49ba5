//! The gateway with real sockets: one binary, so that it is linked once.

mod bound;
mod breaker;
mod bridge_legacy;
mod bridge_modern;
mod budget;
mod callers;
mod certificates;
mod commands;
mod conformance;
mod connect;
mod connect_refusal;
mod connections;
mod crash;
mod demo;
mod gate;
mod grants;
mod hops;
mod interop;
mod issuers;
mod keys;
mod limits;
mod mirror;
mod postgres;
mod processes;
mod promises;
mod refusals;
mod regressions;
mod reload;
mod review;
mod rmcp_server;
mod shot;
mod standing;
mod store;
mod upstream;
mod wire;

/// Shows a table: cargo hides what a passing test prints, so that `tests/run` prints this file.
fn show(name: &str, table: &str) {
    println!("{table}");
    let file = format!("{}/{name}.txt", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(file, format!("{table}\n")).expect("cargo made the directory");
}
