//! pingora chooses and keeps health; what it chooses among are our endpoints.
//!
//! pingora's backends are socket addresses, while endpoints are URLs whose names are resolved when they are dialled. So
//! a backend's address here is a name only (IPv6 discard prefix, RFC 6666, endpoint's number in the last bits) and is
//! never connected to: health checks go through the endpoint's own client, TLS included.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, Uri};
use http_body_util::Full;
use pingora_load_balancing::health_check::HealthCheck;
use pingora_load_balancing::selection::{Consistent, Random, RoundRobin};
use pingora_load_balancing::{Backend, Backends, LoadBalancer, discovery};

use super::Endpoint;
use crate::config::{self, Balance};

/// Longest time a health check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Chooses endpoints by number.
pub struct Balancer {
    /// The endpoints' names, made once: each is text that would have to be parsed.
    names: Box<[Backend]>,
    choice: Choice,
}

enum Choice {
    RoundRobin(LoadBalancer<RoundRobin>),
    Random(LoadBalancer<Random>),
    Sticky(LoadBalancer<Consistent>),
}

impl Balancer {
    /// A balancer over these endpoints, which are healthy until a check says otherwise.
    pub fn new(balance: Balance, endpoints: &Arc<[Arc<Endpoint>]>, health: Option<&config::Health>) -> Self {
        let names: Box<[Backend]> = (0..endpoints.len()).map(backend).collect();
        let set = BTreeSet::from_iter(names.iter().cloned());
        let mut backends = Backends::new(discovery::Static::new(set));
        if let Some(health) = health {
            backends.set_health_check(Box::new(Check {
                endpoints: endpoints.clone(),
                check: health.check.clone(),
            }));
        }
        let choice = match balance {
            Balance::RoundRobin => Choice::RoundRobin(ready(LoadBalancer::from_backends(backends))),
            Balance::Random => Choice::Random(ready(LoadBalancer::from_backends(backends))),
            Balance::Sticky => Choice::Sticky(ready(LoadBalancer::from_backends(backends))),
        };
        Self { names, choice }
    }

    /// A healthy endpoint that `open` accepts; `None` only if there is none.
    pub fn choose(&self, key: &[u8], open: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.names.len();
        // Nothing to choose: most routes have one endpoint.
        if count == 1 {
            return (open(0) && self.healthy(0)).then_some(0);
        }
        let accept = |backend: &Backend, healthy: bool| healthy && open(number(backend));
        let chosen = match &self.choice {
            Choice::RoundRobin(balancer) => balancer.select_with(key, count * 4, accept),
            Choice::Random(balancer) => balancer.select_with(key, count * 4, accept),
            Choice::Sticky(balancer) => balancer.select_with(key, count * 4, accept),
        };
        // Dice, or neighbours on the hash ring, can name the same few endpoints every time, and concurrent requests
        // share the round robin's counter: what the steps left out is looked at in turn. It begins where the key says,
        // so that what a lost endpoint had is spread and stays put.
        let first = key
            .iter()
            .fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
        chosen.map(|backend| number(&backend)).or_else(|| {
            (0..count)
                .map(|step| (first % count + step) % count)
                .find(|&index| self.healthy(index) && open(index))
        })
    }

    /// Checks all endpoints once.
    pub async fn check(&self) {
        self.backends().run_health_check(true).await;
    }

    /// What the last check said.
    pub fn healthy(&self, index: usize) -> bool {
        self.backends().ready(&self.names[index])
    }

    fn backends(&self) -> &Backends {
        match &self.choice {
            Choice::RoundRobin(balancer) => balancer.backends(),
            Choice::Random(balancer) => balancer.backends(),
            Choice::Sticky(balancer) => balancer.backends(),
        }
    }
}

fn ready<S>(balancer: LoadBalancer<S>) -> LoadBalancer<S>
where
    S: pingora_load_balancing::selection::BackendSelection + 'static,
    S::Iter: pingora_load_balancing::selection::BackendIter,
{
    balancer
        .update()
        .now_or_never()
        .expect("a static list is there at once")
        .expect("a static list can't fail");
    balancer
}

fn backend(index: usize) -> Backend {
    let [.., a, b] = u16::try_from(index)
        .expect("far fewer than 65,536 endpoints")
        .to_be_bytes();
    let ip = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b]));
    Backend::new(&SocketAddr::from((ip, 1)).to_string()).expect("a socket address")
}

fn number(backend: &Backend) -> usize {
    match backend.addr.as_inet().map(SocketAddr::ip) {
        Some(IpAddr::V6(ip)) => usize::from(ip.segments()[7]),
        _ => 0,
    }
}

/// Asks an endpoint whether it is well.
struct Check {
    endpoints: Arc<[Arc<Endpoint>]>,
    check: config::HealthCheck,
}

#[async_trait]
impl HealthCheck for Check {
    async fn check(&self, target: &Backend) -> pingora_core::Result<()> {
        let endpoint = &self.endpoints[number(target)];
        let well = tokio::time::timeout(CHECK_TIMEOUT, endpoint.is_well(&self.check)).await;
        match well {
            Ok(Ok(())) => {
                *endpoint.error() = None;
                Ok(())
            }
            Ok(Err(error)) => Err(unwell(endpoint, error)),
            Err(_) => Err(unwell(endpoint, "the health check took over 5 s".to_owned())),
        }
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

fn unwell(endpoint: &Endpoint, error: String) -> Box<pingora_core::Error> {
    *endpoint.error() = Some(error.clone());
    pingora_core::Error::explain(pingora_core::ErrorType::ConnectError, error)
}

impl Endpoint {
    async fn is_well(&self, check: &config::HealthCheck) -> Result<(), String> {
        let authority = &self.url[url::Position::BeforeHost..url::Position::AfterPort];
        match check {
            config::HealthCheck::Tcp => {
                let port = self.url.port_or_known_default().unwrap_or(80);
                let host = self.url.host_str().unwrap_or_default();
                let host = host.trim_start_matches('[').trim_end_matches(']');
                tokio::net::TcpStream::connect((host, port))
                    .await
                    .map(drop)
                    .map_err(|error| error.to_string())
            }
            config::HealthCheck::Http(path) => {
                let uri: Uri = format!("{}://{authority}{path}", self.url.scheme())
                    .parse()
                    .map_err(|_| format!("{path} is no path"))?;
                let mut request = Request::new(Full::new(Bytes::new()));
                *request.method_mut() = Method::GET;
                *request.uri_mut() = uri;
                let response = self
                    .client
                    .request(request)
                    .await
                    .map_err(|error| super::chain(&error))?;
                if response.status().is_success() {
                    Ok(())
                } else {
                    Err(format!("the health check was answered {}", response.status()))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::testing::endpoints;

    #[test]
    fn whoever_is_open_is_found() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::Sticky] {
            let balancer = Balancer::new(balance, &endpoints(4), None);
            for key in 0..2_000_u64 {
                let only = usize::try_from(key % 4).expect("small");
                let chosen = balancer.choose(&key.to_be_bytes(), |index| index == only);
                assert_eq!(chosen, Some(only), "{balance:?}, key {key}");
                assert_eq!(balancer.choose(&key.to_be_bytes(), |_| false), None);
            }
        }
    }

    #[test]
    fn calls_are_spread_and_a_key_stays() {
        for balance in [Balance::RoundRobin, Balance::Random] {
            let balancer = Balancer::new(balance, &endpoints(4), None);
            let mut calls = [0; 4];
            for _ in 0..4_000 {
                calls[balancer.choose(&[], |_| true).expect("all are open")] += 1;
            }
            assert!(calls.iter().all(|calls| *calls > 500), "{balance:?}: {calls:?}");
        }
        let sticky = Balancer::new(Balance::Sticky, &endpoints(4), None);
        let (mut calls, mut inherited) = ([0; 4], [0; 4]);
        for key in 0..4_000_u64 {
            let key = key.to_be_bytes();
            let first = sticky.choose(&key, |_| true).expect("all are open");
            assert_eq!(sticky.choose(&key, |_| true), Some(first));
            calls[first] += 1;
            // One goes: nobody else's callers move.
            let then = sticky.choose(&key, |index| index != 3).expect("three are open");
            if first == 3 {
                inherited[then] += 1;
            } else {
                assert_eq!(then, first);
            }
        }
        assert!(calls.iter().all(|calls| *calls > 500), "{calls:?}");
        assert!(inherited[..3].iter().all(|calls| *calls > 50), "{inherited:?}");
    }
}
