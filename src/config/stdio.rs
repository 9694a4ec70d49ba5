//! A server that is a command: what of `routes.X.upstream` says how it is run.
//!
//! 1. The child gets the environment that is written here and nothing of the gate's own (r20), `PATH` included: where none
//!    is written it is `/usr/local/bin:/usr/bin:/bin`.
//! 2. A command with a slash is a file, relative to the configuration's directory; a bare name is looked for on the child's
//!    own `PATH`. One that isn't there, or that this process may not execute, is an error now and not at the first call.
//! 3. Values of `env` are kept as secrets, whatever they are, and warned about in clear where their name says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};
use serde_json::json;

use super::Stdio;
use super::raw::{At, Section};
use super::tree::Value;
use super::values::at;
use crate::secret::Secret;

/// Where commands are looked for when `env` has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Keys that say how a server is reached over HTTP.
const HTTP_ONLY: [&str; 9] = [
    "urls",
    "balance",
    "health",
    "breaker",
    "ca",
    "client_certificate",
    "client_key",
    "connect_timeout",
    "forward_headers",
];
/// Keys that say how a command is run.
const COMMAND_ONLY: [&str; 5] = ["env", "directory", "shared", "processes", "process_idle_timeout"];
/// What the name of a variable that holds a secret has in it.
const SECRETIVE: [&str; 5] = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY"];

/// The command and what goes with it; `None` without one, or when it can't be run.
pub(super) fn stdio(section: &Section<'_>, directory: &Path) -> Option<Stdio> {
    let command = section.parsed_list(
        "command",
        "Instead of urls: a program that speaks MCP on stdin and stdout, and its arguments.",
        |text| no_nul(text).map(|()| text.to_owned()),
    );
    let environment = environment(section);
    let working = working_directory(section, directory);
    let shared = section
        .flag(
            "shared",
            "One process for all callers, instead of one a caller; default false.",
        )
        .unwrap_or(false);
    let processes = section
        .count("processes", "Most processes of this route at once; default 64.")
        .unwrap_or(64);
    let idle_timeout = section
        .duration(
            "process_idle_timeout",
            "A process that nobody uses for so long is ended; default 10m.",
            false,
        )
        .unwrap_or(Duration::from_secs(10 * 60));
    if !section.has("command") {
        for key in COMMAND_ONLY.into_iter().filter(|key| section.has(key)) {
            section.error_at(
                key,
                format!("{key} says nothing without command"),
                "set command, or drop it",
            );
        }
        return None;
    }
    for key in HTTP_ONLY.into_iter().filter(|key| section.has(key)) {
        section.error_at(
            key,
            format!("{key} says nothing about a command"),
            "keep urls for a server over HTTP, or command for one over stdio",
        );
    }
    let Some((program, arguments)) = command.split_first() else {
        section.error_at("command", "no program is named", "write [program, argument]");
        return None;
    };
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(DEFAULT_PATH, |(_, value)| value.expose());
    let program = locate(section, program, path, directory)?;
    Some(Stdio {
        program,
        arguments: arguments.iter().map(|at| at.value.clone()).collect(),
        environment: with_path(environment),
        directory: working?,
        shared,
        processes,
        idle_timeout,
    })
}

/// Where processes begin; the configuration's own directory, as with every path of the file, unless another is named.
fn working_directory(section: &Section<'_>, directory: &Path) -> Option<PathBuf> {
    let named = section.parsed(
        "directory",
        "Working directory; default the configuration's own.",
        |text| {
            let path = directory.join(text);
            match path.is_dir() {
                true => Ok(path),
                false => Err("name a directory that exists".to_owned()),
            }
        },
    );
    match named {
        Some(named) => Some(named.value),
        // Of a file named without a directory the parent is the empty path.
        None if !section.has("directory") && directory.as_os_str().is_empty() => Some(".".into()),
        None => (!section.has("directory")).then(|| directory.to_owned()),
    }
}

fn environment(section: &Section<'_>) -> Vec<(String, Secret)> {
    let schema = json!({
        "type": "object",
        "description": "The whole environment of the processes. Use ${env:NAME} or ${file:PATH} for secrets.",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    });
    let Some((node, path)) = section.node("env", schema) else {
        return Vec::new();
    };
    let Value::Map(entries) = &node.value else {
        section.error_at("env", "this must be a map", "write NAME: value lines below it");
        return Vec::new();
    };
    let entry = |(key, node): &(super::tree::Key, super::tree::Node)| {
        let name = &key.name;
        let place = at(node, &format!("{path}.{name}"));
        let Value::Scalar(scalar) = &node.value else {
            section.error_in(&place, "this must be a text", "write NAME: value");
            return None;
        };
        if name.is_empty() || name.contains('=') || name.contains(char::is_control) {
            section.error_in(
                &place,
                "this is no name of a variable",
                "use letters, digits and underscores",
            );
            return None;
        }
        if let Err(remedy) = no_nul(&scalar.text) {
            section.error_in(&place, "the value does not fit", remedy);
            return None;
        }
        if SECRETIVE.iter().any(|part| name.to_ascii_uppercase().contains(part)) {
            section.judge_secret(scalar, node.place, &place.key);
        }
        Some((name.clone(), Secret::new(scalar.text.clone())))
    };
    entries.iter().filter_map(entry).collect()
}

fn with_path(mut environment: Vec<(String, Secret)>) -> Vec<(String, Secret)> {
    if !environment.iter().any(|(name, _)| name == "PATH") {
        environment.push(("PATH".to_owned(), Secret::new(DEFAULT_PATH)));
    }
    environment
}

/// No text with this can be an argument or a variable of a process.
fn no_nul(text: &str) -> Result<(), String> {
    match text.contains('\0') {
        true => Err("leave the NUL character out".to_owned()),
        false => Ok(()),
    }
}

/// The file that is run.
fn locate(section: &Section<'_>, program: &At<String>, path: &str, directory: &Path) -> Option<PathBuf> {
    let name = &*program.value;
    if name.is_empty() {
        section.error_in(program, "no program is named", "write [program, argument]");
        return None;
    }
    if name.contains('/') {
        let file = directory.join(name);
        if !executable(&file) {
            section.error_in(
                program,
                format!("\"{name}\" is no file that can be executed"),
                "check the name, relative to this file, and its rights",
            );
            return None;
        }
        return Some(file);
    }
    // Relative entries would mean another program in another working directory.
    let found = path
        .split(':')
        .filter(|entry| entry.starts_with('/'))
        .map(|entry| Path::new(entry).join(name))
        .find(|file| executable(file));
    if found.is_none() {
        section.error_in(
            program,
            format!("no program \"{name}\" is on the process's PATH"),
            format!("name its whole path, or set env: {{PATH: …}}; the gate's own is not inherited, {DEFAULT_PATH} is the default"),
        );
    }
    found
}

/// Whether this process may execute a file now.
pub(crate) fn executable(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}
