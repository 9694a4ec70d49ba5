//! The section `credential` of a route: the one credential that leaves, and how it is come by.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use serde_json::json;
use url::Url;

use super::clients::{Client, ClientProof, Needed, PrivateKey, client, signing_key};
use super::raw::{At, Quote, Section};
use super::tree::{Node, Value};
use super::values::{credential_header, header_value, oauth_url, path, scope, signature, values};
use crate::secret::Secret;

/// The one credential that leaves towards an upstream. Has no `Debug`: it holds secrets.
#[derive(PartialEq, Eq)]
pub enum Credential {
    None,
    Bearer(Secret),
    Header {
        name: HeaderName,
        value: Secret,
    },
    Basic {
        username: String,
        password: Secret,
    },
    /// The caller's own token, where its `aud` also names this.
    Passthrough {
        audience: String,
    },
    Exchange(Box<Exchange>),
    ClientCredentials(Box<ClientCredentials>),
    Assertion(Box<Assertion>),
    TokenFile(Box<TokenFile>),
    Connection(Box<Connection>),
}

/// A token endpoint, and who asks it.
#[derive(PartialEq, Eq)]
pub struct TokenEndpoint {
    pub url: Url,
    pub client: Client,
    /// Sent with every request besides what the grant needs.
    pub parameters: Vec<(String, String)>,
    /// PEM bundle trusted instead of the system's roots.
    pub ca: Option<PathBuf>,
}

/// RFC 8693 token exchange.
#[derive(PartialEq, Eq)]
pub struct Exchange {
    pub endpoint: TokenEndpoint,
    pub audiences: Vec<String>,
    pub resources: Vec<String>,
    /// None sent when empty.
    pub scopes: Vec<String>,
    pub grant: ExchangeGrant,
    /// What the caller's token is said to be.
    pub subject_token_type: TokenType,
    pub requested_token_type: TokenType,
    pub actor: Option<Actor>,
    /// The second step, where the first gives an assertion for another issuer.
    pub jwt_bearer: Option<JwtBearer>,
}

/// RFC 8693 section 3, as a URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenType(pub String);

impl TokenType {
    /// An OAuth access token.
    pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
    /// A JWT of any use.
    pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
    /// An OpenID Connect ID token.
    pub const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
    /// An identity assertion for another issuer (ID-JAG).
    pub const ID_JAG: &str = "urn:ietf:params:oauth:token-type:id-jag";
}

/// How the caller's token is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeGrant {
    /// RFC 8693.
    TokenExchange,
    /// RFC 7523: as the assertion of a grant, which is how some issuers spell an exchange.
    JwtBearer,
}

/// Who acts for the caller (RFC 8693 section 4.1).
#[derive(PartialEq, Eq)]
pub enum Actor {
    /// A token in a file, read again when it changes.
    File { path: PathBuf, token_type: TokenType },
    /// The gateway's own token, of the same token endpoint.
    ClientCredentials,
}

/// RFC 7523: an assertion for an access token of its audience.
#[derive(PartialEq, Eq)]
pub struct JwtBearer {
    pub endpoint: TokenEndpoint,
    pub resources: Vec<String>,
    pub scopes: Vec<String>,
}

/// RFC 6749 section 4.4: the gateway's own token, the same for all callers.
#[derive(PartialEq, Eq)]
pub struct ClientCredentials {
    /// A workload's JWT that is handed in as the assertion of a grant (RFC 7523 section 2.1), read again when it changes;
    /// `None`: who the client is says enough.
    pub assertion_file: Option<PathBuf>,
    /// `None`: found as for a connection.
    pub token_endpoint: Option<Url>,
    /// The issuer, where it isn't the first that the upstream names.
    pub issuer: Option<String>,
    pub client: Client,
    pub audiences: Vec<String>,
    pub resource: Resource,
    pub scopes: Vec<String>,
    pub parameters: Vec<(String, String)>,
    /// Discovered addresses may be private ones.
    pub private_addresses: bool,
    pub ca: Option<PathBuf>,
}

/// A short JWT that the gateway signs for each caller.
#[derive(PartialEq, Eq)]
pub struct Assertion {
    /// `None`: the upstream's URL.
    pub audience: Option<String>,
    /// `None`: the public URL.
    pub issuer: Option<String>,
    pub lifetime: Duration,
    /// Claims of the caller that are copied.
    pub claims: Vec<String>,
    /// `None`: the gateway's own key.
    pub key: Option<PrivateKey>,
}

/// One login that all callers share, in a file that others may write too.
#[derive(PartialEq, Eq)]
pub struct TokenFile {
    pub path: PathBuf,
    /// How it is refreshed and come by; `None`: others do that.
    pub login: Option<Connection>,
}

/// Each user's own login at the upstream's authorization server.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// The issuer, where it isn't the first that the upstream names, or isn't found at all.
    pub issuer: Option<String>,
    /// By hand, instead of discovery.
    pub endpoints: Option<Endpoints>,
    /// `None`: the gateway registers itself.
    pub client: Option<Client>,
    pub registration: Registration,
    /// Empty: what the upstream asks for.
    pub scopes: Vec<String>,
    pub resource: Resource,
    /// Of the authorization request.
    pub parameters: Vec<(String, String)>,
    /// Discovered addresses may be private ones.
    pub private_addresses: bool,
    pub ca: Option<PathBuf>,
}

/// An authorization server's addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoints {
    pub authorization: Option<Url>,
    pub token: Url,
    pub device_authorization: Option<Url>,
    pub revocation: Option<Url>,
}

/// How the gateway becomes a client where none is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// By its metadata document where the issuer reads those, else dynamically.
    Auto,
    MetadataDocument,
    /// RFC 7591.
    Dynamic,
}

/// `resource` of a request (RFC 8707).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The upstream's URL without its query.
    Upstream,
    Named(String),
    /// None is sent: some issuers refuse it.
    None,
}

const KINDS: [&str; 9] = [
    "bearer",
    "header",
    "basic",
    "passthrough",
    "exchange",
    "client_credentials",
    "assertion",
    "token_file",
    "connection",
];

/// Longest life of an assertion.
const MAX_LIFETIME: Duration = Duration::from_secs(10 * 60);

pub(super) fn credential_section(section: &Section<'_>, directory: &Path) -> Option<Credential> {
    let fixed = fixed(section);
    let passthrough = section.optional_section(
        "passthrough",
        "The caller's own token, only where its `aud` also names the upstream.",
        |passthrough| {
            passthrough.require("audience", "set it to the upstream's name in `aud`");
            let audience = passthrough.text("audience", "What `aud` must hold besides the route's resource URL.");
            Some(Credential::Passthrough {
                audience: audience?.value,
            })
        },
    );
    let exchange = section.optional_section(
        "exchange",
        "RFC 8693: the caller's token for one of the upstream's.",
        |section| Some(Credential::Exchange(Box::new(exchange(section, directory)?))),
    );
    let client_credentials = section.optional_section(
        "client_credentials",
        "RFC 6749 section 4.4: the gate's own token, the same for all callers.",
        |section| {
            Some(Credential::ClientCredentials(Box::new(client_credentials(
                section, directory,
            )?)))
        },
    );
    let assertion = section.optional_section(
        "assertion",
        "A short JWT that the gate signs, with the caller's identity in it.",
        |section| Some(Credential::Assertion(Box::new(assertion(section)?))),
    );
    let token_file = section.text_or(
        "token_file",
        "A file with tokens that all callers share: a path, or a map with path and, for the gate to refresh it, what a connection takes.",
        Quote::Never,
        |text| match text {
            "" => Err("name a file".to_owned()),
            _ => Ok(TokenFile {
                path: directory.join(text),
                login: None,
            }),
        },
        |section| {
            section.require("path", "name the file");
            let file = section.parsed("path", "JSON with access_token and more, or a bare token.", |text| match text {
                "" => Err("name a file".to_owned()),
                _ => Ok(directory.join(text)),
            });
            let login = connection(section, directory);
            Some(TokenFile {
                path: file?.value,
                login: Some(login?),
            })
        },
    );
    let connection = section.optional_section(
        "connection",
        "Each user's own OAuth login at the upstream; {} finds everything out.",
        |section| Some(Credential::Connection(Box::new(connection(section, directory)?))),
    );
    let given = KINDS.into_iter().filter(|key| section.has(key)).count();
    if given != 1 {
        section.error_here(
            format!("{given} credentials are given"),
            format!("exactly one leaves: {}", KINDS.join(", ")),
        );
    }
    fixed
        .or(passthrough.flatten())
        .or(exchange.flatten())
        .or(client_credentials.flatten())
        .or(assertion.flatten())
        .or(token_file.map(|file| Credential::TokenFile(Box::new(file))))
        .or(connection.flatten())
}

fn fixed(section: &Section<'_>) -> Option<Credential> {
    let bearer = section
        .secret("bearer", "Sent as Authorization: Bearer.")
        .inspect(|at| header_value(section, at))
        .map(|at| Credential::Bearer(at.value));
    let header = section.optional_section("header", "One header.", |header| {
        header.require("name", "name the header");
        header.require("value", "give its value");
        let name = header.unquoted("name", "The header's name.", credential_header);
        let value = header
            .secret("value", "The header's value.")
            .inspect(|at| header_value(header, at));
        Some(Credential::Header {
            name: name?.value,
            value: value?.value,
        })
    });
    let basic = section.optional_section("basic", "Sent as Authorization: Basic.", |basic| {
        basic.require("username", "give the user name");
        basic.require("password", "give the password");
        let username = basic.unquoted("username", "Without a colon.", |text| {
            if text.contains(|character: char| character == ':' || character.is_control()) {
                Err("a user name has no colon and no control character (RFC 7617)".to_owned())
            } else {
                Ok(text.to_owned())
            }
        });
        let password = basic
            .secret("password", "The password.")
            .inspect(|at| header_value(basic, at));
        Some(Credential::Basic {
            username: username?.value,
            password: password?.value,
        })
    });
    bearer.or(header.flatten()).or(basic.flatten())
}

fn exchange(section: &Section<'_>, directory: &Path) -> Option<Exchange> {
    let endpoint = token_endpoint(section, directory);
    let audiences = section.texts("audience", "`audience` of the request, one or several.");
    let resources = section.texts("resource", "`resource` of the request, one or several.");
    let scopes = section.parsed_list("scopes", "`scope` of the request; none is sent by default.", scope);
    let grant = section.choice(
        "grant",
        "How the caller's token is handed in: as the subject of an exchange (default), or as the assertion of RFC 7523.",
        &[
            ("token_exchange", ExchangeGrant::TokenExchange),
            ("jwt_bearer", ExchangeGrant::JwtBearer),
        ],
    );
    if grant == Some(ExchangeGrant::JwtBearer) {
        let others = ["subject_token_type", "requested_token_type", "actor", "jwt_bearer"];
        if let Some(other) = others.into_iter().find(|key| section.has(key)) {
            section.error_at(
                other,
                format!("grant: jwt_bearer has no {other}"),
                "drop one of the two",
            );
        }
    }
    let subject_token_type = section.parsed(
        "subject_token_type",
        "What the caller's token is: access_token (default), jwt, id_token, or a URN.",
        token_type,
    );
    let requested_token_type = section.parsed(
        "requested_token_type",
        "What is asked for: access_token (default), jwt, id_token, id_jag, or a URN.",
        token_type,
    );
    let actor = section.optional_section("actor", "Who acts for the caller (`act`).", |actor| {
        let file = path(
            actor,
            "file",
            "A token in a file, read again when it changes.",
            directory,
        );
        let own = actor.flag(
            "client_credentials",
            "The gate's own token, of the same token endpoint.",
        );
        if file.is_some() == (own == Some(true)) && !actor.is_describing() {
            actor.error_here("an actor has one token", "give file, or client_credentials: true");
        }
        let token_type = actor.parsed(
            "token_type",
            "What the file's token is: access_token (default), jwt, id_token, or a URN.",
            token_type,
        );
        if token_type.is_some() && !actor.has("file") {
            actor.error_at(
                "token_type",
                "token_type says nothing without file",
                "drop it: the gate's own token is an access token",
            );
        }
        let file = file.map(|path| Actor::File {
            path,
            token_type: type_or_access(token_type),
        });
        file.or(own.map(|_| Actor::ClientCredentials))
    });
    let jwt_bearer = section.optional_section(
        "jwt_bearer",
        "The second step (RFC 7523), where the first gives an assertion for the upstream's own issuer (ID-JAG).",
        |section| {
            let endpoint = token_endpoint(section, directory);
            let resources = section.texts("resource", "`resource` of the request, one or several.");
            let scopes = section.parsed_list("scopes", "`scope` of the request; none is sent by default.", scope);
            Some(JwtBearer {
                endpoint: endpoint?,
                resources: values(resources),
                scopes: values(scopes),
            })
        },
    );
    let requested = type_or_access(requested_token_type);
    if (requested.0 == TokenType::ID_JAG) != section.has("jwt_bearer") && !section.is_describing() {
        section.error_here(
            "requested_token_type: id_jag and jwt_bearer go together",
            "an id_jag is no access token: set both, or neither",
        );
    }
    Some(Exchange {
        endpoint: endpoint?,
        audiences: values(audiences),
        resources: values(resources),
        scopes: values(scopes),
        grant: grant.unwrap_or(ExchangeGrant::TokenExchange),
        subject_token_type: type_or_access(subject_token_type),
        requested_token_type: requested,
        actor: actor.flatten(),
        jwt_bearer: jwt_bearer.flatten(),
    })
}

fn client_credentials(section: &Section<'_>, directory: &Path) -> Option<ClientCredentials> {
    let token_endpoint = section.parsed(
        "token_endpoint",
        "The issuer's token endpoint; absent: found by the upstream's metadata.",
        oauth_url,
    );
    let issuer = issuer(section);
    let assertion_file = path(
        section,
        "assertion_file",
        "A JWT of this workload, handed in as the assertion of RFC 7523 instead of client_credentials; read again when it changes.",
        directory,
    );
    let client = client(section, directory, Needed::Yes);
    let audiences = section.texts("audience", "`audience` of the request, one or several.");
    let resource = resource(section);
    let scopes = section.parsed_list("scopes", "`scope` of the request; none is sent by default.", scope);
    let parameters = parameters(section);
    let private_addresses = private_addresses(section);
    let ca = ca(section, directory);
    if let Some(Client {
        proof: ClientProof::Basic(_) | ClientProof::Post(_),
        ..
    }) = &client
        && token_endpoint.is_none()
        && issuer.is_none()
    {
        section.error_at(
            "client_secret",
            "nothing says whose client this secret makes the gate, and the server must not",
            "set issuer, or token_endpoint",
        );
    }
    Some(ClientCredentials {
        // Whoever names the endpoint says what it takes: not all know `resource`.
        resource: resource.unwrap_or(match &token_endpoint {
            Some(_) => Resource::None,
            None => Resource::Upstream,
        }),
        token_endpoint: token_endpoint.map(|at| at.value),
        issuer,
        assertion_file,
        client: client?,
        audiences: values(audiences),
        scopes: values(scopes),
        parameters,
        private_addresses,
        ca,
    })
}

fn assertion(section: &Section<'_>) -> Option<Assertion> {
    let audience = section.text("audience", "`aud`; default the upstream's URL.");
    let issuer = section.text("issuer", "`iss`; default public_url.");
    let lifetime = section.duration("lifetime", "Default 60s, at most 10m.", false);
    if lifetime.is_some_and(|lifetime| lifetime > MAX_LIFETIME || lifetime.subsec_millis() > 0) {
        section.error_at(
            "lifetime",
            "this is not a whole number of seconds up to 10m",
            "60s is a good value",
        );
    }
    let claims = section.parsed_list("claims", "Claims of the caller that are copied.", |text| match text {
        "iss" | "sub" | "sub_id" | "aud" | "exp" | "iat" | "nbf" | "jti" | "act" | "cnf" | "client_id" | "scope" => {
            Err("the gate sets this one itself".to_owned())
        }
        "" => Err("name a claim".to_owned()),
        _ => Ok(text.to_owned()),
    });
    let pem = section.secret("private_key", "PEM of the signing key; default the gate's own.");
    let key_id = section.text("key_id", "`kid`; default the key's thumbprint (RFC 7638).");
    let algorithm = section.parsed("algorithm", "By default what goes with the key.", signature);
    for key in ["key_id", "algorithm"] {
        if section.has(key) && !section.has("private_key") {
            section.error_at(
                key,
                format!("{key} says nothing without private_key"),
                "set private_key, or drop it",
            );
        }
    }
    Some(Assertion {
        audience: audience.map(|at| at.value),
        issuer: issuer.map(|at| at.value),
        lifetime: lifetime.unwrap_or(Duration::from_secs(60)),
        claims: values(claims),
        key: pem.map(|pem| signing_key(section, pem, key_id, algorithm)),
    })
}

fn connection(section: &Section<'_>, directory: &Path) -> Option<Connection> {
    let issuer = issuer(section);
    let url = |key, about: &str| section.parsed(key, about, oauth_url).map(|at| at.value);
    let authorization = url(
        "authorization_endpoint",
        "By hand, with token_endpoint, instead of the upstream's metadata.",
    );
    let token = url("token_endpoint", "By hand, instead of the upstream's metadata.");
    let device_authorization = url("device_authorization_endpoint", "By hand (RFC 8628).");
    let revocation = url("revocation_endpoint", "By hand (RFC 7009).");
    let by_hand = [
        "authorization_endpoint",
        "device_authorization_endpoint",
        "revocation_endpoint",
    ];
    if let Some(alone) = by_hand.into_iter().find(|key| section.has(key))
        && !section.has("token_endpoint")
    {
        section.error_at(
            alone,
            format!("{alone} says nothing without token_endpoint"),
            "set token_endpoint too, or leave all endpoints to discovery",
        );
    }
    let client = client(section, directory, Needed::No);
    let registration = section.choice(
        "registration",
        "How the gate becomes a client where no client_id is given; default auto.",
        &[
            ("auto", Registration::Auto),
            ("metadata_document", Registration::MetadataDocument),
            ("dynamic", Registration::Dynamic),
        ],
    );
    if section.has("token_endpoint") && !section.has("client_id") {
        section.require(
            "client_id",
            "endpoints by hand have nowhere to register: set the gate's client id",
        );
    }
    if section.has("token_endpoint") && !section.has("issuer") {
        section.require(
            "issuer",
            "name the issuer that these endpoints are of: tokens are bound to it",
        );
    }
    if registration.is_some() && section.has("client_id") {
        section.error_at(
            "registration",
            "a client is configured already",
            "drop registration, or client_id",
        );
    }
    if let Some(Client {
        proof: ClientProof::Basic(_) | ClientProof::Post(_),
        ..
    }) = &client
        && !section.has("issuer")
        && !section.has("token_endpoint")
    {
        section.error_at(
            "client_secret",
            "nothing says whose client this secret makes the gate, and the server must not",
            "set issuer",
        );
    }
    let scopes = section.parsed_list("scopes", "Default: what the upstream asks for.", scope);
    let resource = resource(section);
    let parameters = parameters(section);
    let private_addresses = private_addresses(section);
    let ca = ca(section, directory);
    Some(Connection {
        issuer,
        endpoints: token.map(|token| Endpoints {
            authorization,
            token,
            device_authorization,
            revocation,
        }),
        client,
        registration: registration.unwrap_or(Registration::Auto),
        scopes: values(scopes),
        resource: resource.unwrap_or(Resource::Upstream),
        parameters,
        private_addresses,
        ca,
    })
}

fn token_endpoint(section: &Section<'_>, directory: &Path) -> Option<TokenEndpoint> {
    section.require("token_endpoint", "set it to the issuer's token endpoint");
    let url = section.parsed("token_endpoint", "The issuer's token endpoint.", oauth_url);
    let client = client(section, directory, Needed::Yes);
    let parameters = parameters(section);
    let ca = ca(section, directory);
    Some(TokenEndpoint {
        url: url?.value,
        client: client?,
        parameters,
        ca,
    })
}

fn issuer(section: &Section<'_>) -> Option<String> {
    let about = "The upstream's issuer, byte for byte, where it isn't the first that the upstream names.";
    let read = section.parsed("issuer", about, |text| oauth_url(text).map(|_| text.to_owned()));
    read.map(|at| at.value)
}

fn resource(section: &Section<'_>) -> Option<Resource> {
    let about = "`resource` of the requests (RFC 8707): default the upstream's URL without its query; none sends none.";
    let read = section.parsed("resource", about, |text| match text {
        "" => Err("use an absolute URL, or none".to_owned()),
        "none" => Ok(Resource::None),
        _ => Ok(Resource::Named(text.to_owned())),
    });
    read.map(|at| at.value)
}

fn private_addresses(section: &Section<'_>) -> bool {
    let about = "Let the upstream's metadata name addresses of private networks; default false.";
    section.flag("private_addresses", about).unwrap_or(false)
}

fn ca(section: &Section<'_>, directory: &Path) -> Option<PathBuf> {
    let about = "PEM bundle trusted instead of the system's roots.";
    path(section, "ca", about, directory)
}

fn type_or_access(read: Option<At<TokenType>>) -> TokenType {
    read.map_or_else(|| TokenType(TokenType::ACCESS_TOKEN.to_owned()), |at| at.value)
}

fn token_type(text: &str) -> Result<TokenType, String> {
    let uri = match text {
        "access_token" => TokenType::ACCESS_TOKEN,
        "jwt" => TokenType::JWT,
        "id_token" => TokenType::ID_TOKEN,
        "id_jag" => TokenType::ID_JAG,
        _ if text.starts_with("urn:") => text,
        _ => return Err("use access_token, jwt, id_token, id_jag, or a URN".to_owned()),
    };
    Ok(TokenType(uri.to_owned()))
}

/// What grants and client authentication set themselves: a second one would be read by one server, and the first by another.
const OWN: [&str; 22] = [
    "actor_token",
    "actor_token_type",
    "assertion",
    "audience",
    "client_assertion",
    "client_assertion_type",
    "client_id",
    "client_secret",
    "code",
    "code_challenge",
    "code_challenge_method",
    "code_verifier",
    "grant_type",
    "redirect_uri",
    "refresh_token",
    "requested_token_type",
    "resource",
    "response_type",
    "scope",
    "state",
    "subject_token",
    "subject_token_type",
];

fn parameters(section: &Section<'_>) -> Vec<(String, String)> {
    let schema = json!({
        "type": "object",
        "description": "Sent besides, as they are.",
        "additionalProperties": {"type": "string"},
    });
    let Some((node, _)) = section.node("parameters", schema) else {
        return Vec::new();
    };
    let Value::Map(entries) = &node.value else {
        section.error_at(
            "parameters",
            "this must be a map of texts",
            "write {access_type: offline}",
        );
        return Vec::new();
    };
    let value = |node: &Node| match &node.value {
        Value::Scalar(scalar) => Some(scalar.text.clone()),
        _ => None,
    };
    entries
        .iter()
        .filter_map(|(key, node)| {
            if OWN.contains(&&*key.name) {
                section.error_at(
                    "parameters",
                    format!("\"{}\" is the gate's to set", key.name),
                    "use the key of that name, or drop it",
                );
            }
            let text = value(node);
            if text.is_none() {
                section.error_at("parameters", format!("\"{}\" is no text", key.name), "give it a text");
            }
            Some((key.name.clone(), text?))
        })
        .collect()
}
