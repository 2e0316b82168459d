//! Addresses that deliveries may connect to. Subscribers choose the endpoint, so addresses in the operator's networks
//! are refused unless the operator allows them (protection against server-side request forgery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// The IANA IPv4 Special-Purpose Address Registry (RFC 6890), multicast, and the Azure host agent.
const NOT_PUBLIC_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),        // this network
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // carrier-grade NAT; 100.100.100.200 is a cloud's metadata
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // the Azure host agent, reachable from every machine there
    v4(169, 254, 0, 0, 16),   // link-local; 169.254.169.254 is the metadata of most clouds
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocol assignments; 192.0.0.192 is a cloud's metadata
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 88, 99, 0, 24),   // 6to4 relays, deprecated
    v4(192, 168, 0, 0, 16),   // private
    v4(198, 18, 0, 0, 15),    // benchmarking
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 3),      // multicast, reserved, broadcast
];

/// Contains all global unicast addresses (RFC 4291 section 2.4, IANA registry), and so not loopback, `fc00::/7`,
/// `fe80::/10`, `fec0::/10` and `ff00::/8`.
const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);

/// Ranges of global unicast that are not public: protocol assignments with Teredo (whose embedded address is behind a
/// relay), documentation.
const NOT_PUBLIC_V6: [Ipv6Net; 3] = [v6(0x2001, 0, 0, 23), v6(0x2001, 0xdb8, 0, 32), v6(0x3fff, 0, 0, 20)];

/// Ranges whose addresses embed an IPv4 address.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16);

/// True for a public address. An address that embeds an IPv4 address (mapped, NAT64, 6to4) is judged by that address.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            let [_, _, e, f, g, h, ..] = address.octets();
            if NAT64.contains(&address) {
                is_public(Ipv4Addr::new(a, b, c, d).into())
            } else if SIX_TO_FOUR.contains(&address) {
                is_public(Ipv4Addr::new(e, f, g, h).into())
            } else {
                GLOBAL_UNICAST.contains(&address) && !NOT_PUBLIC_V6.iter().any(|net| net.contains(&address))
            }
        }
    }
}

/// Allows public addresses, and the networks that the operator allows.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    /// The setting `delivery.allow_networks`.
    pub allow: Vec<IpNet>,
}

impl AddressPolicy {
    /// True if a delivery may connect to the address. An IPv4-mapped address counts as its IPv4 address.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.allow.iter().any(|net| net.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn public(address: &str) -> bool {
        is_public(address.parse().unwrap())
    }

    #[test]
    fn the_public_internet_is_reached() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450:4001::1",
            "2001:4860:4860::8888",
            "2400::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn everything_else_is_not() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:1::1",
            "2001:db8::1",
            "3fff::1",
            "2002:7f00:1::1",
            "2002:a00:1::1",
            "2002:a9fe:a9fe::",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(address), "{address}");
        }
    }

    #[test]
    fn allowed_networks_are_reached_and_no_others() {
        let allow = ["127.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).to_vec();
        let policy = AddressPolicy { allow };
        for (address, expected) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("fd12::1", true),
            ("1.1.1.1", true),
            ("10.0.0.1", false),
            ("::1", false),
            ("fc00::1", false),
            // Another form of the same address is not allowed.
            ("64:ff9b::127.0.0.1", false),
        ] {
            assert_eq!(policy.permits(address.parse().unwrap()), expected, "{address}");
        }
        assert!(!AddressPolicy::default().permits("127.0.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn every_form_of_an_address_is_judged_alike(bits in any::<u32>()) {
            let address = Ipv4Addr::from(bits);
            let [a, b, c, d] = address.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low);
            let six_to_four = Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1);
            for form in [address.to_ipv6_mapped(), nat64, six_to_four] {
                prop_assert_eq!(is_public(form.into()), is_public(address.into()), "{} {}", form, address);
            }
        }

        #[test]
        fn nothing_that_the_standard_library_calls_special_is_public(bits in any::<u32>(), special in 0..7usize) {
            let first = [0x0a00_0000u32, 0x7f00_0000, 0xa9fe_0000, 0xac10_0000, 0xc0a8_0000, 0xe000_0000, 0][special];
            let mask = [8, 8, 16, 12, 16, 4, 8][special];
            let address = Ipv4Addr::from(first | bits & (u32::MAX >> mask));
            prop_assert!(address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_multicast() || address.octets()[0] == 0);
            prop_assert!(!is_public(address.into()));
        }
    }
}
