//! From an upstream's URL to its issuer, and everything that must not be believed on the way.

use serde_json::{Value, json};

use super::super::discovery::{Configured, Discovery, FindError, Found};
use super::super::testing::{METADATA, PRM, ROOT_PRM, World, with};
use crate::config::Resource;

const BARE: Configured<'static> = Configured {
    issuer: None,
    resource: &Resource::Upstream,
    private_addresses: false,
    ca: None,
    identity: None,
};

async fn find(world: &World, configured: Configured<'_>) -> Result<Found, FindError> {
    Discovery::new(&world.servers(), configured)
        .expect("no files to read")
        .find()
        .await
}

async fn fails(world: &World, configured: Configured<'_>) -> String {
    find(world, configured).await.expect_err("a refusal").to_string()
}

#[tokio::test]
async fn the_challenge_leads_to_the_metadata_and_that_to_the_issuer() {
    let world = World::start().await;
    let found = find(&world, BARE).await.unwrap();
    assert_eq!(found.provider.issuer, world.issuer.origin);
    assert_eq!(found.provider.token_endpoint.as_str(), world.issuer.url("/token"));
    assert_eq!(
        found.provider.authorization().unwrap().as_str(),
        world.issuer.url("/authorize")
    );
    assert!(found.provider.names_itself);
    assert!(!found.provider.reads_documents);
    assert_eq!(found.scopes, ["read", "write"]);
    assert_eq!(world.upstream.paths(), ["/mcp", PRM]);
    assert_eq!(world.issuer.paths(), [METADATA]);

    let probe = &world.upstream.asked()[0];
    assert_eq!(probe.headers["mcp-method"], "tools/list");
    assert_eq!(probe.json()["method"], "tools/list");
    for asked in world.upstream.asked().iter().chain(&world.issuer.asked()) {
        assert!(!asked.headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn r35_the_resource_is_the_upstreams_url_without_its_query() {
    let world = World::start().await;
    let found = find(&world, BARE).await.unwrap();
    assert_eq!(found.resource, Some(world.upstream.url("/mcp")));
    // The same where no document says so.
    world.upstream.answers(PRM, 404, "");
    world.challenges("Bearer");
    let configured = Configured {
        issuer: Some(&world.issuer.origin),
        ..BARE
    };
    let found = find(&world, configured).await.unwrap();
    assert_eq!(found.resource, Some(world.upstream.url("/mcp")));

    let resource = Resource::None;
    let none = Configured {
        resource: &resource,
        ..configured
    };
    assert_eq!(find(&world, none).await.unwrap().resource, None);
    let resource = Resource::Named("urn:tools".to_owned());
    let named = Configured {
        resource: &resource,
        ..configured
    };
    assert_eq!(
        find(&world, named).await.unwrap().resource,
        Some("urn:tools".to_owned())
    );
}

#[tokio::test]
async fn without_a_challenge_the_well_known_addresses_are_asked_in_order() {
    let world = World::start().await;
    // Nothing of a challenge that is no 401 is believed.
    let elsewhere = format!("Bearer resource_metadata=\"{}\"", world.upstream.url("/elsewhere"));
    world
        .upstream
        .answers_with("/mcp", 403, ("www-authenticate", &elsewhere), "");
    find(&world, BARE).await.unwrap();
    assert_eq!(world.upstream.paths(), ["/mcp", PRM]);

    let world = World::start().await;
    world.challenges("Basic realm=\"x\"");
    world.upstream.answers(PRM, 404, "");
    world.upstream.answers(ROOT_PRM, 200, world.prm());
    find(&world, BARE).await.unwrap();
    assert_eq!(world.upstream.paths(), ["/mcp", PRM, ROOT_PRM]);
}

#[tokio::test]
async fn the_issuers_metadata_is_looked_for_at_three_addresses() {
    let world = World::start().await;
    let issuer = world.issuer.url("/tenant1");
    world
        .upstream
        .answers(PRM, 200, with(world.prm(), "authorization_servers", json!([issuer])));
    let metadata = with(world.metadata(), "issuer", issuer.as_str());
    world
        .issuer
        .answers("/tenant1/.well-known/openid-configuration", 200, metadata);
    let found = find(&world, BARE).await.unwrap();
    assert_eq!(found.provider.issuer, issuer);
    assert_eq!(
        world.issuer.paths(),
        [
            "/.well-known/oauth-authorization-server/tenant1",
            "/.well-known/openid-configuration/tenant1",
            "/tenant1/.well-known/openid-configuration",
        ]
    );
}

#[tokio::test]
async fn the_scopes_are_the_challenges_or_else_all_that_there_are() {
    let world = World::start().await;
    let at = world.upstream.url(PRM);
    world.challenges(&format!("Bearer scope=\"mcp:basic\", resource_metadata=\"{at}\""));
    assert_eq!(find(&world, BARE).await.unwrap().scopes, ["mcp:basic"]);
    world.challenges(&format!("Bearer resource_metadata=\"{at}\""));
    assert_eq!(find(&world, BARE).await.unwrap().scopes, ["read", "write"]);
    world
        .upstream
        .answers(PRM, 200, with(world.prm(), "scopes_supported", Value::Null));
    assert!(find(&world, BARE).await.unwrap().scopes.is_empty());
}

#[tokio::test]
async fn the_configured_issuer_must_be_among_the_named() {
    let world = World::start().await;
    let servers = json!(["https://other.test", world.issuer.origin]);
    world
        .upstream
        .answers(PRM, 200, with(world.prm(), "authorization_servers", servers));
    let configured = Configured {
        issuer: Some(&world.issuer.origin),
        ..BARE
    };
    assert_eq!(
        find(&world, configured).await.unwrap().provider.issuer,
        world.issuer.origin
    );
    let slash = format!("{}/", world.issuer.origin);
    let configured = Configured {
        issuer: Some(&slash),
        ..BARE
    };
    assert_eq!(
        fails(&world, configured).await,
        format!(
            "the metadata at {} doesn't name the configured issuer",
            world.upstream.url(PRM)
        )
    );
}

#[tokio::test]
async fn a_parents_document_counts_at_the_parents_address_only() {
    let world = World::start().await;
    let root = with(world.prm(), "resource", world.upstream.origin.as_str());
    // Whoever answers at `/mcp` doesn't speak for the whole host.
    world.upstream.answers(PRM, 200, &root);
    assert_eq!(
        fails(&world, BARE).await,
        format!(
            "the metadata at {} is another resource's than the upstream's; if that is its name, set `resource` to it",
            world.upstream.url(PRM)
        )
    );
    // The operator may say that it does.
    let resource = Resource::Named(world.upstream.origin.clone());
    let named = Configured {
        resource: &resource,
        ..BARE
    };
    assert_eq!(
        find(&world, named).await.unwrap().resource,
        Some(world.upstream.origin.clone())
    );

    world.challenges("Bearer");
    world.upstream.answers(PRM, 404, "");
    world.upstream.answers(ROOT_PRM, 200, &root);
    let found = find(&world, BARE).await.unwrap();
    assert_eq!(found.resource, Some(world.upstream.origin.clone()));
}

#[tokio::test]
async fn documents_that_are_not_believed() {
    let world = World::start().await;
    let at = world.upstream.url(PRM);
    let no_document =
        format!("{at} is no protected resource metadata: no JSON object with a resource, or a key stands twice in it");
    let other = format!(
        "the metadata at {at} is another resource's than the upstream's; if that is its name, set `resource` to it"
    );
    let prm = world.prm();
    let cases = [
        ("<html>".to_owned(), no_document.clone()),
        (
            with(prm.clone(), "resource", Value::Null).to_string(),
            no_document.clone(),
        ),
        (
            format!(r#"{{"resource":"{0}","resource":"{0}"}}"#, world.upstream.url("/mcp")),
            no_document,
        ),
        (
            with(prm.clone(), "resource", "https://evil.example.com/mcp").to_string(),
            other.clone(),
        ),
        (with(prm.clone(), "resource", "no url").to_string(), other.clone()),
        (
            with(prm.clone(), "resource", world.upstream.url("/mc")).to_string(),
            other.clone(),
        ),
        (
            with(prm.clone(), "resource", world.upstream.url("/mcp/more")).to_string(),
            other.clone(),
        ),
        (
            with(prm.clone(), "resource", world.upstream.url("/mcp?key=k")).to_string(),
            other,
        ),
        (
            with(prm.clone(), "authorization_servers", json!([])).to_string(),
            format!("the metadata at {at} names no authorization server"),
        ),
        (
            with(prm.clone(), "authorization_servers", json!([7])).to_string(),
            format!("the metadata at {at} names no authorization server"),
        ),
        (
            with(prm, "authorization_servers", json!(["no url"])).to_string(),
            "the issuer is no URL that metadata could be found at".to_owned(),
        ),
    ];
    for (document, text) in cases {
        world.upstream.answers(PRM, 200, &document);
        assert_eq!(fails(&world, BARE).await, text, "{document}");
    }
    assert!(world.issuer.asked().is_empty());

    world.upstream.answers(PRM, 503, "");
    let text = format!("the upstream's metadata at {at} can't be had: it answers 503");
    assert_eq!(fails(&world, BARE).await, text);
    // Nor is there anywhere else to look when the challenge's own address has nothing.
    world.upstream.answers(PRM, 404, "");
    world.upstream.answers(ROOT_PRM, 200, world.prm());
    let text = format!("the upstream's metadata at {at} can't be had: it answers 404");
    assert_eq!(fails(&world, BARE).await, text);
    // A failure on the way to the first address isn't a reason to believe the second.
    world.challenges("Bearer");
    world.upstream.answers(PRM, 500, "");
    let text = format!("the upstream's metadata at {at} can't be had: it answers 500");
    assert_eq!(fails(&world, BARE).await, text);
}

#[tokio::test]
async fn r26_addresses_that_are_never_asked() {
    let world = World::start().await;
    let there = world.issuer.url("/prm");
    for (address, text) in [
        ("no url", "the upstream's challenge names no URL as its resource_metadata".to_owned()),
        (
            "http://mcp.example.com/prm",
            "the upstream's metadata at http://mcp.example.com/prm can't be had: https is needed off loopback".to_owned(),
        ),
        (
            "https://10.0.0.1/prm?token=t",
            "the upstream's metadata at https://10.0.0.1/prm can't be had: its address is not a public one".to_owned(),
        ),
        (
            "https://169.254.169.254/latest",
            "the upstream's metadata at https://169.254.169.254/latest can't be had: link-local addresses are never asked"
                .to_owned(),
        ),
        (
            "file:///etc/passwd",
            "the upstream's metadata at file:///etc/passwd can't be had: it has no host".to_owned(),
        ),
        // A stranger's document isn't redirected, not even on its own origin.
        (
            &there,
            format!("the upstream's metadata at {there} can't be had: it redirects elsewhere, or too often"),
        ),
    ] {
        world.issuer.answers_with("/prm", 302, ("location", "/real"), "");
        world.issuer.answers("/real", 200, world.prm());
        world.challenges(&format!("Bearer resource_metadata=\"{address}\""));
        assert_eq!(fails(&world, BARE).await, text);
    }
    assert_eq!(world.issuer.paths(), ["/prm"]);
}

#[tokio::test]
async fn issuers_that_are_not_believed() {
    let world = World::start().await;
    let metadata = world.metadata();
    let other = format!("the metadata at {} is another issuer's", world.issuer.url(METADATA));
    let cases = [
        (
            with(metadata.clone(), "issuer", "https://attacker.example.com"),
            other.clone(),
        ),
        (
            with(metadata.clone(), "issuer", format!("{}/", world.issuer.origin)),
            other,
        ),
        (
            with(metadata.clone(), "token_endpoint", Value::Null),
            "the issuer's metadata has no usable token_endpoint".to_owned(),
        ),
        (
            with(metadata.clone(), "token_endpoint", json!(["https://a.test"])),
            "the issuer's metadata has no usable token_endpoint".to_owned(),
        ),
        (
            with(metadata.clone(), "token_endpoint", "http://issuer.test/token"),
            "the issuer's token_endpoint can't be used: https is needed off loopback".to_owned(),
        ),
        (
            with(metadata.clone(), "token_endpoint", "https://192.168.0.1/token"),
            "the issuer's token_endpoint can't be used: its address is not a public one".to_owned(),
        ),
        (
            with(metadata.clone(), "authorization_endpoint", "javascript:alert(1)"),
            "the issuer's authorization_endpoint can't be used: it has no host".to_owned(),
        ),
        (
            with(metadata.clone(), "registration_endpoint", "/register"),
            "the issuer's registration_endpoint can't be used: it is no URL".to_owned(),
        ),
        (
            with(metadata.clone(), "revocation_endpoint", "https://user:pw@issuer.test/"),
            "the issuer's revocation_endpoint can't be used: credentials in a URL are not used".to_owned(),
        ),
    ];
    for (document, text) in cases {
        world.issuer.answers(METADATA, 200, &document);
        assert_eq!(fails(&world, BARE).await, text, "{document}");
    }
    for (document, text) in [
        (
            with(metadata.clone(), "code_challenge_methods_supported", Value::Null),
            "the issuer's metadata doesn't say that it supports PKCE with S256",
        ),
        (
            with(metadata.clone(), "code_challenge_methods_supported", json!(["plain"])),
            "the issuer's metadata doesn't say that it supports PKCE with S256",
        ),
        (
            with(metadata, "authorization_endpoint", Value::Null),
            "the issuer's metadata has no usable authorization_endpoint",
        ),
    ] {
        world.issuer.answers(METADATA, 200, &document);
        let found = find(&world, BARE).await.unwrap();
        assert_eq!(found.provider.authorization().unwrap_err().to_string(), text);
    }
}

#[tokio::test]
async fn an_upstream_of_2025_03_26_is_its_own_issuer_if_it_says_so() {
    let world = World::start().await;
    world.challenges("Bearer scope=\"tools\"");
    world.upstream.answers(PRM, 404, "");
    let origin = &world.upstream.origin;
    let metadata = with(world.metadata(), "issuer", origin.as_str());
    world.upstream.answers(METADATA, 200, &metadata);
    let found = find(&world, BARE).await.unwrap();
    assert_eq!(&found.provider.issuer, origin);
    assert_eq!(found.resource, Some(world.upstream.url("/mcp")));
    assert_eq!(found.scopes, ["tools"]);

    // Endpoints are not guessed.
    world.upstream.answers(METADATA, 404, "");
    let text = fails(&world, BARE).await;
    let metadata = world.upstream.url(METADATA);
    assert_eq!(
        text,
        format!(
            "the upstream has no protected resource metadata, and its origin is no issuer: \
             no metadata at {metadata}: it answers 404"
        )
    );
    for path in ["/authorize", "/token", "/register"] {
        assert!(world.upstream.asked_at(path).is_empty());
    }
}

#[tokio::test]
async fn whether_the_upstream_still_has_an_issuer() {
    let world = World::start().await;
    let discovery = Discovery::new(&world.servers(), BARE).unwrap();
    assert_eq!(discovery.still_names(&world.issuer.origin).await, Some(true));
    assert_eq!(discovery.still_names("https://other.test").await, Some(false));
    world.upstream.answers(PRM, 500, "");
    assert_eq!(discovery.still_names("https://other.test").await, None);
}
