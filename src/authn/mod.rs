//! Bearer tokens become principals, or a 401 with a challenge.

mod principal;

pub use principal::Principal;
