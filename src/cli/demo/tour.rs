//! What `demo` prints: every command and snippet works as printed, for as long as the demo runs.
//!
//! The requests are modern ones (MCP 2026-07-28): they need no session, so that one `curl` is a whole conversation.

use std::fmt;

use serde_json::{Value, json};

/// The name clients list the demo under.
const NAME: &str = "portcullis-demo";

/// Everything a visitor has to know. Its tokens are the one thing `demo` is there to show, so it is printed and never
/// logged.
pub struct Tour {
    /// The MCP endpoint, and the RFC 8707 resource of the tokens.
    pub url: String,
    /// The admin port, without a trailing slash.
    pub admin_url: Option<String>,
    pub issuer: String,
    pub reader: String,
    pub admin: String,
    /// What the issuer's client `reader` gets a fresh token with.
    pub reader_secret: String,
    pub hours: u64,
}

impl Tour {
    /// One object for scripts: `{url, admin_url, issuer, tokens: {reader, admin}}`.
    pub fn to_json(&self) -> Value {
        json!({
            "url": self.url,
            "admin_url": self.admin_url,
            "issuer": self.issuer,
            "tokens": {"reader": self.reader, "admin": self.admin},
        })
    }

    fn list(&self) -> String {
        self.curl(&self.reader, "tools/list", None)
    }

    fn call(&self, token: &str, tool: &str, arguments: Value) -> String {
        self.curl(token, "tools/call", Some((tool, arguments)))
    }

    /// One line, quoted for a POSIX shell: nothing in it holds a single quote.
    fn curl(&self, token: &str, method: &str, tool: Option<(&str, Value)>) -> String {
        let mut message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }}});
        let mut name = String::new();
        if let Some((tool, arguments)) = tool {
            name = format!(" -H 'Mcp-Name: {tool}'");
            message["params"]["name"] = tool.into();
            message["params"]["arguments"] = arguments;
        }
        format!(
            "curl -sS -w '\\n' {} -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \
             -H 'Accept: application/json, text/event-stream' -H 'MCP-Protocol-Version: 2026-07-28' \
             -H 'Mcp-Method: {method}'{name} -d '{message}'",
            self.url
        )
    }

    fn vscode(&self) -> Value {
        json!({"servers": {NAME: {"type": "http", "url": self.url, "headers": self.headers()}}})
    }

    fn cursor(&self) -> Value {
        json!({"mcpServers": {NAME: {"url": self.url, "headers": self.headers()}}})
    }

    fn headers(&self) -> Value {
        json!({"Authorization": format!("Bearer {}", self.reader)})
    }
}

impl fmt::Display for Tour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let admin_url = self.admin_url.as_deref().unwrap_or("off");
        writeln!(
            f,
            "Portcullis demo: a gate, a sample MCP server behind it and an issuer, all on loopback.\n"
        )?;
        writeln!(f, "  MCP endpoint  {}", self.url)?;
        writeln!(f, "  admin         {admin_url} (/metrics /healthz /readyz /status)")?;
        writeln!(f, "  issuer        {}\n", self.issuer)?;
        writeln!(
            f,
            "The issuer is for development only: its keys are in memory and whoever runs this command holds its\n\
             tokens. Don't let any other gate trust it.\n"
        )?;
        writeln!(
            f,
            "Two bearer tokens, good for {} hours or until the demo ends:\n",
            self.hours
        )?;
        writeln!(f, "# reader: every tool but admin_*\n{}\n", self.reader)?;
        writeln!(f, "# admin: every tool\n{}\n", self.admin)?;
        writeln!(
            f,
            "# A fresh one for the reader.\n\
             curl -sS -w '\\n' -u 'reader:{}' -d grant_type=client_credentials {}/token\n",
            self.reader_secret, self.issuer
        )?;
        writeln!(f, "# What the reader sees: admin_reset is missing.\n{}\n", self.list())?;
        let hello = json!({"text": "hello through the gate"});
        writeln!(f, "# A call.\n{}\n", self.call(&self.reader, "echo", hello))?;
        let reset = |token| self.call(token, "admin_reset", json!({}));
        writeln!(
            f,
            "# What the reader may not do: 403, and the server never hears of it.\n{}\n",
            reset(&self.reader)
        )?;
        writeln!(f, "# The admin may.\n{}\n", reset(&self.admin))?;
        writeln!(f, "VS Code, .vscode/mcp.json:\n{:#}\n", self.vscode())?;
        writeln!(f, "Cursor, .cursor/mcp.json:\n{:#}\n", self.cursor())?;
        writeln!(
            f,
            "Claude Code:\nclaude mcp add --transport http {NAME} {} --header 'Authorization: Bearer {}'\n",
            self.url, self.reader
        )?;
        writeln!(f, "Ctrl-C ends everything and leaves nothing behind.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tour() -> Tour {
        Tour {
            url: "http://127.0.0.1:8443/mcp".into(),
            admin_url: Some("http://127.0.0.1:9464".into()),
            issuer: "http://127.0.0.1:9000".into(),
            reader: "eyJ.reader.sig".into(),
            admin: "eyJ.admin.sig".into(),
            reader_secret: "secret".into(),
            hours: 8,
        }
    }

    #[test]
    fn json_is_one_line_with_the_promised_keys() {
        let line = tour().to_json().to_string();
        assert!(!line.contains('\n'));
        let read: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            read,
            json!({
                "url": "http://127.0.0.1:8443/mcp", "admin_url": "http://127.0.0.1:9464",
                "issuer": "http://127.0.0.1:9000",
                "tokens": {"reader": "eyJ.reader.sig", "admin": "eyJ.admin.sig"},
            })
        );
    }

    #[test]
    fn each_command_is_one_line_whose_headers_agree_with_its_body() {
        let printed = tour().to_string();
        let commands: Vec<&str> = printed
            .lines()
            .filter(|line| line.starts_with("curl ") && !line.contains("/token"))
            .collect();
        assert_eq!(commands.len(), 4);
        for command in commands {
            assert_eq!(command.matches('\'').count() % 2, 0);
            let body = command.rsplit_once(" -d '").expect("a body").1.trim_end_matches('\'');
            let body: Value = serde_json::from_str(body).expect("the body is JSON");
            let method = body["method"].as_str().expect("a method");
            assert!(command.contains(&format!("'Mcp-Method: {method}'")), "{command}");
            match body["params"]["name"].as_str() {
                Some(name) => assert!(command.contains(&format!("'Mcp-Name: {name}'")), "{command}"),
                None => assert!(!command.contains("Mcp-Name"), "{command}"),
            }
        }
    }

    #[test]
    fn it_says_that_the_issuer_is_for_development_and_shows_every_client() {
        let printed = tour().to_string();
        for part in [
            "for development only",
            ".vscode/mcp.json",
            ".cursor/mcp.json",
            "claude mcp add --transport http portcullis-demo http://127.0.0.1:8443/mcp",
            "Ctrl-C",
        ] {
            assert!(printed.contains(part), "{part} is missing");
        }
    }
}
