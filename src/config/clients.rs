//! The gateway as somebody's OAuth client: spelled the same wherever it is one.

use std::path::{Path, PathBuf};

use jsonwebtoken::Algorithm;

use super::raw::{At, Section};
use super::values::{path, signature};
use crate::oauth::signer::{KeyError, SigningKey};
use crate::secret::Secret;

/// The gateway as it is registered at an authorization server. Has no `Debug`: it holds secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Client {
    pub id: String,
    pub proof: ClientProof,
}

/// How the gateway proves to be that client (RFC 6749 section 2.3).
#[derive(Clone, PartialEq, Eq)]
pub enum ClientProof {
    /// A public client.
    None,
    Basic(Secret),
    Post(Secret),
    /// RFC 7523 section 2.2.
    PrivateKeyJwt(PrivateKey),
    /// RFC 8705: PEM files, read again when they change.
    Tls {
        certificate: PathBuf,
        key: PathBuf,
    },
}

/// A key that signs assertions.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey {
    /// PKCS #8, PKCS #1 or SEC1.
    pub pem: Secret,
    /// `kid` of the header; none is sent when absent.
    pub id: Option<String>,
    /// `None`: what goes with the key.
    pub algorithm: Option<Algorithm>,
}

/// How a client may be spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needed {
    /// `client_id` and a proof: `client_auth: none` has to be said.
    Yes,
    /// Nothing at all is good, too.
    No,
}

const KEYS: [&str; 8] = [
    "client_id",
    "client_secret",
    "client_auth",
    "client_certificate",
    "client_key",
    "private_key",
    "key_id",
    "algorithm",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Auth {
    None,
    Basic,
    Post,
    PrivateKeyJwt,
    Tls,
}

/// The client that a section spells out; `None` for errors, and where nothing is said and need not be.
pub(super) fn client(section: &Section<'_>, directory: &Path, needed: Needed) -> Option<Client> {
    let id = section.text("client_id", "The gate's client id.");
    let secret = section.secret("client_secret", "The gate's client secret.");
    let auth = section.choice(
        "client_auth",
        "How the gate authenticates: default basic with client_secret, private_key_jwt with private_key, tls with client_certificate.",
        &[
            ("basic", Auth::Basic),
            ("post", Auth::Post),
            ("private_key_jwt", Auth::PrivateKeyJwt),
            ("tls", Auth::Tls),
            ("none", Auth::None),
        ],
    );
    let pem = section.secret("private_key", "PEM of the key that signs client assertions (RFC 7523).");
    let key_id = section.text("key_id", "`kid` of those assertions; none by default.");
    let algorithm = section.parsed(
        "algorithm",
        "Their signature; by default what goes with the key.",
        signature,
    );
    let certificate = path(
        section,
        "client_certificate",
        "PEM chain shown to the token endpoint (RFC 8705).",
        directory,
    );
    let key = path(section, "client_key", "PEM of the certificate's key.", directory);
    if needed == Needed::No && !KEYS.iter().any(|key| section.has(key)) {
        return None;
    }
    section.require("client_id", "set it to the gate's client id");
    let proofs = ["client_secret", "private_key", "client_certificate"];
    let given: Vec<&str> = proofs.into_iter().filter(|key| section.has(key)).collect();
    if let [first, second, ..] = *given {
        section.error_at(
            second,
            format!("{first} and {second} are alternatives"),
            "keep one of them",
        );
        return None;
    }
    let natural = match given.first() {
        Some(&"client_secret") => Auth::Basic,
        Some(&"private_key") => Auth::PrivateKeyJwt,
        Some(_) => Auth::Tls,
        None => Auth::None,
    };
    let fits = match auth {
        None => natural != Auth::None,
        Some(Auth::Basic | Auth::Post) => natural == Auth::Basic,
        Some(auth) => auth == natural,
    };
    if !fits && !section.is_describing() {
        let (key, what) = match auth {
            None => ("client_id", "nothing says how the gate authenticates"),
            Some(_) => ("client_auth", "this is not what the other keys are for"),
        };
        section.error_at(
            key,
            what,
            "set client_secret, private_key, or client_certificate and client_key; or client_auth: none for a public client",
        );
        return None;
    }
    for (key, owner) in [
        ("key_id", "private_key"),
        ("algorithm", "private_key"),
        ("client_key", "client_certificate"),
    ] {
        if section.has(key) && !section.has(owner) {
            section.error_at(
                key,
                format!("{key} says nothing without {owner}"),
                format!("set {owner}, or drop it"),
            );
        }
    }
    if section.has("client_certificate") {
        section.require("client_key", "set it to the key of client_certificate");
    }
    let proof = match auth.unwrap_or(natural) {
        Auth::None => ClientProof::None,
        Auth::Basic => ClientProof::Basic(secret?.value),
        Auth::Post => ClientProof::Post(secret?.value),
        Auth::PrivateKeyJwt => ClientProof::PrivateKeyJwt(signing_key(section, pem?, key_id, algorithm)),
        Auth::Tls => ClientProof::Tls {
            certificate: certificate?,
            key: key?,
        },
    };
    Some(Client { id: id?.value, proof })
}

/// A key that signs, tried out.
pub(super) fn signing_key(
    section: &Section<'_>,
    pem: At<Secret>,
    id: Option<At<String>>,
    algorithm: Option<At<Algorithm>>,
) -> PrivateKey {
    let key = PrivateKey {
        pem: pem.value,
        id: id.map(|at| at.value),
        algorithm: algorithm.map(|at| at.value),
    };
    if let Err(error) = SigningKey::read(&key) {
        let at = if error == KeyError::Algorithm {
            "algorithm"
        } else {
            "private_key"
        };
        section.error_at(
            at,
            error.to_string(),
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 makes a good one",
        );
    }
    key
}
