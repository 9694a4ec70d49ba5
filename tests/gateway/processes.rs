//! Routes whose server is a command, as operators see them.

use http::Request;
use http_body_util::Full;
use serde_json::json;

use super::gate::{Answer, Gate};

async fn admin(gate: &Gate, path: &str) -> Answer {
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
