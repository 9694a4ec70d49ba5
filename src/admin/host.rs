//! Which `Host` the admin port answers to.

use std::net::{IpAddr, SocketAddr};

use http::uri::Authority;

/// Whether `host` names this port: loopback by name or address, the bound address, or the address the connection came
/// in by. On a wildcard address any literal address will do, since only names can be rebound.
pub(super) fn is_ours(host: &Authority, bound: SocketAddr, local: SocketAddr) -> bool {
    if host.as_str().contains('@') {
        return false;
    }
    let name = host.host();
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let literal = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    let Ok(address) = literal.parse::<IpAddr>() else {
        return false;
    };
    address.is_loopback()
        || address == bound.ip()
        || address.to_canonical() == local.ip().to_canonical()
        || bound.ip().is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_loopback_names_are_ours() {
        let cases = [
            ("127.0.0.1:9464", "127.0.0.1:9464", true),
            ("localhost:9464", "127.0.0.1:9464", true),
            ("LOCALHOST", "127.0.0.1:9464", true),
            ("[::1]:9464", "127.0.0.1:9464", true),
            ("10.0.0.5:9464", "10.0.0.5:9464", true),
            ("10.0.0.6:9464", "10.0.0.5:9464", false),
            ("10.0.0.6", "0.0.0.0:9464", true),
            ("evil.example:9464", "127.0.0.1:9464", false),
            ("evil.example", "0.0.0.0:9464", false),
            ("localhost.evil.example", "127.0.0.1:9464", false),
            ("127.0.0.1.evil.example", "127.0.0.1:9464", false),
            ("localhost@evil.example", "127.0.0.1:9464", false),
            ("evil@127.0.0.1", "127.0.0.1:9464", false),
        ];
        for (host, bound, ours) in cases {
            let bound: SocketAddr = bound.parse().unwrap();
            let local = SocketAddr::new(
                if bound.ip().is_unspecified() {
                    [10, 9, 9, 9].into()
                } else {
                    bound.ip()
                },
                1,
            );
            assert_eq!(is_ours(&host.parse().unwrap(), bound, local), ours, "{host} on {bound}");
        }
    }
}
