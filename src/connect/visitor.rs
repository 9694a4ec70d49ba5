//! Who is signed in to the gateway's pages in this browser.
//!
//! 1. A visit is a sealed cookie and nothing on the server: any replica opens it, nobody else makes one. It lasts an
//!    hour; signing out takes it from the browser.
//! 2. It says which identity vouched, by a hash over the identity's name and issuer, and for whom. An identity that is no
//!    longer configured, no longer lets users log in or has another issuer now vouches for nobody.
//! 3. The visitor is the same person as a caller of that identity with that subject: the connections are theirs.
//! 4. The visit's secret leaves in two hashes only: one stands in every form (a form of another site can't know it), one
//!    binds a login that was begun here to this browser.

use std::sync::Arc;

use aws_lc_rs::{constant_time, digest, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::authn::Principal;
use crate::clock::UnixSeconds;
use crate::config::Identity;
use crate::session::{Purpose, Sealer};

/// Seconds that a visit lasts.
pub const VISIT: u64 = 60 * 60;

/// Bytes of a subject: OpenID Connect Core section 2 allows 255 ASCII characters.
const MAX_SUBJECT: usize = 255;

/// Bytes of the name shown to the visitor.
const MAX_NAME: usize = 128;

const SECRET: usize = 32;
const FIXED: usize = 32 + SECRET + 8 + 1;

/// Somebody who signed in.
pub struct Visitor {
    pub identity: Arc<Identity>,
    /// Identity, issuer and subject; no more is known of them here.
    pub principal: Arc<Principal>,
    /// What they go by, for themselves to read.
    pub name: String,
    pub expires: UnixSeconds,
    secret: Zeroizing<[u8; SECRET]>,
}

impl Visitor {
    /// Begins a visit; `None` when the subject is too long to be one.
    pub fn begin(identity: &Arc<Identity>, subject: &str, name: &str, now: UnixSeconds) -> Option<Self> {
        if subject.is_empty() || subject.len() > MAX_SUBJECT {
            return None;
        }
        let mut secret = Zeroizing::new([0; SECRET]);
        rand::fill(secret.as_mut_slice()).expect("the system's random generator works");
        let end = name.floor_char_boundary(MAX_NAME);
        Some(Self {
            identity: identity.clone(),
            principal: principal(identity, subject),
            name: name[..end].to_owned(),
            expires: now.saturating_add(VISIT),
            secret,
        })
    }

    /// The cookie's value.
    pub fn seal(&self, sealer: &Sealer) -> String {
        let subject = self.principal.subject.as_bytes();
        let mut plain = Zeroizing::new(Vec::with_capacity(FIXED + subject.len() + self.name.len()));
        plain.extend_from_slice(&voucher(&self.identity));
        plain.extend_from_slice(self.secret.as_slice());
        plain.extend_from_slice(&self.expires.to_be_bytes());
        plain.push(u8::try_from(subject.len()).expect("it was measured when the visit began"));
        plain.extend_from_slice(subject);
        plain.extend_from_slice(self.name.as_bytes());
        sealer
            .seal(Purpose::Visitor, &plain)
            .expect("all its parts are bounded")
    }

    /// The visit that a cookie stands for, if it is one of ours, not over, and its identity still vouches.
    pub fn open<'a>(
        sealer: &Sealer,
        cookie: &str,
        identities: impl IntoIterator<Item = &'a Arc<Identity>>,
        now: UnixSeconds,
    ) -> Option<Self> {
        let plain = Zeroizing::new(sealer.open(Purpose::Visitor, cookie).ok()?);
        let (voucher_hash, rest) = plain.split_first_chunk::<32>()?;
        let (secret, rest) = rest.split_first_chunk::<SECRET>()?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first()?;
        let (subject, name) = rest.split_at_checked(usize::from(*length))?;
        let expires = UnixSeconds::from_be_bytes(*expires);
        if now >= expires {
            return None;
        }
        let identity = identities
            .into_iter()
            .find(|identity| identity.login.is_some() && voucher(identity) == *voucher_hash)?;
        Some(Self {
            identity: identity.clone(),
            principal: principal(identity, std::str::from_utf8(subject).ok()?),
            name: String::from_utf8(name.to_vec()).ok()?,
            expires,
            secret: Zeroizing::new(*secret),
        })
    }

    /// What this visitor's forms carry.
    pub fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.derived(b"form"))
    }

    /// Whether a form carries it.
    pub fn owns(&self, token: &str) -> bool {
        constant_time::verify_slices_are_equal(self.token().as_bytes(), token.as_bytes()).is_ok()
    }

    /// What binds a login to this visit.
    pub fn mark(&self) -> [u8; 32] {
        self.derived(b"login")
    }

    fn derived(&self, label: &[u8]) -> [u8; 32] {
        hash(&[b"portcullis visit", label, self.secret.as_slice()])
    }
}

/// Whom an identity vouches for in a browser.
fn principal(identity: &Identity, subject: &str) -> Arc<Principal> {
    Arc::new(Principal {
        identity: Some(identity.name.clone()),
        issuer: identity.issuer.clone(),
        subject: subject.to_owned(),
        ..Principal::default()
    })
}

fn voucher(identity: &Identity) -> [u8; 32] {
    hash(&[identity.name.as_bytes(), identity.issuer.as_bytes()])
}

/// SHA-256 over length-prefixed parts.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in parts {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::testing;
    use crate::config::{Client, ClientProof, UserLogin};
    use crate::session::person;

    fn identity(name: &str, issuer: &str, login: bool) -> Arc<Identity> {
        let client = Client {
            id: "gate".to_owned(),
            proof: ClientProof::None,
        };
        Arc::new(Identity {
            login: login.then(|| UserLogin {
                client,
                scopes: vec!["openid".to_owned()],
            }),
            ..testing::identity(name, issuer)
        })
    }

    #[test]
    fn a_visit_opens_while_its_identity_vouches_and_its_hour_lasts() {
        let sealer = Sealer::new(&[]);
        let corp = identity("corp", "https://login.example.com", true);
        let visit = Visitor::begin(&corp, "ada", "Ada <ada@example.com>", 100).unwrap();
        let cookie = visit.seal(&sealer);
        let open = |identity: &Arc<Identity>, now| Visitor::open(&sealer, &cookie, [identity], now);
        let again = open(&corp, 100 + VISIT - 1).expect("it lasts");
        assert_eq!(again.name, "Ada <ada@example.com>");
        assert_eq!(again.mark(), visit.mark());
        assert!(again.owns(&visit.token()) && !again.owns("") && !again.owns(&visit.token()[1..]));
        assert!(open(&corp, 100 + VISIT).is_none(), "its hour is over");
        for other in [
            identity("corp", "https://other.example.com", true),
            identity("corp2", "https://login.example.com", true),
            identity("corp", "https://login.example.com", false),
        ] {
            assert!(open(&other, 100).is_none());
        }
        assert!(
            Visitor::open(&Sealer::new(&[]), &cookie, [&corp], 100).is_none(),
            "another gate's"
        );
        let session = sealer.seal(Purpose::Session, b"x").unwrap();
        assert!(Visitor::open(&sealer, &session, [&corp], 100).is_none());
    }

    #[test]
    fn a_visitor_is_the_person_that_calls() {
        let corp = identity("corp", "https://login.example.com", true);
        let visit = Visitor::begin(&corp, "ada", "", 0).unwrap();
        let caller = Principal {
            issuer: "https://login.example.com".to_owned(),
            subject: "ada".to_owned(),
            client: Some("agent".to_owned()),
            ..Principal::default()
        };
        assert_eq!(person(&visit.principal), person(&caller));
    }

    #[test]
    fn two_visits_share_no_secret_and_long_ones_fit() {
        let corp = identity("corp", "https://login.example.com", true);
        let (one, two) = (
            Visitor::begin(&corp, "ada", "", 0).unwrap(),
            Visitor::begin(&corp, "ada", "", 0).unwrap(),
        );
        assert_ne!(one.token(), two.token());
        assert_ne!(one.mark(), two.mark());
        assert_ne!(one.mark().to_vec(), URL_SAFE_NO_PAD.decode(one.token()).unwrap());
        let long = Visitor::begin(&corp, &"é".repeat(127), &"é".repeat(99), 0).unwrap();
        let sealer = Sealer::new(&[]);
        let opened = Visitor::open(&sealer, &long.seal(&sealer), [&corp], 0).unwrap();
        assert_eq!(opened.name, "é".repeat(64));
        assert!(Visitor::begin(&corp, &"a".repeat(256), "", 0).is_none());
        assert!(Visitor::begin(&corp, "", "", 0).is_none());
    }
}
