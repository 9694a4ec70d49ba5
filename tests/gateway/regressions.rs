//! Behaviours owed, by their numbers.

use http::StatusCode;
use serde_json::json;

use super::gate::{Gate, call};
use super::upstream::Upstream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r37_a_hidden_tool_is_refused_when_called() {
    let upstream = Upstream::tools(3).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let listed = gate.modern(&token, "tools/list", json!({})).await;
    assert_eq!(listed.status, StatusCode::OK);
    let names: Vec<String> = listed.json()["result"]["tools"]
        .as_array()
        .expect("tools")
        .iter()
        .map(|tool| tool["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(names, ["echo", "tool_0", "tool_1", "tool_2"]);
    let refused = gate.modern(&token, "tools/call", json!({"name": "delete_note"})).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, Some(40_300)));
    // A legacy client would not survive the status.
    let refused = gate.legacy(&token, &call("delete_note")).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::OK, Some(40_300)));
    let called = upstream
        .seen()
        .iter()
        .filter(|seen| seen.json()["method"] == "tools/call")
        .count();
    assert_eq!(called, 0);
}
