//! Client certificates as an identity: a caller is who the certificate of the TLS handshake says.
//!
//! 1. The handshake proved that the client holds the key, and that the certificate chained to `listen.tls.client_ca` then.
//!    Connections outlive configurations, so the chain is verified again by the authorities of today, once a certificate
//!    and configuration; and its end is looked at on every request.
//! 2. The subject is the one name of the configured kind. None is no identity. Several are none either: which of them
//!    counts would be up to their order, and a caller's sessions, limits and audit must not hang on that. A DNS name with
//!    a `*` is many names.
//! 3. The rest of the certificate's names are claims, for roles and conditions. There are no scopes.
//! 4. The caller's issuer is made of what no issuer's URL begins with, and of the identity's name. Whatever any authority
//!    of the bundle says is believed: two that name one subject mean one caller.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::sync::Cache;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;
use serde_json::{Map, Value, json};

use super::{CertificateFault, Principal, SetupError};
use crate::clock::Clock;
use crate::config::{CertificateName, ClientCertificates};
use crate::listener::{self, ClientCertificate, Names};
use crate::policy::Roles;

/// Most certificates remembered.
const MAX_KNOWN: u64 = 10_000;

/// One identity's certificates.
pub(super) struct Certificates {
    identity: Arc<str>,
    subject: CertificateName,
    verifier: Arc<dyn ClientCertVerifier>,
    roles: Arc<Roles>,
    clock: Clock,
    /// Those that were verified, by SHA-256.
    known: Cache<[u8; 32], Arc<Principal>>,
}

impl Certificates {
    /// Reads the bundle.
    pub(super) fn new(
        identity: &Arc<str>,
        config: &ClientCertificates,
        roles: Arc<Roles>,
        clock: Clock,
    ) -> Result<Self, SetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            listener::client_verifier(&config.authorities, &provider).map_err(|_| SetupError::Authority {
                identity: identity.clone(),
                path: config.authorities.clone(),
            })?;
        Ok(Self {
            identity: identity.clone(),
            subject: config.subject,
            verifier,
            roles,
            clock,
            known: Cache::new(MAX_KNOWN),
        })
    }

    /// How many authorities there are.
    pub(super) fn authorities(&self) -> usize {
        self.verifier.root_hint_subjects().len()
    }

    /// Who shows this certificate.
    pub(super) fn owner(&self, certificate: &ClientCertificate) -> Result<Arc<Principal>, CertificateFault> {
        let names = certificate.names().ok_or(CertificateFault::Unreadable)?;
        let now = self.clock.now();
        if now > names.not_after {
            return Err(CertificateFault::Expired(names.not_after));
        }
        if let Some(owner) = self.known.get(certificate.thumbprint()) {
            return Ok(owner);
        }
        let (leaf, intermediates) = certificate.chain();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
        self.verifier
            .verify_client_cert(leaf, intermediates, time)
            .map_err(|_| CertificateFault::Untrusted)?;
        let owner = Arc::new(self.principal(certificate.thumbprint(), names)?);
        self.known.insert(*certificate.thumbprint(), owner.clone());
        Ok(owner)
    }

    fn principal(&self, thumbprint: &[u8; 32], names: &Names) -> Result<Principal, CertificateFault> {
        let mut principal = Principal {
            identity: Some(self.identity.clone()),
            issuer: format!("portcullis:client-certificates:{}", self.identity),
            subject: subject(self.subject, names)
                .ok_or(CertificateFault::Subject)?
                .to_owned(),
            claims: claims(thumbprint, names),
            // It is good for its last second, and a token isn't.
            expires: Some(names.not_after.saturating_add(1)),
            ..Principal::default()
        };
        principal.granted = self.roles.of(&principal);
        Ok(principal)
    }
}

fn subject(kind: CertificateName, names: &Names) -> Option<&str> {
    match kind {
        CertificateName::Uri => only(&names.uri),
        CertificateName::Dns => only(&names.dns).filter(|name| !name.contains('*')),
        CertificateName::Email => only(&names.email),
        CertificateName::CommonName => only(&names.common_name),
        CertificateName::DistinguishedName => Some(names.distinguished_name.as_str()).filter(|name| !name.is_empty()),
    }
}

fn only(names: &[String]) -> Option<&str> {
    match names {
        [only] => Some(only),
        _ => None,
    }
}

fn claims(thumbprint: &[u8; 32], names: &Names) -> Map<String, Value> {
    let Value::Object(claims) = json!({
        "distinguished_name": names.distinguished_name,
        "common_name": names.common_name,
        "organization": names.organization,
        "organizational_unit": names.organizational_unit,
        "dns": names.dns,
        "uri": names.uri,
        "email": names.email,
        "issuer": names.issuer,
        "serial": names.serial,
        "cnf": {"x5t#S256": URL_SAFE_NO_PAD.encode(thumbprint)},
    }) else {
        unreachable!("it is written as an object")
    };
    claims
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

    use super::*;
    use crate::policy::RoleLine;

    const NOW: u64 = 1_800_000_000;
    /// 2030-01-01, the last second of the certificates here.
    const END: u64 = 1_893_456_000;

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn issue(&self, fill: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, "agent-a");
            params.not_after = rcgen::date_time_ymd(2030, 1, 1);
            fill(&mut params);
            let certificate = params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap();
            ClientCertificate::read(&[certificate.der().clone()]).unwrap()
        }

        fn identity(&self, subject: CertificateName, clock: &Clock) -> Certificates {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), self.0.pem()).unwrap();
            let config = ClientCertificates {
                subject,
                authorities: file.path().to_owned(),
            };
            let lines = [
                "claim:organizational_unit=Agents",
                "claim:dns=*.corp.example",
                "subject:spiffe://corp.example/*",
            ];
            let lines = lines.map(|line| RoleLine::Text(line.to_owned()));
            let roles = lines
                .into_iter()
                .enumerate()
                .map(|(role, line)| (format!("r{role}"), vec![line]));
            let roles = Arc::new(Roles::compile(roles.collect()).unwrap());
            Certificates::new(&"mesh".into(), &config, roles, clock.clone()).unwrap()
        }
    }

    fn uris(names: &[&str]) -> Vec<SanType> {
        names
            .iter()
            .map(|name| SanType::URI((*name).try_into().unwrap()))
            .collect()
    }

    fn dns(names: &[&str]) -> Vec<SanType> {
        names
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()))
            .collect()
    }

    #[test]
    fn the_one_name_of_the_kind_is_the_subject() {
        let authority = Authority::new();
        let clock = Clock::fixed(NOW);
        let email = |name: &str| vec![SanType::Rfc822Name(name.try_into().unwrap())];
        use CertificateName::{CommonName, DistinguishedName, Dns, Email, Uri};
        for (kind, names, expected) in [
            (Uri, uris(&["spiffe://corp.example/a"]), Some("spiffe://corp.example/a")),
            (Uri, uris(&["spiffe://corp.example/a", "spiffe://corp.example/b"]), None),
            (Uri, dns(&["a.corp.example"]), None),
            (Uri, vec![], None),
            (Dns, dns(&["A.corp.example"]), Some("a.corp.example")),
            (Dns, dns(&["a.corp.example", "b.corp.example"]), None),
            (Dns, dns(&["*.corp.example"]), None),
            (Email, email("a@corp.example"), Some("a@corp.example")),
            (Email, uris(&["mailto:a@corp.example"]), None),
            (CommonName, dns(&["a", "b"]), Some("agent-a")),
            (DistinguishedName, vec![], Some("CN=agent-a")),
        ] {
            let certificate = authority.issue(|params| params.subject_alt_names.clone_from(&names));
            let owner = authority.identity(kind, &clock).owner(&certificate);
            let subject = owner.as_ref().map(|owner| owner.subject.as_str());
            assert_eq!(
                subject,
                expected.ok_or(&CertificateFault::Subject),
                "{kind:?} {names:?}"
            );
        }
        for kind in [CommonName, DistinguishedName] {
            let nameless = authority.issue(|params| params.distinguished_name = rcgen::DistinguishedName::new());
            let owner = authority.identity(kind, &clock).owner(&nameless);
            assert_eq!(owner.err(), Some(CertificateFault::Subject));
        }
    }

    #[test]
    fn names_are_claims_and_the_end_is_the_end() {
        let authority = Authority::new();
        let clock = Clock::fixed(NOW);
        let identity = authority.identity(CertificateName::Uri, &clock);
        let certificate = authority.issue(|params| {
            params.distinguished_name.push(DnType::OrganizationalUnitName, "Agents");
            params.subject_alt_names = [uris(&["spiffe://corp.example/a"]), dns(&["x", "a.corp.example"])].concat();
        });
        let owner = identity.owner(&certificate).unwrap();
        assert_eq!(owner.identity.as_deref(), Some("mesh"));
        assert_eq!(owner.issuer, "portcullis:client-certificates:mesh");
        assert_eq!((owner.expires, owner.scopes.len()), (Some(END + 1), 0));
        assert_eq!([0, 1, 2].map(|role| owner.granted.has(role)), [true; 3]);
        let bound = URL_SAFE_NO_PAD.encode(certificate.thumbprint());
        assert_eq!(owner.claims["cnf"], json!({"x5t#S256": bound}));
        // Remembered, and its end looked at all the same.
        clock.set(END);
        assert!(Arc::ptr_eq(&owner, &identity.owner(&certificate).unwrap()));
        clock.set(END + 1);
        assert_eq!(identity.owner(&certificate).err(), Some(CertificateFault::Expired(END)));
    }

    #[test]
    fn only_the_authorities_of_today_are_believed() {
        let (authority, other) = (Authority::new(), Authority::new());
        let clock = Clock::fixed(NOW);
        let certificate = authority.issue(|_| {});
        let today = other.identity(CertificateName::CommonName, &clock);
        assert_eq!(today.owner(&certificate).err(), Some(CertificateFault::Untrusted));
        let unreadable = ClientCertificate::read(&[b"no certificate".to_vec().into()]).unwrap();
        assert_eq!(today.owner(&unreadable).err(), Some(CertificateFault::Unreadable));
        let server = authority.issue(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        });
        let own = authority.identity(CertificateName::CommonName, &clock);
        assert_eq!(
            own.owner(&server).err(),
            Some(CertificateFault::Untrusted),
            "it is a server's"
        );
        assert_eq!(own.authorities(), 1);
    }

    #[test]
    fn a_bundle_that_holds_nothing_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = ClientCertificates {
            subject: CertificateName::Uri,
            authorities: file.path().to_owned(),
        };
        let made = Certificates::new(&"mesh".into(), &config, Arc::default(), Clock::system());
        assert!(matches!(made, Err(SetupError::Authority { .. })));
    }
}
