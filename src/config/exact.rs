//! Diagnostics letter by letter: place, key, what and remedy are what editors and scripts read.

use super::*;

fn env(name: &str) -> Option<String> {
    let value = match name {
        "LONG" => "0123456789abcdef0123456789abcdef",
        "SHORT" => "hunter2hunter2",
        "PASS" => "a-password",
        "LINES" => "a-token\nx-admin: 1",
        "PLAIN_URL" => "http://login.example.com",
        _ => return None,
    };
    Some(value.to_owned())
}

#[test]
fn diagnostics_are_these() {
    for (text, expected) in [
        (
            "listen: {adress: 127.0.0.1:1}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:10: listen.adress: unknown key \"adress\"; did you mean \"address\"?",
        ),
        (
            "lisen: {}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:1: lisen: unknown key \"lisen\"; did you mean \"listen\"?",
        ),
        (
            "listen: {address: localhost}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:19: listen.address: \"localhost\" does not fit; use an IP address and a port, such as 127.0.0.1:8080 or [::]:8443",
        ),
        (
            "listen: {address: 0.0.0.0:1, public_url: 'https://h'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:19: listen.address: \"0.0.0.0:1\" is off loopback, and there is no tls; add listen.tls with certificate and key, or listen.plaintext: true where TLS ends before the gate",
        ),
        (
            "listen: {address: 0.0.0.0:1, tls: {certificate: c, key: k}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:9: listen: public_url is required off loopback; set it to the URL that clients use",
        ),
        (
            "listen: {tls: {certificate: c}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:15: listen.tls.key: this key is missing; name a PEM file with the private key",
        ),
        (
            "listen: {public_url: 'http://mcp.example.com'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:22: listen.public_url: \"http://mcp.example.com\" does not fit; clients must come over https off loopback",
        ),
        (
            "listen: {public_url: 'https://:pw@mcp.example.com'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:22: listen.public_url: the URL does not fit; use scheme and authority only, such as https://mcp.example.com",
        ),
        (
            "listen: {public_url: 'https:mcp.example.com'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:22: listen.public_url: \"https:mcp.example.com\" does not fit; use scheme and authority only, such as https://mcp.example.com",
        ),
        (
            "listen: {limits: {header_timeout: fast}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:35: listen.limits.header_timeout: \"fast\" does not fit; use a time such as 500ms, 10s, 15m or 5h",
        ),
        (
            "listen: {limits: {connections: many}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:32: listen.limits.connections: \"many\" does not fit; use a whole number from 1 to 1000000",
        ),
        (
            "listen: {trusted_proxies: [10.0.0.1/8], public_url: 'https://h'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:28: listen.trusted_proxies[0]: \"10.0.0.1/8\" does not fit; the bits after the prefix must be zero; write the network's first address",
        ),
        (
            "listen: {proxy_protocol: true}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:26: listen.proxy_protocol: nobody is trusted to send a PROXY header; name the proxies' networks in listen.trusted_proxies",
        ),
        (
            "listen: {trusted_proxies: [10.0.0.0/8]}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:27: listen.trusted_proxies: behind a proxy public_url is required; set listen.public_url to the URL that clients use",
        ),
        (
            "listen: {plaintext: true, tls: {certificate: c, key: k}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:21: listen.plaintext: plaintext and tls exclude each other; remove plaintext, or tls where it ends before the gate",
        ),
        (
            "listen: {plain: true}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:10: listen.plain: unknown key \"plain\"; known here: address, public_url, tls, plaintext, trusted_proxies, proxy_protocol, limits, allowed_hosts, allowed_origins",
        ),
        (
            "telemetry: {log: {level: portcullis=loudest}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:26: telemetry.log.level: \"portcullis=loudest\" does not fit; use a filter such as info or portcullis=debug,info",
        ),
        (
            "telemetry: {audit: {file: ''}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:27: telemetry.audit.file: \"\" does not fit; write something, or remove the key",
        ),
        (
            "admin: {token: changeme}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:16: admin.token: this is a well-known default, and no secret; make a random one",
        ),
        (
            "admin: {token: '${env:NOT_SET}'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:16: admin.token: the environment variable NOT_SET is not set; set NOT_SET, or use ${file:PATH}",
        ),
        (
            "admin: {token: '${vault:x}'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:16: admin.token: ${…} is no reference; use ${env:NAME} or ${file:PATH}",
        ),
        (
            "admin: {token: '${env:X'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:16: admin.token: a ${ without its }; close it",
        ),
        (
            "admin: {token: '${file:none}'}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:16: admin.token: cannot read none: No such file or directory (os error 2); paths are relative to this file; check name and rights",
        ),
        (
            "identity: {a: {issuer: 'http://login.example.com'}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:24: identity.a.issuer: \"http://login.example.com\" does not fit; use https; http is accepted on loopback only",
        ),
        (
            "identity: {a: {issuer: 'https://[fe80::1]'}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:24: identity.a.issuer: \"https://[fe80::1]\" does not fit; link-local addresses are never asked",
        ),
        (
            "identity: {a: {issuer: '${env:PLAIN_URL}'}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:24: identity.a.issuer: the interpolated value does not fit; use https; http is accepted on loopback only",
        ),
        (
            "identity: {a: {issuer: 'https://h', algorithms: [none]}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:50: identity.a.algorithms[0]: \"none\" does not fit; use RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, or HS256 with shared_secret",
        ),
        (
            "identity: {a: {issuer: 'https://h', algorithms: [HS256]}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:50: identity.a.algorithms[0]: \"HS256\" does not go with these keys; HS256 goes with shared_secret, and only with it",
        ),
        (
            "identity: {a: {issuer: 'https://h', audiences: ['']}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:49: identity.a.audiences[0]: \"\" does not fit; write something, or remove the key",
        ),
        (
            "identity: {a: {issuer: 'https://h', shared_secret: '${env:SHORT}'}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:52: identity.a.shared_secret: the secret is shorter than 32 bytes; make one with: openssl rand -base64 32",
        ),
        (
            "identity: {a: {issuer: 'https://h', jwks_file: f, shared_secret: '${env:LONG}'}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:66: identity.a.shared_secret: jwks_file and shared_secret are alternatives; keep one of them",
        ),
        (
            "identity: {a: {issuer: 'https://h', introspection: {client_secret: '${env:LONG}'}}}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:52: identity.a.introspection.client_id: this key is missing; set it to the gate's client id at the issuer",
        ),
        (
            "roles:\n  x: [{any: []}, staff]\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:2:7: roles.x[0]: a role line is a text or {all: [..]}; write {all: [\"group:staff\", …]}\np.yaml:2:18: roles.x[1]: \"staff\" is not kind:value; write it like \"group:staff\"",
        ),
        (
            "roles: {x: [{all: ['group:a', [b]]}]}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}",
            "p.yaml:1:31: roles.x[0].all[1]: a role line is a text or {all: [..]}; write \"group:staff\"",
        ),
        (
            "roles: {x: [staff]}\nroutes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', tools: {rules: [{allow: [a], to: [x]}, {allow: [b], when: 'user == 1'}]}}",
            "p.yaml:1:13: roles.x[0]: \"staff\" is not kind:value; write it like \"group:staff\"\np.yaml:3:115: routes.r.tools.rules[1].when: unknown variable \"user\"; there are principal, tool, args, route and now",
        ),
        (
            "routes: {r: {path: /m, upstream: 'http://h/'}}",
            "p.yaml:1:13: routes.r: nobody can vouch for this route's callers; configure an identity, or open the route with anonymous: true",
        ),
        (
            "identity: {a: {issuer: 'https://a'}, b: {issuer: 'https://b'}}\nroutes: {r: {path: /m, upstream: 'http://h/'}}",
            "p.yaml:2:13: routes.r: several identities exist, and none is named; name those that may vouch: identity: [corp]",
        ),
        (
            "routes:\n  a: {host: a.localhost, path: /m, anonymous: true, upstream: 'http://h/'}\n  b: {path: /m, anonymous: true, upstream: 'http://h/'}\n  c: {host: A.localhost, path: /m, anonymous: true, upstream: 'http://h/'}",
            "p.yaml:4:32: routes.c.path: \"/m\" is taken by route a; give each route its own path",
        ),
        (
            "listen: {public_url: 'https://h.example'}\nroutes:\n  a: {host: h.example, path: /m, anonymous: true, upstream: 'http://h/'}\n  b: {path: /m, anonymous: true, upstream: 'http://h/'}",
            "p.yaml:4:13: routes.b.path: \"/m\" is taken by route a; give each route its own path",
        ),
        (
            "routes: {r: {host: wiki.example, path: /m, anonymous: true, upstream: 'http://h/'}}",
            "p.yaml:1:20: routes.r.host: \"wiki.example\" does not fit; clients must come over https off loopback; set listen.public_url to an https URL, or use a name under .localhost",
        ),
        (
            "routes: {r: {host: 'wiki.localhost:80', path: /m, anonymous: true, upstream: 'http://h/'}}",
            "p.yaml:1:20: routes.r.host: \"wiki.localhost:80\" does not fit; use a host name without a port",
        ),
        (
            "routes:\n  a: {path: /m, anonymous: true, upstream: 'http://h/'}\n  b: {path: /m/messages, anonymous: true, upstream: 'http://h/'}",
            "p.yaml:3:13: routes.b.path: \"/m/messages\" is taken by route a; give each route its own path",
        ),
        (
            "identity: {a: {issuer: 'https://a'}, b: {issuer: 'https://a', claims: {subject: email}}}\nroutes: {r: {path: /m, identity: [a, b], upstream: 'http://h/', credential: {connection: {}}}}",
            "p.yaml:2:34: routes.r.identity: \"a\" and \"b\" find the subject of one issuer's tokens in different claims, and two people could pass for one; give both the same claims.subject, or name one of them",
        ),
        (
            "identity: {a: {issuer: 'https://a'}, b: {issuer: 'https://a', claims: {subject: email}}}\nroutes: {r: {path: /m, identity: [b, a], upstream: 'http://h/', credential: {assertion: {}}}}",
            "p.yaml:2:34: routes.r.identity: \"b\" and \"a\" find the subject of one issuer's tokens in different claims, and two people could pass for one; give both the same claims.subject, or name one of them",
        ),
        (
            "identity: {a: {issuer: 'https://a'}, b: {issuer: 'https://a'}, c: {issuer: 'https://c', claims: {subject: email}}}\nroutes: {r: {path: /m, identity: [a, b, c], upstream: 'http://h/', credential: {connection: {}}}}",
            "accepted",
        ),
        (
            "routes: {r: {path: /.well-known/x, anonymous: true, upstream: 'http://h/'}}",
            "p.yaml:1:20: routes.r.path: \"/.well-known/x\" does not fit; /.well-known/ is where clients look for metadata; use another path",
        ),
        (
            "routes: {r: {path: /m/, anonymous: true, upstream: 'http://h/'}}",
            "p.yaml:1:20: routes.r.path: \"/m/\" does not fit; use a plain path such as /notes/mcp, without a slash at its end",
        ),
        (
            "routes:\n  r:\n    path: /m\n    anonymous: true\n    upstream: ftp://h/",
            "p.yaml:5:15: routes.r.upstream: \"ftp://h/\" does not fit; use an http or https URL",
        ),
        (
            "routes:\n  r:\n    path: /m\n    anonymous: true\n    upstream: {urls: ['http://h/', nonsense]}",
            "p.yaml:5:36: routes.r.upstream.urls[1]: \"nonsense\" does not fit; use an absolute URL such as http://127.0.0.1:8001/mcp",
        ),
        (
            "routes:\n  r:\n    path: /m\n    anonymous: true\n    upstream: {urls: 'http://h/', transport: stdio}",
            "p.yaml:5:46: routes.r.upstream.transport: stdio and command go together; set command for a server over stdio; drop transport for any other",
        ),
        (
            "routes:\n  r:\n    path: /m\n    anonymous: true\n    upstream: {urls: 'http://h/', circuit: {}}",
            "p.yaml:5:35: routes.r.upstream.circuit: unknown key \"circuit\"; known here: urls, transport, era, command, env, directory, shared, processes, process_idle_timeout, balance, health, breaker, ca, client_certificate, client_key, response_timeout, forward_headers, connect_timeout, idle_timeout",
        ),
        (
            "routes:\n  r:\n    path: /m\n    anonymous: true\n    upstream: {urls: 'http://h/', forward_headers: [x-a, Authorization]}",
            "p.yaml:5:58: routes.r.upstream.forward_headers[1]: \"Authorization\" does not fit; credentials, hop-by-hop headers and what the gate sets itself are never forwarded",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: sk-live-4242}",
            "p.yaml:2:69: routes.r.credential: the value does not fit; use none, or a map such as {bearer: …}, {exchange: …} or {connection: {}}",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {basic: {username: 'u:sk-live-4242', password: '${env:PASS}'}}}",
            "p.yaml:2:88: routes.r.credential.basic.username: the value does not fit; a user name has no colon and no control character (RFC 7617)",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {header: {name: 'x-key: sk-live-4242', value: '${env:PASS}'}}}",
            "p.yaml:2:85: routes.r.credential.header.name: the value does not fit; use a header name",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {header: {name: Content-Length, value: '${env:PASS}'}}}",
            "p.yaml:2:85: routes.r.credential.header.name: the value does not fit; hop-by-hop headers and what the gate sets itself carry no credential",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {bearer: '${env:LINES}'}}",
            "p.yaml:2:78: routes.r.credential.bearer: the secret has a control character; a header carries one line",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {connections: {}}}",
            "p.yaml:2:69: routes.r.credential: 0 credentials are given; exactly one leaves: bearer, header, basic, passthrough, exchange, client_credentials, assertion, token_file, connection\np.yaml:2:70: routes.r.credential.connections: unknown key \"connections\"; did you mean \"connection\"?",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {connection: {}}}",
            "p.yaml:2:69: routes.r.credential: nobody has no account to connect; drop anonymous, or use another credential",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {client_credentials: {client_id: i}}}",
            "p.yaml:2:102: routes.r.credential.client_credentials.client_id: nothing says how the gate authenticates; set client_secret, private_key, or client_certificate and client_key; or client_auth: none for a public client",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {client_credentials: {client_id: i, client_secret: '${env:LONG}', client_auth: tls}}}",
            "p.yaml:2:148: routes.r.credential.client_credentials.client_auth: this is not what the other keys are for; set client_secret, private_key, or client_certificate and client_key; or client_auth: none for a public client",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {client_credentials: {client_id: i, client_secret: '${env:LONG}', private_key: '${env:LONG}'}}}",
            "p.yaml:2:148: routes.r.credential.client_credentials.private_key: client_secret and private_key are alternatives; keep one of them",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {client_credentials: {client_id: i, client_secret: '${env:LONG}'}}}",
            "p.yaml:2:120: routes.r.credential.client_credentials.client_secret: nothing says whose client this secret makes the gate, and the server must not; set issuer, or token_endpoint",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {client_credentials: {client_id: i, private_key: '${env:LONG}'}}}",
            "p.yaml:2:118: routes.r.credential.client_credentials.private_key: this is no private key in PEM (PKCS #8, PKCS #1 or SEC1); openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 makes a good one",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {client_credentials: {client_id: i, client_auth: none, key_id: k}}}",
            "p.yaml:2:132: routes.r.credential.client_credentials.key_id: key_id says nothing without private_key; set private_key, or drop it",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {client_credentials: {client_id: i, client_auth: none, parameters: {grant_type: password}}}}",
            "p.yaml:2:136: routes.r.credential.client_credentials.parameters: \"grant_type\" is the gate's to set; use the key of that name, or drop it",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {token_file: {path: t, token_endpoint: 'https://h/t'}}}",
            "p.yaml:2:82: routes.r.credential.token_file.client_id: this key is missing; endpoints by hand have nowhere to register: set the gate's client id\np.yaml:2:82: routes.r.credential.token_file.issuer: this key is missing; name the issuer that these endpoints are of: tokens are bound to it",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {token_file: {path: t, client_id: i, client_secret: '${env:LONG}'}}}",
            "p.yaml:2:121: routes.r.credential.token_file.client_secret: nothing says whose client this secret makes the gate, and the server must not; set issuer",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', credential: {assertion: {lifetime: 11m}}}",
            "p.yaml:2:69: routes.r.credential: there is nobody to vouch for; drop anonymous, or use another credential\np.yaml:2:92: routes.r.credential.assertion.lifetime: this is not a whole number of seconds up to 10m; 60s is a good value",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', tools: {rules: [{allow: [a], deny: [b]}]}}",
            "p.yaml:2:73: routes.r.tools.rules[0]: a rule either allows or denies; give exactly one of allow and deny",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', tools: {rules: [{allow: [a], to: [ghost]}]}}",
            "p.yaml:2:91: routes.r.tools.rules[0].to[0]: no role \"ghost\"; there are: ",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', tools: {rules: [{allow: [a], when: 'user == 1'}]}}",
            "p.yaml:2:92: routes.r.tools.rules[0].when: unknown variable \"user\"; there are principal, tool, args, route and now",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', tools: {rules: [{allow: [admin_x]}, {deny: ['admin_*']}]}}",
            "p.yaml:2:82: routes.r.tools.rules[0].allow[0]: \"admin_x\" can never be allowed: tools.rules[1] denies all of it",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', tools: {max: 1, on_excess: search}}",
            "p.yaml:2:84: routes.r.tools.on_excess: \"search\" does not fit; use one of trim, refuse",
        ),
        (
            "routes:\n  r: {path: /m, anonymous: true, upstream: 'http://h/', limits: {quota: 50}}",
            "p.yaml:2:66: routes.r.limits.quota: unknown key \"quota\"; known here: body, rate, burst, concurrency",
        ),
        (
            "routes:\n  r:\n    path: /m\n    path: /n\n    anonymous: true\n    upstream: http://h/",
            "p.yaml:4:5: routes.r: the key \"path\" stands here twice; keep one of them",
        ),
        (
            "routes: {r: &a {path: /m}}",
            "p.yaml:1:16: routes.r: anchors and tags are not used here; write the value out",
        ),
        (
            "routes: [unclosed",
            "p.yaml:2:1: not YAML: while parsing a flow sequence, expected ',' or ']'; correct the syntax here or just before",
        ),
        (
            "",
            "p.yaml: routes: no route is configured; add one: routes: {notes: {path: /notes/mcp, upstream: http://…}}",
        ),
    ] {
        let told = match Config::parse(text, "p.yaml", std::path::Path::new("/nowhere"), &env) {
            Ok(_) => "accepted".to_owned(),
            Err(errors) => errors.to_string(),
        };
        assert_eq!(told, expected, "for {text}");
    }
}

#[test]
fn one_spelling_of_a_public_url_comes_through() {
    for (text, expected) in [
        ("https://mcp.example.com", Some("https://mcp.example.com")),
        ("https://mcp.example.com:8443/", Some("https://mcp.example.com:8443")),
        ("http://127.0.0.1:8080", Some("http://127.0.0.1:8080")),
        ("http://[::1]:8080", Some("http://[::1]:8080")),
        ("https://mcp.example.com:443", None),
        ("https://MCP.example.com", None),
        ("https://mcp.example.com//", None),
        ("https://mcp.example.com?", None),
        ("https://mcp.exa\tmple.com", None),
    ] {
        assert_eq!(values::public_url(text).ok().as_deref(), expected, "{text:?}");
    }
}

#[test]
fn endless_files_are_not_read_to_their_end() {
    let text = "admin: {token: '${file:/dev/zero}'}";
    let Err(errors) = Config::parse(text, "p.yaml", std::path::Path::new("/nowhere"), &env) else {
        panic!("accepted");
    };
    let errors = errors.to_string();
    assert!(errors.contains("cannot read /dev/zero: it is over 1 MiB"), "{errors}");
    assert!(Config::load(std::path::Path::new("/dev/zero"), &env).is_err());
}
