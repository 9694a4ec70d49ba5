//! Networks of trusted peers, written as CIDR (RFC 4632, RFC 4291 section 2.3).
//!
//! 1. An address alone is a network of one; host bits must be zero, since `10.1.2.3/8` means one of two things.
//! 2. An IPv4 address mapped into IPv6 is the IPv4 address: a dual-stack socket shows it so.

use std::net::IpAddr;
use std::str::FromStr;

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    /// Leading bits that must agree.
    prefix: u32,
}

impl Network {
    /// Whether the address lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (wanted, width) = bits(self.base);
        let (given, given_width) = bits(address.to_canonical());
        width == given_width && (wanted ^ given).checked_shr(width - self.prefix).unwrap_or(0) == 0
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let remedy = || "use a network such as 10.0.0.0/8, fd00::/8 or a single address".to_owned();
        let (base, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((base, prefix)) => (base, Some(prefix)),
        };
        let base: IpAddr = base.parse().map_err(|_| remedy())?;
        if base.to_canonical() != base {
            return Err("write the IPv4 network, not its form mapped into IPv6".to_owned());
        }
        let (value, width) = bits(base);
        let prefix = match prefix {
            None => width,
            Some(digits) if (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| remedy())?
            }
            Some(_) => return Err(remedy()),
        };
        if prefix > width {
            return Err(remedy());
        }
        if prefix == 0 {
            return Err("this trusts everybody; name the proxies' networks".to_owned());
        }
        let host = value & 1_u128.checked_shl(width - prefix).unwrap_or(0).wrapping_sub(1);
        if host != 0 {
            return Err("the bits after the prefix must be zero; write the network's first address".to_owned());
        }
        Ok(Self { base, prefix })
    }
}

/// The address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn within(network: &str, address: &str) -> bool {
        let network: Network = network.parse().expect("a network");
        network.contains(address.parse().expect("an address"))
    }

    #[test]
    fn ends_of_networks() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "a00::", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe00::1", false),
            ("::1", "::1", true),
            ("128.0.0.0/1", "127.255.255.255", false),
        ] {
            assert_eq!(within(network, address), inside, "{address} in {network}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.1/8",
            "0.0.0.0/0",
            "::/0",
            "fd00::/129",
            "proxy.example",
            "10.0.0.0/8/8",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn membership_is_equal_leading_bits(base: u32, prefix in 1_u32..=32, other: u32) {
            let mask = u32::MAX << (32 - prefix);
            let network: Network = format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(base & mask)).parse().expect("a network");
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(other));
            prop_assert_eq!(network.contains(address), base & mask == other & mask);
        }
    }
}
