//! Where a request comes from: the other end of its connection, or what the proxies in between say of it.
//!
//! A proxy is believed only where the settings name it (`ingress.trusted_proxies`), and of what it passes on only what it, or
//! another such proxy, has added: whatever stands before that a client may have made up. `X-Forwarded-For` decides where
//! it is there, since that is what proxies set without being asked; `Forwarded` of a client passes through most of them.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a request comes from; the port is not known where only a proxy tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "Cow<'_, str>")]
pub struct ClientAddress {
    ip: IpAddr,
    port: Option<u16>,
}

/// Neither an IP address nor one with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is neither an IP address nor one with a port")]
pub struct NotAnAddress;

impl ClientAddress {
    /// Whose request it is that came over a connection from `peer` with these headers.
    pub fn of(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let peer = Self::from(peer);
        if !is_in(trusted, peer.ip) {
            return peer;
        }
        let mut nearest = peer;
        for hop in hops(headers).iter().rev() {
            // "unknown", or a name that the proxy has made up for it.
            let Ok(address) = hop.parse::<Self>() else { break };
            nearest = address;
            if !is_in(trusted, address.ip) {
                break;
            }
        }
        nearest
    }

    /// The address that what is counted by address is counted under: of IPv6 the /64, which is what one subscriber has at least.
    pub fn network(self) -> IpAddr {
        network(self.ip)
    }
}

/// Whether any of the networks has this address.
pub fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}

/// The address that what is counted by address is counted under.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// The addresses that the proxies have added, the client's own first.
fn hops(headers: &HeaderMap) -> Vec<&str> {
    let listed = |name: HeaderName| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim).collect::<Vec<_>>()
    };
    if headers.contains_key(X_FORWARDED_FOR) {
        listed(X_FORWARDED_FOR)
    } else {
        listed(FORWARDED).into_iter().map(node).collect()
    }
}

/// What stands behind `for=` in an element of `Forwarded`; nothing where that is not told.
fn node(element: &str) -> &str {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find_map(|(name, value)| name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"')))
        .unwrap_or_default()
}

impl From<SocketAddr> for ClientAddress {
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip().to_canonical(), port: Some(address.port()) }
    }
}

impl FromStr for ClientAddress {
    type Err = NotAnAddress;

    /// `203.0.113.7`, `203.0.113.7:50312`, `2001:db8::7`, `[2001:db8::7]`, `[2001:db8::7]:50312`.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let ip: IpAddr = bare.parse().map_err(|_| NotAnAddress)?;
        Ok(Self { ip: ip.to_canonical(), port: None })
    }
}

impl TryFrom<Cow<'_, str>> for ClientAddress {
    type Error = NotAnAddress;

    fn try_from(text: Cow<'_, str>) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl From<ClientAddress> for String {
    fn from(address: ClientAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, headers: &[(&HeaderName, &str)]) -> String {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "::1/128"].map(|network| network.parse().unwrap()).into();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        ClientAddress::of(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_says_who_the_client_is() {
        let x = &X_FORWARDED_FOR;
        for (peer, headers, expected) in [
            ("203.0.113.7:5", &[] as &[_], "203.0.113.7:5"),
            ("203.0.113.7:5", &[(x, "1.2.3.4")], "203.0.113.7:5"),
            ("10.0.0.1:5", &[], "10.0.0.1:5"),
            ("10.0.0.1:5", &[(x, "1.2.3.4")], "1.2.3.4"),
            ("[::ffff:10.0.0.1]:5", &[(x, "::ffff:1.2.3.4")], "1.2.3.4"),
            ("[::1]:5", &[(x, "2001:db8::7")], "2001:db8::7"),
            // What the client has made up stands before what the proxies have added.
            ("10.0.0.1:5", &[(x, "9.9.9.9, 1.2.3.4, 10.0.0.2")], "1.2.3.4"),
            ("10.0.0.1:5", &[(x, "9.9.9.9"), (x, "1.2.3.4")], "1.2.3.4"),
            ("10.0.0.1:5", &[(x, "1.2.3.4"), (&FORWARDED, "for=9.9.9.9")], "1.2.3.4"),
            ("10.0.0.1:5", &[(x, "made up, 10.0.0.2")], "10.0.0.2"),
            ("10.0.0.1:5", &[(x, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("10.0.0.1:5", &[(x, "")], "10.0.0.1:5"),
            ("10.0.0.1:5", &[(&FORWARDED, "for=9.9.9.9, proto=https;For=1.2.3.4")], "1.2.3.4"),
            ("10.0.0.1:5", &[(&FORWARDED, "for=\"[2001:db8::7]:4711\"")], "[2001:db8::7]:4711"),
            ("10.0.0.1:5", &[(&FORWARDED, "for=\"[2001:db8::7]\"")], "2001:db8::7"),
            ("10.0.0.1:5", &[(&FORWARDED, "for=unknown")], "10.0.0.1:5"),
            ("10.0.0.1:5", &[(&FORWARDED, "for=1.2.3.4, proto=http")], "10.0.0.1:5"),
        ] {
            assert_eq!(client(peer, headers), expected, "{peer} {headers:?}");
        }
    }

    #[test]
    fn addresses_are_counted_by_what_one_subscriber_has() {
        for (ip, counted) in [
            ("203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ] {
            assert_eq!(network(ip.parse().unwrap()), counted.parse::<IpAddr>().unwrap(), "{ip}");
        }
    }

    #[test]
    fn an_address_is_text_in_json() {
        for text in ["203.0.113.7:50312", "203.0.113.7", "2001:db8::7", "[2001:db8::7]:50312"] {
            let address: ClientAddress = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(address).unwrap(), text);
        }
        assert!(serde_json::from_value::<ClientAddress>("somewhere".into()).is_err());
    }
}
