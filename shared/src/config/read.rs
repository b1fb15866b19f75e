//! Values as people write them, in the file and in the environment.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{self, Deserializer};

/// A number alone is text too.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        de::Error::custom(format!("{text:?} is no IP address with a port, such as \"0.0.0.0:8080\" or \"[::1]:8080\""))
    })
}

pub(super) fn some_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer).map(Some)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        de::Error::custom(format!("{text:?} is no time such as \"500ms\", \"10s\" or \"5m\": {error}"))
    })
}

pub(super) fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// A list, or one string with commas between its parts, as the environment has it.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        Text(String),
        Parts(Vec<String>),
    }
    Ok(match List::deserialize(deserializer)? {
        List::Text(text) => text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        List::Parts(parts) => parts,
    })
}

/// Networks, and single addresses as networks of one; an IPv4 address is one in whatever way it is written.
pub(super) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: &String| {
        let address = text.parse().map(|address: IpAddr| IpNet::from(address.to_canonical()));
        address.or_else(|_| text.parse()).map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is no IP address and no network such as \"10.0.0.0/8\" or \"fd00::/8\""
            ))
        })
    };
    list(deserializer)?.iter().map(network).collect()
}
