//! Where a server may send us for a file.
//!
//! A PlugNMeet server redirects a download to its object storage. One that somebody has taken over could redirect it to what only
//! this machine reaches: a metadata service, a database's port, a router. So a redirect never leads from https to http, and into a
//! private network only where the server itself is in one of that kind (it could ask there itself) or the settings name the host.
//! A redirect's host is judged by its address where it is one, else by what its name resolves to, in the very look-up that the
//! connection is made by. Behind a proxy it is the proxy that looks names up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use url::{Host, Url};

/// From one server to its object storage it is one step, sometimes two.
const MAX_REDIRECTS: usize = 5;
/// The environment's proxies, which connections are made to in the place of a server.
const PROXIES: [&str; 6] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// A redirect that is not followed, and why.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// What was encrypted would not be any more.
    #[error("from https to http, at {0}")]
    Unencrypted(String),
    /// The host is in a network where the server is not.
    #[error("to {host}, which is {network}; recordings.redirect_hosts says where that is meant")]
    Network {
        /// As the redirect names it.
        host: String,
        /// What kind of network it is in.
        network: Network,
    },
}

/// Who can reach an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// This machine alone.
    Loopback,
    /// This machine's cable, or the hypervisor beneath it: metadata services are there.
    Link,
    /// A network of somebody's own.
    Private,
    /// Everybody.
    Public,
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loopback => "this machine itself",
            Self::Link => "a link-local or metadata address",
            Self::Private => "in a private network",
            Self::Public => "in the internet",
        })
    }
}

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => match address.segments() {
                // NAT64: the address behind the gateway.
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Self::of_v4((u32::from(high) << 16 | u32::from(low)).into()),
                // Amazon's metadata service.
                [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Self::Link,
                _ if address.is_loopback() || address.is_unspecified() => Self::Loopback,
                _ if address.is_unicast_link_local() => Self::Link,
                // fec0::/10 was site-local.
                [first, ..] if first & 0xffc0 == 0xfec0 => Self::Private,
                _ if address.is_unique_local() || address.is_multicast() => Self::Private,
                _ => Self::Public,
            },
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            // All of 0.0.0.0/8 is this host.
            [0 | 127, ..] => Self::Loopback,
            // Alibaba's and Oracle's metadata services.
            [169, 254, ..] | [100, 100, 100, 200] | [192, 0, 0, 192] => Self::Link,
            // Behind a carrier's NAT or in an overlay network, for protocols, for benchmarks, for many and for nobody.
            [100, 64..128, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] | [224..=255, ..] => Self::Private,
            _ if address.is_private() => Self::Private,
            _ => Self::Public,
        }
    }
}

/// What the redirects of one server are judged by.
#[derive(Debug, Clone)]
pub(super) struct Redirects(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    /// The server's own host, the settings' and the environment's proxies: wherever these are, they are meant.
    trusted: BTreeSet<String>,
    own_host: String,
    /// Where the server was found to be.
    own: Mutex<BTreeSet<Network>>,
}

impl Redirects {
    /// Of the server at `url`, which may redirect to these `hosts` too, names or addresses.
    pub(super) fn of(url: &Url, hosts: &[String]) -> Self {
        let proxies =
            PROXIES.iter().filter_map(|name| std::env::var(name).ok()).filter_map(|proxy| host_of_proxy(&proxy));
        let own_host = url.host_str().unwrap_or_default().to_owned();
        let own = url.host().and_then(|host| address(&host)).map(Network::of);
        let named = hosts.iter().map(|host| as_in_urls(host));
        let trusted = named.chain(proxies).chain([own_host.clone()]).collect();
        Self(Arc::new(Rules { trusted, own_host, own: Mutex::new(own.into_iter().collect()) }))
    }

    /// For a client that follows redirects. It is to look names up by [`Self`] too.
    pub(super) fn policy(&self) -> redirect::Policy {
        let (rules, limited) = (Arc::clone(&self.0), redirect::Policy::limited(MAX_REDIRECTS));
        redirect::Policy::custom(move |attempt| match rules.judge(attempt.previous().last(), attempt.url()) {
            Ok(()) => limited.redirect(attempt),
            Err(refused) => attempt.error(refused),
        })
    }
}

impl Resolve for Redirects {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(rules.permitted(name.as_str(), found)?.into_iter()) as Addrs)
        })
    }
}

impl Rules {
    fn judge(&self, from: Option<&Url>, to: &Url) -> Result<(), Refused> {
        let host = to.host_str().unwrap_or_default();
        if to.scheme() == "http" && from.is_some_and(|from| from.scheme() == "https") {
            return Err(Refused::Unencrypted(host.to_owned()));
        }
        match to.host().and_then(|host| address(&host)) {
            Some(address) => self.permit(host, address),
            // Its addresses are judged when they are known.
            None => Ok(()),
        }
    }

    /// Those addresses of a host that may be connected to.
    fn permitted(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if host == self.own_host {
            let networks = found.iter().map(|address| Network::of(address.ip()));
            *self.own.lock().unwrap_or_else(PoisonError::into_inner) = networks.collect();
        }
        let judged: Vec<_> =
            found.into_iter().map(|address| self.permit(host, address.ip()).map(|()| address)).collect();
        let refused = judged.iter().find_map(|judged| judged.as_ref().err().cloned());
        let permitted: Vec<_> = judged.into_iter().flatten().collect();
        match refused {
            Some(refused) if permitted.is_empty() => Err(refused),
            _ => Ok(permitted),
        }
    }

    fn permit(&self, host: &str, address: IpAddr) -> Result<(), Refused> {
        let network = Network::of(address);
        // A server of a link's own is no reason to ask the hypervisor beneath it.
        let own = || self.own.lock().unwrap_or_else(PoisonError::into_inner).contains(&network);
        let good = network == Network::Public || self.trusted.contains(host) || network != Network::Link && own();
        if good { Ok(()) } else { Err(Refused::Network { host: host.to_owned(), network }) }
    }
}

fn address(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Ipv4(address) => Some((*address).into()),
        Host::Ipv6(address) => Some((*address).into()),
        Host::Domain(_) => None,
    }
}

/// A host as [`Url::host_str`] has it.
fn as_in_urls(host: &str) -> String {
    host.parse::<Ipv6Addr>().map_or_else(|_| host.to_ascii_lowercase(), |address| format!("[{address}]"))
}

/// The host of `http://user:password@proxy:3128`, or of `proxy:3128`, as the environment may have it too.
fn host_of_proxy(proxy: &str) -> Option<String> {
    let url = Url::parse(proxy).ok().filter(Url::has_host).or_else(|| Url::parse(&format!("http://{proxy}")).ok());
    Some(url?.host_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirects(server: &str, hosts: &[&str]) -> Redirects {
        let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
        Redirects::of(&Url::parse(server).unwrap(), &hosts)
    }

    fn judge(redirects: &Redirects, from: &str, to: &str) -> Result<(), Refused> {
        redirects.0.judge(Some(&Url::parse(from).unwrap()), &Url::parse(to).unwrap())
    }

    #[test]
    fn a_redirect_leads_into_no_network_where_the_server_is_not() {
        const PUBLIC: &str = "http://203.0.113.7";
        const HOME: &str = "http://192.168.1.5";
        const HERE: &str = "http://127.0.0.1:8080";
        for (server, to, good) in [
            (PUBLIC, "http://198.51.100.9/file", true),
            (PUBLIC, "http://storage.example.org/file", true),
            (PUBLIC, "http://127.0.0.1:5432/", false),
            (PUBLIC, "http://127.1/", false),
            (PUBLIC, "http://2130706433/", false),
            (PUBLIC, "http://0.0.0.0/", false),
            (PUBLIC, "http://[::1]/", false),
            (PUBLIC, "http://[::ffff:127.0.0.1]/", false),
            (PUBLIC, "http://[64:ff9b::a9fe:a9fe]/", false),
            (PUBLIC, "http://169.254.169.254/latest/meta-data", false),
            (PUBLIC, "http://[fe80::1]/", false),
            (PUBLIC, "http://[fd00:ec2::254]/", false),
            (PUBLIC, "http://100.100.100.200/", false),
            (PUBLIC, "http://10.0.0.1/", false),
            (PUBLIC, "http://172.31.255.255/", false),
            (PUBLIC, "http://172.32.0.1/", true),
            (PUBLIC, "http://100.64.0.1/", false),
            (PUBLIC, "http://[fc00::1]/", false),
            (PUBLIC, "http://255.255.255.255/", false),
            (PUBLIC, "http://10.9.9.9/", true),
            (PUBLIC, "http://[fd00::9]/", true),
            (HOME, "http://10.0.0.1/", true),
            (HOME, "http://127.0.0.1/", false),
            (HOME, "http://169.254.169.254/", false),
            (HERE, "http://127.0.0.1:9000/", true),
            (HERE, "http://192.168.1.5/", false),
            ("http://169.254.169.254", "http://169.254.169.254/file", true),
            ("http://169.254.169.254", "http://169.254.169.253/", false),
        ] {
            let judged = judge(&redirects(server, &["10.9.9.9", "fd00:0::9"]), server, to);
            assert_eq!(judged.is_ok(), good, "from {server} to {to}: {judged:?}");
        }
    }

    #[test]
    fn a_redirect_never_leads_from_https_to_http() {
        let redirects = redirects("https://meet.example.org", &["minio.internal"]);
        for to in ["http://storage.example.org", "http://meet.example.org", "http://minio.internal"] {
            let refused = judge(&redirects, "https://meet.example.org", to);
            assert!(matches!(refused, Err(Refused::Unencrypted(_))), "{to}: {refused:?}");
        }
        assert_eq!(judge(&redirects, "https://meet.example.org", "https://storage.example.org"), Ok(()));
        assert_eq!(judge(&redirects, "http://meet.example.org", "https://storage.example.org"), Ok(()));
    }

    #[test]
    fn a_name_is_as_good_as_what_it_resolves_to() {
        let at = |addresses: &[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect::<Vec<_>>();
        let redirects = redirects("https://meet.example.org", &["MinIO.internal"]);
        let permitted = |host: &str, found: &[&str]| redirects.0.permitted(host, at(found)).ok();
        // Nobody knows yet where the server is.
        assert_eq!(permitted("storage.example.org", &["10.0.0.9:0"]), None);
        assert_eq!(permitted("storage.example.org", &["203.0.113.7:0", "127.0.0.1:0"]), Some(at(&["203.0.113.7:0"])));
        assert_eq!(permitted("minio.internal", &["10.0.0.9:0"]), Some(at(&["10.0.0.9:0"])));
        assert_eq!(permitted("meet.example.org", &["10.0.0.1:0"]), Some(at(&["10.0.0.1:0"])));
        assert_eq!(permitted("storage.example.org", &["10.0.0.9:0"]), Some(at(&["10.0.0.9:0"])));
        assert_eq!(permitted("storage.example.org", &["127.0.0.1:0", "169.254.169.254:0"]), None);
    }

    #[tokio::test]
    async fn names_are_judged_in_the_look_up_itself() {
        let resolve = |server: &str| redirects(server, &[]).resolve("localhost".parse().unwrap());
        let refused = resolve("http://203.0.113.7").await.err().expect("localhost is this machine");
        assert!(
            matches!(refused.downcast_ref(), Some(Refused::Network { network: Network::Loopback, .. })),
            "{refused}"
        );
        assert!(resolve("http://127.0.0.1").await.is_ok_and(|found| found.count() > 0));
    }

    #[test]
    fn a_proxy_is_found_however_it_is_written() {
        for proxy in ["http://user:password@proxy.internal:3128", "proxy.internal:3128", "socks5://proxy.internal"] {
            assert_eq!(host_of_proxy(proxy).as_deref(), Some("proxy.internal"), "{proxy}");
        }
    }
}
