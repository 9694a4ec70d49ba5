//! One exchange of a caller's token for one of the upstream's: RFC 8693, or RFC 7523 where the issuer spells it so.
//!
//! 1. The caller's token is the subject. No scope is sent unless configured, and no refresh token is asked for or kept.
//! 2. Who acts for the caller may be said by a second token: one in a file, or the gateway's own from the same endpoint.
//!    The issuer makes `act` of it.
//! 3. Where the first answer is an assertion for another issuer (ID-JAG), that issuer is shown it in a second step (RFC
//!    7523), and what it gives is the upstream's.
//! 4. The caller's own token never comes back as the upstream's, not even by way of the issuer.

use std::sync::Arc;

use http::HeaderValue;

use super::ask::{JWT_BEARER, ask, bearer, endpoint, token_in};
use super::client_credentials::OwnToken;
use super::way::known;
use super::{CredentialError, Making, SetupError};
use crate::config::{self, Exchange, ExchangeGrant};
use crate::oauth::client::Form;
use crate::oauth::token::TokenEndpoint;
use crate::oauth::watched::Watched;
use crate::oauth::{TokenError, TokenSet};
use crate::secret::Secret;
use crate::telemetry::RouteMetrics;

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// Seconds that a token without `expires_in` is believed to live.
const DEFAULT_EXPIRES_IN: u64 = 300;

/// One route's way from the caller's token to the upstream's.
pub(super) struct Exchanger {
    endpoint: TokenEndpoint,
    /// All but the tokens.
    form: Form,
    /// The field of the caller's token.
    subject: &'static str,
    /// For the metrics.
    grant: &'static str,
    actor: Option<Actor>,
    /// Shows the first answer to another issuer.
    second: Option<(TokenEndpoint, Form)>,
    route: Arc<RouteMetrics>,
}

/// Whose token says who acts.
enum Actor {
    File {
        token: Watched<Secret>,
        token_type: config::TokenType,
    },
    Own(Arc<OwnToken>),
}

/// A token that says who acts, of some type.
pub(super) struct ActorToken {
    pub(super) token: Secret,
    token_type: String,
}

/// A token, ready to be sent.
pub(super) struct Issued {
    /// `Bearer …`, marked sensitive.
    pub(super) value: HeaderValue,
    /// Seconds.
    pub(super) expires_in: u64,
}

impl Exchanger {
    /// # Errors
    /// A key, certificate or file that can't be used, or an insecure endpoint.
    pub(super) fn new(config: &Exchange, making: &Making<'_>) -> Result<Self, SetupError> {
        let first = |place| endpoint(making.route, place, &config.endpoint, None, making.clock);
        let route = making.metrics.route(making.route);
        let (subject, grant, mut form): (_, _, Form) = match config.grant {
            ExchangeGrant::TokenExchange => {
                let mut form = Form::grant(TOKEN_EXCHANGE);
                form.push("subject_token_type", &config.subject_token_type.0);
                form.push("requested_token_type", &config.requested_token_type.0);
                ("subject_token", "token_exchange", form)
            }
            ExchangeGrant::JwtBearer => ("assertion", "jwt_bearer", Form::grant(JWT_BEARER)),
        };
        form.push_all("audience", &config.audiences);
        form.push_all("resource", &config.resources);
        form.push_scopes(&config.scopes);
        let unusable = |cause| SetupError::Unusable {
            route: making.route.to_owned(),
            key: "exchange.actor".to_owned(),
            cause,
        };
        let actor = match &config.actor {
            None => None,
            Some(config::Actor::File { path, token_type }) => Some(Actor::File {
                token: token_in(path).map_err(unusable)?,
                token_type: token_type.clone(),
            }),
            Some(config::Actor::ClientCredentials) => {
                let find = known(first("exchange")?, None);
                let own = OwnToken::new(find, Form::default(), None, making.clock.clone(), route.clone());
                Some(Actor::Own(own.map_err(unusable)?))
            }
        };
        let second = match &config.jwt_bearer {
            None => None,
            Some(second) => {
                let mut form = Form::grant(JWT_BEARER);
                form.push_all("resource", &second.resources);
                form.push_scopes(&second.scopes);
                let endpoint = endpoint(
                    making.route,
                    "exchange.jwt_bearer",
                    &second.endpoint,
                    None,
                    making.clock,
                )?;
                Some((endpoint, form))
            }
        };
        Ok(Self {
            endpoint: first("exchange")?,
            form,
            subject,
            grant,
            actor,
            second,
            route,
        })
    }

    /// Everything but the tokens that shapes what the issuers are asked, each part with its length before it.
    pub(super) fn context(&self) -> Vec<u8> {
        let mut context = Vec::new();
        let mut add = |endpoint: &TokenEndpoint, form: &Form| {
            let form = form.encode();
            let parameters = endpoint.parameters().encode();
            let parts = [
                endpoint.url().as_str().as_bytes(),
                endpoint.client().id().as_bytes(),
                &parameters,
                &form,
            ];
            for part in parts {
                context.extend_from_slice(&(part.len() as u64).to_be_bytes());
                context.extend_from_slice(part);
            }
        };
        add(&self.endpoint, &self.form);
        if let Some((endpoint, form)) = &self.second {
            add(endpoint, form);
        }
        context
    }

    /// The token that says who acts, as it is now.
    ///
    /// # Errors
    /// The gateway's own is not to be had.
    pub(super) async fn actor(&self) -> Result<Option<ActorToken>, CredentialError> {
        Ok(match &self.actor {
            None => None,
            Some(Actor::File { token, token_type }) => Some(ActorToken {
                token: token.current(),
                token_type: token_type.0.clone(),
            }),
            Some(Actor::Own(own)) => Some(ActorToken {
                token: own.obtain().await?.token.clone(),
                token_type: config::TokenType::ACCESS_TOKEN.to_owned(),
            }),
        })
    }

    /// The upstream's token for the caller's.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub(super) async fn exchange(&self, subject: &Secret, actor: Option<&ActorToken>) -> Result<Issued, TokenError> {
        let mut form = self.form.clone();
        form.push(self.subject, subject.expose());
        if let Some(actor) = actor {
            form.push("actor_token", actor.token.expose());
            form.push("actor_token_type", &actor.token_type);
        }
        let mut answer = ask(&self.route, self.grant, &self.endpoint, form).await?;
        not_again(&answer.tokens, subject)?;
        if let Some((endpoint, form)) = &self.second {
            let mut form = form.clone();
            form.push("assertion", answer.tokens.access_token.expose());
            answer = ask(&self.route, "jwt_bearer", endpoint, form).await?;
            not_again(&answer.tokens, subject)?;
        }
        Ok(Issued {
            value: bearer(&answer.tokens),
            expires_in: answer.expires_in.unwrap_or(DEFAULT_EXPIRES_IN),
        })
    }
}

fn not_again(tokens: &TokenSet, subject: &Secret) -> Result<(), TokenError> {
    match tokens.access_token == *subject {
        true => Err(TokenError::Malformed("access_token is the caller's own token")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use http::header::AUTHORIZATION;

    use super::super::fake_issuer::{FakeIssuer, Made};
    use super::*;
    use crate::clock::Clock;
    use crate::config::{ClientProof, JwtBearer, TokenType};
    use crate::telemetry::Metrics;

    const SUBJECT: &str = "callers-token";
    const TOKEN: &str = r#"{"access_token":"t"}"#;

    fn made() -> Made {
        Made::new(&Clock::fixed(1000), &Metrics::new())
    }

    async fn exchange(config: &Exchange) -> Result<Issued, TokenError> {
        let exchanger = Exchanger::new(config, &made().making()).unwrap();
        let actor = exchanger.actor().await.map_err(|_| TokenError::Malformed("no actor"))?;
        exchanger.exchange(&Secret::new(SUBJECT), actor.as_ref()).await
    }

    fn sorted(issuer: &FakeIssuer, index: usize) -> Vec<(String, String)> {
        let mut fields = issuer.asked()[index].fields.clone();
        fields.sort();
        fields
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn the_form_holds_what_is_configured_and_no_more() {
        let issuer = FakeIssuer::start(200, TOKEN).await;
        let mut config = issuer.config();
        config.endpoint.client.id = "gate one".to_owned();
        config.endpoint.client.proof = ClientProof::Basic(Secret::new("s:e/c+r%t é"));
        let issued = exchange(&config).await.expect("exchanged");
        assert!(issued.value.is_sensitive() && issued.value == "Bearer t");
        assert_eq!(issued.expires_in, 300, "r15: what isn't said is believed to be short");
        config.endpoint.client.proof = ClientProof::Post(Secret::new("s:e/c+r%t é"));
        config.audiences = texts(&["nextcloud", "files"]);
        config.resources = texts(&["https://nc.test/", "https://f.test/"]);
        config.scopes = texts(&["a", "b"]);
        config.endpoint.parameters = vec![("tenant".to_owned(), "t&1".to_owned())];
        exchange(&config).await.expect("exchanged");

        let pairs = |index| sorted(&issuer, index);
        let expect = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        assert_eq!(
            pairs(0),
            expect(&[
                ("grant_type", TOKEN_EXCHANGE),
                ("requested_token_type", TokenType::ACCESS_TOKEN),
                ("subject_token", SUBJECT),
                ("subject_token_type", TokenType::ACCESS_TOKEN),
            ])
        );
        let basic = STANDARD.encode("gate+one:s%3Ae%2Fc%2Br%25t+%C3%A9");
        assert_eq!(issuer.asked()[0].headers[AUTHORIZATION], format!("Basic {basic}"));
        assert_eq!(
            pairs(1),
            expect(&[
                ("audience", "files"),
                ("audience", "nextcloud"),
                ("client_id", "gate one"),
                ("client_secret", "s:e/c+r%t é"),
                ("grant_type", TOKEN_EXCHANGE),
                ("requested_token_type", TokenType::ACCESS_TOKEN),
                ("resource", "https://f.test/"),
                ("resource", "https://nc.test/"),
                ("scope", "a b"),
                ("subject_token", SUBJECT),
                ("subject_token_type", TokenType::ACCESS_TOKEN),
                ("tenant", "t&1"),
            ])
        );
        assert!(!issuer.asked()[1].headers.contains_key(AUTHORIZATION));
    }

    #[tokio::test]
    async fn the_gates_own_token_says_who_acts() {
        let issuer = FakeIssuer::start(200, TOKEN).await;
        let mut config = issuer.config();
        config.actor = Some(config::Actor::ClientCredentials);
        exchange(&config).await.expect("exchanged");
        let asked = issuer.asked();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0].form["grant_type"], "client_credentials");
        assert!(!asked[0].form.contains_key("subject_token"));
        assert_eq!(asked[1].form["actor_token"], "t");
        assert_eq!(asked[1].form["actor_token_type"], TokenType::ACCESS_TOKEN);
    }

    #[tokio::test]
    async fn r39_without_who_acts_nothing_is_exchanged() {
        let issuer = FakeIssuer::start(503, "").await;
        let mut config = issuer.config();
        config.actor = Some(config::Actor::ClientCredentials);
        assert!(exchange(&config).await.is_err());
        assert!(
            issuer
                .asked()
                .iter()
                .all(|asked| !asked.form.contains_key("subject_token"))
        );
    }

    #[tokio::test]
    async fn an_id_jag_is_shown_to_the_upstreams_issuer() {
        let issuer = FakeIssuer::start(
            200,
            r#"{"access_token":"upstream","token_type":"Bearer","expires_in":60}"#,
        )
        .await;
        let mut config = issuer.config();
        config.subject_token_type = TokenType(TokenType::ID_TOKEN.to_owned());
        config.requested_token_type = TokenType(TokenType::ID_JAG.to_owned());
        config.audiences = texts(&["https://as.example"]);
        config.resources = texts(&["https://mcp.example/mcp"]);
        config.jwt_bearer = Some(JwtBearer {
            endpoint: issuer.endpoint("/second"),
            resources: Vec::new(),
            scopes: texts(&["mcp"]),
        });
        let jag = r#"{"access_token":"jag","token_type":"N_A","issued_token_type":"urn:ietf:params:oauth:token-type:id-jag"}"#;
        issuer.answers_at("/token", 200, jag);
        let issued = exchange(&config).await.expect("exchanged");
        assert_eq!(
            (issued.value.to_str().unwrap(), issued.expires_in),
            ("Bearer upstream", 60)
        );
        let asked = issuer.asked();
        assert_eq!((asked[0].path.as_str(), asked[1].path.as_str()), ("/token", "/second"));
        assert_eq!(asked[0].form["subject_token_type"], TokenType::ID_TOKEN);
        assert_eq!(asked[0].form["requested_token_type"], TokenType::ID_JAG);
        let form = |name: &str| asked[1].form.get(name).map(String::as_str);
        assert_eq!(form("grant_type"), Some(JWT_BEARER));
        assert_eq!((form("assertion"), form("scope")), (Some("jag"), Some("mcp")));
        assert_eq!(form("subject_token"), None);

        // Whatever the first step gives that isn't what was asked for, the second issuer never sees.
        for wrong in [
            r#"{"access_token":"jag","token_type":"Bearer","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}"#,
            r#"{"access_token":"callers-token","token_type":"N_A"}"#,
            r#"{"error":"access_denied"}"#,
        ] {
            issuer.answers_at("/token", 200, wrong);
            let before = issuer.asked().len();
            assert!(exchange(&config).await.is_err(), "{wrong}");
            assert_eq!(issuer.asked().len(), before + 1, "{wrong}");
        }
    }

    #[tokio::test]
    async fn some_issuers_spell_an_exchange_as_an_assertion() {
        let issuer = FakeIssuer::start(200, TOKEN).await;
        let mut config = issuer.config();
        config.grant = ExchangeGrant::JwtBearer;
        config.scopes = texts(&["api://upstream/.default"]);
        config.endpoint.parameters = vec![("requested_token_use".to_owned(), "on_behalf_of".to_owned())];
        exchange(&config).await.expect("exchanged");
        let names: Vec<String> = sorted(&issuer, 0).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["assertion", "grant_type", "requested_token_use", "scope"]);
        assert_eq!(issuer.asked()[0].form["assertion"], SUBJECT);
    }

    #[tokio::test]
    async fn the_callers_own_token_is_no_answer() {
        let issuer = FakeIssuer::start(200, r#"{"access_token":"callers-token"}"#).await;
        let error = exchange(&issuer.config()).await.err().expect("refused");
        assert!(matches!(error, TokenError::Malformed(_)));
        assert!(!error.to_string().contains(SUBJECT));
    }

    #[test]
    fn r26_a_token_endpoint_off_loopback_needs_https() {
        let cases = [
            ("https://issuer.test/token", true),
            ("http://127.0.0.1:8002/token", true),
            ("http://127.9.9.9/token", true),
            ("http://[::1]:8002/token", true),
            ("http://localhost/token", true),
            ("http://issuer.test/token", false),
            ("http://localhost.issuer.test/token", false),
            ("http://10.0.0.1/token", false),
            ("ftp://127.0.0.1/token", false),
            ("https://169.254.169.254/token", false),
        ];
        for (url, secure) in cases {
            let mut endpoint = plain();
            endpoint.url = url.parse().unwrap();
            let made = endpoint_made(&endpoint);
            assert_eq!(made.is_ok(), secure, "{url}");
            if let Err(error) = made {
                assert!(
                    error
                        .to_string()
                        .contains("routes.nc.credential.exchange.token_endpoint: "),
                    "{error}"
                );
            }
        }
    }

    fn plain() -> config::TokenEndpoint {
        config::TokenEndpoint {
            url: "https://issuer.test/token".parse().unwrap(),
            client: config::Client {
                id: "gate".to_owned(),
                proof: ClientProof::None,
            },
            parameters: Vec::new(),
            ca: None,
        }
    }

    fn endpoint_made(config: &config::TokenEndpoint) -> Result<TokenEndpoint, SetupError> {
        endpoint("nc", "exchange", config, None, &Clock::system())
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bundle.pem");
        std::fs::write(&file, "no certificate").unwrap();
        let mut ca = plain();
        ca.ca = Some(file.clone());
        let mut certificate = plain();
        certificate.client.proof = ClientProof::Tls {
            certificate: file.clone(),
            key: file.clone(),
        };
        for config in [ca, certificate] {
            let error = endpoint_made(&config).err().expect("refused").to_string();
            assert!(
                error.contains("bundle.pem") && error.starts_with("routes.nc.credential.exchange: "),
                "{error}"
            );
        }
    }
}
