//! `portcullis connect`, `disconnect` and `status`, beside a gate that is running on the same store.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::time::timeout;
use url::Url;

use super::{World, answered, granted, text};
use crate::commands::{portcullis, run};
use crate::gate::call;

const SOON: Duration = Duration::from_secs(20);

/// A command that waits for somebody.
struct Terminal {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: ChildStderr,
}

impl Terminal {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = portcullis(directory, &[&["connect"], arguments].concat());
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("the binary runs");
        Self {
            stdin: child.stdin.take().expect("piped"),
            stdout: BufReader::new(child.stdout.take().expect("piped")).lines(),
            stderr: child.stderr.take().expect("piped"),
            child,
        }
    }

    /// The address that it prints.
    async fn address(&mut self) -> Url {
        let line = timeout(SOON, self.stdout.next_line())
            .await
            .expect("soon")
            .expect("UTF-8");
        match line {
            Some(line) => Url::parse(&line).expect("an address"),
            None => {
                let mut talk = String::new();
                let _ = self.stderr.read_to_string(&mut talk).await;
                panic!("no address: {talk}");
            }
        }
    }

    async fn paste(&mut self, line: &str) {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("it reads");
    }

    /// How it ended, and all that it said on stderr.
    async fn end(mut self) -> (ExitStatus, String) {
        let mut talk = String::new();
        let ended = async {
            self.stderr.read_to_string(&mut talk).await.expect("UTF-8");
            self.child.wait().await.expect("it ends")
        };
        let status = timeout(SOON, ended).await.expect("soon");
        assert_eq!(
            self.stdout.next_line().await.expect("UTF-8"),
            None,
            "nothing but the address is data"
        );
        (status, talk)
    }
}

impl World {
    /// The same configuration as a file, besides it.
    fn configure(&self) {
        let shared = format!(
            "  shared:\n    path: /shared/mcp\n    identity: [corp]\n    upstream: {url}\n    credential: {{token_file: {{path: shared.json, \
             issuer: \"{service}\", authorization_endpoint: \"{service}/authorize\", token_endpoint: \"{service}/token\", \
             client_id: gate, client_secret: service-secret}}}}\n",
            url = self._mcp.url(),
            service = self.service.url(),
        );
        let listen = format!(
            "listen: {{address: \"127.0.0.1:0\", public_url: \"{}\"}}\n",
            self.gate.running.url()
        );
        let file = self.gate.directory.path().join("portcullis.yaml");
        std::fs::write(file, format!("{listen}{}{shared}", self.text)).expect("it can be written");
    }

    fn directory(&self) -> &Path {
        self.gate.directory.path()
    }

    /// What ada's agent gets of linear: `None` is an answer of the server's.
    async fn called(&self) -> Option<i64> {
        let mut request = self.gate.post(&self.token("ada", "linear"), &call("echo"));
        *request.uri_mut() = format!("{}/linear/mcp", self.gate.running.url())
            .parse()
            .expect("a URL");
        self.gate.send(request).await.code()
    }

    /// Waits until that is so: the gate looks into its store every second.
    async fn until_called(&self, code: Option<i64>) {
        let so = async {
            while self.called().await != code {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(SOON, so).await.unwrap_or_else(|_| panic!("never {code:?}"));
    }
}

const ADA: [&str; 3] = ["linear", "--subject", "ada"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_h_a_pasted_address_connects_and_a_bad_one_keeps_the_login() {
    let world = World::start().await;
    world.configure();
    assert_eq!(world.called().await, Some(50_202));
    let mut terminal = Terminal::start(world.directory(), &ADA);
    let address = terminal.address().await;
    let asked = |name: &str| {
        let found = address.query_pairs().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no {name} in {address}")).1.into_owned()
    };
    assert_eq!(
        asked("redirect_uri"),
        format!("{}/connect/callback", world.gate.running.url())
    );
    // The browser ends on a page of the gate that finishes nothing, and knows nothing of other states.
    let callback = answered("callback", &asked("state"), world.service.url());
    let page = world.browser().get(&callback).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(
        text(&page).contains("Copy this address into your terminal"),
        "{}",
        text(&page)
    );
    assert!(text(&page).contains("code=c&amp;state="), "{}", text(&page));
    let other = world
        .browser()
        .get(&answered("callback", "another", world.service.url()))
        .await;
    assert_eq!(other.status, StatusCode::FORBIDDEN);
    assert_eq!(world.service.asked(), 0);
    let mut bob = world.visitor("bob").await;
    assert!(text(&bob.get(&callback).await).contains("Copy this address into your terminal"));

    let here = format!("{}{callback}", world.gate.running.url());
    for bad in [
        "what?",
        "https://gate.example/connect/callback",
        &here.replace("state=", "state=x"),
        &here.replace("iss=", "iss=https://evil.example/"),
        &format!(
            "{}/connect/callback?error=access_denied&state={}&iss={}",
            world.gate.running.url(),
            asked("state"),
            world.service.url()
        ),
    ] {
        terminal.paste(bad).await;
    }
    // A code that the issuer doesn't know.
    terminal.paste(&here).await;
    terminal.paste("").await;
    while world.service.asked() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.service.says(200, granted(None));
    terminal.paste(&format!("  \"{here}\"  ")).await;
    let (status, talk) = terminal.end().await;
    assert!(status.success(), "{talk}");
    assert_eq!(talk.matches("still open").count(), 4, "{talk}");
    assert_eq!(talk.matches("no such address").count(), 2, "{talk}");
    assert!(talk.contains("Connected: linear for \"ada\"."), "{talk}");
    assert!(!talk.contains("the-services-token"), "{talk}");
    world.until_called(None).await;
    // r24: nothing is left of the login.
    let mut ada = world.visitor("ada").await;
    assert_eq!(ada.get(&callback).await.status, StatusCode::BAD_REQUEST);

    let (code, out, _) = run(world.directory(), &["status", "--json"]).await;
    assert_eq!(code, Some(0));
    let lines: Value = serde_json::from_str(&out).expect("JSON");
    let linear = lines
        .as_array()
        .expect("a list")
        .iter()
        .find(|line| line["route"] == "linear");
    assert_eq!(linear.expect("a line")["connections"]["connected"], 1, "{out}");
    let (_, table, _) = run(world.directory(), &["status"]).await;
    assert!(
        table.starts_with("ROUTE") && table.contains("1 connected") && table.contains("nobody is connected"),
        "{table}"
    );

    let disconnect = [&["disconnect"], &ADA[..]].concat();
    let (code, out, talk) = run(world.directory(), &disconnect).await;
    assert_eq!((code, out.as_str()), (Some(0), ""), "{talk}");
    assert!(talk.contains("Disconnected: linear for \"ada\"."), "{talk}");
    world.until_called(Some(50_202)).await;
    let (code, _, talk) = run(world.directory(), &disconnect).await;
    assert_eq!(code, Some(0));
    assert!(talk.contains("nothing to disconnect"), "{talk}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_login_ends_an_older_one_and_a_code_needs_no_paste() {
    let world = World::start().await;
    world.configure();
    let mut older = Terminal::start(world.directory(), &ADA);
    older.address().await;
    // Whoever typed the code was quick.
    world.service.says(200, granted(None));
    let mut newer = Terminal::start(world.directory(), &[&ADA[..], &["--device"]].concat());
    assert!(newer.address().await.as_str().ends_with("/device?user_code=WDJB-MJHT"));
    let (status, talk) = older.end().await;
    assert_eq!(status.code(), Some(1), "{talk}");
    assert!(talk.contains("A newer login"), "{talk}");
    let (status, talk) = newer.end().await;
    assert!(status.success(), "{talk}");
    assert!(
        talk.contains("WDJB-MJHT") && talk.contains("Connected: linear"),
        "{talk}"
    );
    assert_eq!(world.service.last()["device_code"], "the-device-code");
    world.until_called(None).await;
    // A disconnect ends one, too.
    let mut terminal = Terminal::start(world.directory(), &ADA);
    terminal.address().await;
    let (code, _, _) = run(world.directory(), &[&["disconnect"], &ADA[..]].concat()).await;
    assert_eq!(code, Some(0));
    let (status, talk) = terminal.end().await;
    assert_eq!(status.code(), Some(1), "{talk}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_says_whose_account_it_is_and_a_token_file_is_everybodys() {
    let world = World::start().await;
    world.configure();
    let token = world.directory().join("token");
    std::fs::write(&token, world.token("ada", "linear")).expect("it can be written");
    let mut terminal = Terminal::start(world.directory(), &["linear", "--token-file", "token"]);
    let address = terminal.address().await;
    let state = address
        .query_pairs()
        .find(|(name, _)| name == "state")
        .expect("a state")
        .1
        .into_owned();
    world.service.says(200, granted(None));
    let callback = answered("callback", &state, world.service.url());
    terminal.paste(&format!("{}{callback}", world.gate.running.url())).await;
    assert!(terminal.end().await.0.success());
    world.until_called(None).await;

    let mut terminal = Terminal::start(world.directory(), &["shared"]);
    let address = terminal.address().await;
    let state = address
        .query_pairs()
        .find(|(name, _)| name == "state")
        .expect("a state")
        .1
        .into_owned();
    world.service.says(200, granted(None));
    terminal.paste(&answered("callback", &state, world.service.url())).await;
    let (status, talk) = terminal.end().await;
    assert!(status.success(), "{talk}");
    let file = world.directory().join("shared.json");
    let written: Value = serde_json::from_slice(&std::fs::read(&file).expect("it is there")).expect("JSON");
    assert_eq!(written["access_token"], json!("the-services-token"));
    assert_eq!(written["refresh_token"], json!("the-refresh-token"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("it is there").permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_or_what_is_not_meant_is_misuse() {
    let world = World::start().await;
    world.configure();
    std::fs::write(world.directory().join("token"), "no token").expect("it can be written");
    for (arguments, said) in [
        (&["nowhere", "--subject", "ada"][..], "no route"),
        (&["plain", "--subject", "ada"], "credential is no connection"),
        (&["linear"], "whose account?"),
        (&["notion", "--subject", "ada"], "--identity"),
        (
            &["notion", "--subject", "ada", "--identity", "nobody"],
            "does not take identity",
        ),
        (&["linear", "--token-file", "token"], "is not good on route"),
        (&["linear", "--token-file", "missing"], "cannot read a token"),
        (&["shared", "--subject", "ada"], "one login for everybody"),
        (&["linear", "--identity", "corp"], "--subject"),
    ] {
        for command in ["connect", "disconnect"] {
            let (code, out, talk) = run(world.directory(), &[&[command], arguments].concat()).await;
            assert_eq!((code, out.as_str()), (Some(2), ""), "{command} {arguments:?}: {talk}");
            assert!(talk.contains(said), "{command} {arguments:?}: {talk}");
        }
    }
    let (code, _, talk) = run(world.directory(), &["disconnect", "shared"]).await;
    assert_eq!(code, Some(2), "{talk}");
    // Nothing pasted.
    let (code, out, talk) = run(world.directory(), &[&["connect"], &ADA[..]].concat()).await;
    assert_eq!((code, out.lines().count()), (Some(1), 1), "{talk}");
    assert!(talk.contains("no address was pasted"), "{talk}");
}
