//! The gateway with real sockets: one binary, so that it is linked once.

mod gate;
mod refusals;
mod regressions;
mod upstream;
