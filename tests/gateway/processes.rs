//! Routes whose server is a command: as callers meet its processes, and as operators see them.

use std::path::Path;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use super::gate::{Answer, Gate};

pub async fn admin(gate: &Gate, path: &str) -> Answer {
    let admin = gate.running.admin_url().expect("a port");
    let request = Request::get(format!("{admin}{path}")).body(Full::default());
    gate.send(request.expect("a request")).await
}

#[tokio::test]
async fn a_command_is_ready_while_it_can_be_run() {
    let bin = tempfile::tempdir().expect("a directory");
    let program = bin.path().join("server");
    std::os::unix::fs::symlink("/bin/cat", &program).expect("a link");
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: {{command: [\"{}\"], processes: 3}}\n",
        program.display()
    ))
    .await;
    assert_eq!(admin(&gate, "/readyz").await.status, 200);
    let route = admin(&gate, "/status").await.json()["routes"][0].clone();
    assert_eq!(route["processes"], json!({"running": 0, "most": 3, "died": 0}));
    let command = json!([{"url": "stdio:server", "healthy": true, "last_error": null}]);
    assert_eq!(route["endpoints"], command);
    std::fs::remove_file(&program).expect("it is there");
    assert_eq!(admin(&gate, "/readyz").await.status, 503);
    let route = admin(&gate, "/status").await.json()["routes"][0].clone();
    assert_eq!(
        route["endpoints"][0]["last_error"],
        "the command is no file that can be executed"
    );
}

/// A server of 2025-11-25 whose tool `who` answers with its number and environment, and whose tool `die` doesn't.
const SERVER: &str = r#"
while read -r line; do
  id=$(printf %s "$line" | sed -n 's/.*"id":\("[^"]*"\|[0-9]*\).*/\1/p')
  case "$line" in
    *'"initialize"'*) result='{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"sh","version":"1"}}' ;;
    *'"die"'*) echo 'this one is too much' >&2; exit 3 ;;
    *'"who"'*) result='{"content":[{"type":"text","text":"'$$' '$(tr '\0' ' ' < /proc/$$/environ)'"}]}' ;;
    *) [ -n "$id" ] && echo '{"jsonrpc":"2.0","id":'"$id"',"error":{"code":-32601,"message":"no"}}'; continue ;;
  esac
  echo '{"jsonrpc":"2.0","id":'"$id"',"result":'"$result"'}'
done
"#;

fn route(directory: &Path, env: &str) -> String {
    let script = directory.join("server.sh");
    std::fs::write(&script, SERVER).expect("written");
    format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{command: [sh, \"{}\"], env: {{{env}}}}}\n",
        script.display()
    )
}

async fn tool(gate: &Gate, token: &str, name: &str) -> Answer {
    gate.modern(token, "tools/call", json!({"name": name, "arguments": {}}))
        .await
}

/// The number of the caller's process, and its environment.
async fn who(gate: &Gate, token: &str) -> (u32, String) {
    let answer = tool(gate, token, "who").await;
    let answer: Value = answer.json();
    let text = answer["result"]["content"][0]["text"].as_str();
    let text = text.unwrap_or_else(|| panic!("{answer}"));
    let (number, environment) = text.split_once(' ').expect("two words");
    (number.parse().expect("a number"), environment.to_owned())
}

fn is_there(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

#[tokio::test]
async fn r20_everybody_has_a_process_of_their_own_with_nothing_of_the_gates() {
    let directory = tempfile::tempdir().expect("a directory");
    let gate = Gate::with_yaml(&route(directory.path(), "A_TOKEN: one")).await;
    let mint = |who| gate.issuer.mint(who, &gate.url(), &[], &[], Duration::from_secs(600));
    let (alice, bob) = (mint("alice"), mint("bob"));
    let (alices, environment) = who(&gate, &alice).await;
    assert_eq!(environment, "A_TOKEN=one PATH=/usr/local/bin:/usr/bin:/bin ");
    let (bobs, _) = who(&gate, &bob).await;
    assert_ne!(alices, bobs);
    assert_eq!(who(&gate, &alice).await.0, alices, "it is kept");
    // One that dies takes nobody else's along.
    let died = tool(&gate, &alice, "die").await;
    assert_eq!((died.status.as_u16(), died.code()), (503, Some(50_300)));
    assert!(died.json().to_string().contains("exit status: 3"), "{}", died.json());
    assert!(!is_there(alices));
    assert_eq!(who(&gate, &bob).await.0, bobs);
    let route_of = |answer: Answer| answer.json()["routes"][0].clone();
    let told = route_of(admin(&gate, "/status").await);
    assert_eq!(told["processes"], json!({"running": 1, "most": 64, "died": 1}));
    // A reload leaves processes alone, unless it is their command that it changes; the gate's end leaves none.
    gate.reload(&route(directory.path(), "A_TOKEN: one"))
        .expect("it is the same");
    assert_eq!(who(&gate, &bob).await.0, bobs);
    gate.reload(&route(directory.path(), "A_TOKEN: two"))
        .expect("it is good");
    let (other, environment) = who(&gate, &bob).await;
    assert_ne!(other, bobs);
    assert!(environment.starts_with("A_TOKEN=two "), "{environment}");
    let ended = async {
        while is_there(bobs) {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), ended);
    ended.await.expect("nobody needs the old one");
    gate.running.shutdown().await;
    assert!(!is_there(other));
}
