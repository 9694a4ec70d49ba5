//! What the pages say.

use std::fmt::Write as _;

use http::{Response, StatusCode};
use jiff::Timestamp;

use super::html::{Page, text, whole};
use super::visitor::Visitor;
use crate::clock::UnixSeconds;
use crate::credential::{Connection, State};
use crate::edge::Body;

/// A route as its visitor sees it.
pub struct Listed<'a> {
    pub route: &'a str,
    /// `None`: it can't be read now.
    pub connection: Option<Connection>,
    /// Somebody was sent here for it.
    pub asked: bool,
}

/// What was done just now.
pub enum Done {
    Connected,
    Disconnected,
}

/// Everything that the visitor can connect.
pub fn list(
    visitor: &Visitor,
    listed: &[Listed<'_>],
    done: Option<(Done, &str)>,
    note: Option<&str>,
) -> Response<Body> {
    let mut main = "<h1>Your connections</h1>\n\
        <p class=\"soft\">Agents that work for you reach these services with your own accounts. Connect the ones that they \
        may use.</p>\n"
        .to_owned();
    if let Some((done, route)) = done {
        let what = match done {
            Done::Connected => "is connected. Whatever waited for it can be tried again.",
            Done::Disconnected => "is disconnected.",
        };
        let _ = writeln!(
            main,
            "<div class=\"note\" role=\"status\"><p><strong><bdi>{}</bdi></strong> {what}</p></div>",
            text(route)
        );
    }
    if let Some(note) = note {
        let _ = writeln!(main, "<div class=\"note\"><p>{}</p></div>", text(note));
    }
    if listed.is_empty() {
        main.push_str("<p>There is nothing here that you could connect.</p>\n");
    } else {
        main.push_str("<ul class=\"cards\">\n");
        for (index, one) in listed.iter().enumerate() {
            card(&mut main, visitor, index, one);
        }
        main.push_str("</ul>\n");
    }
    page("Your connections", who(visitor), main)
}

fn card(main: &mut String, visitor: &Visitor, index: usize, one: &Listed<'_>) {
    let asked = if one.asked { " asked" } else { "" };
    let state = one.connection.as_ref().map(|connection| connection.state);
    let (tone, says) = match state {
        None => ("bad", "Can’t be read right now"),
        Some(State::Disconnected) => ("soft", "Not connected"),
        Some(State::Connected | State::Expiring) => ("good", "Connected"),
        Some(State::NeedsAuth) => ("warn", "Needs you to connect again"),
        Some(State::Failing) => ("bad", "Connected, but failing"),
    };
    let _ = write!(
        main,
        "<li class=\"card{asked}\">\n<div class=\"about\">\n<h2 id=\"r{index}\"><bdi>{}</bdi></h2>\n\
         <p class=\"state {tone}\">{says}</p>\n",
        text(one.route)
    );
    if let Some(connection) = &one.connection {
        details(main, connection);
    }
    main.push_str("</div>\n<div class=\"acts\">\n");
    let (connect, disconnect) = match state {
        None => (None, false),
        Some(State::Disconnected) => (Some("Connect"), false),
        Some(State::NeedsAuth) => (Some("Connect again"), true),
        Some(State::Connected | State::Expiring | State::Failing) => {
            let wants = one
                .connection
                .as_ref()
                .is_some_and(|connection| !connection.wanted.is_empty());
            (wants.then_some("Allow more"), true)
        }
    };
    if let Some(label) = connect {
        act(main, visitor, one.route, index, "start", label, "");
    }
    if disconnect {
        act(
            main,
            visitor,
            one.route,
            index,
            "disconnect",
            "Disconnect",
            " class=\"plain\"",
        );
    }
    main.push_str("</div>\n</li>\n");
}

/// A button. Its name for those who don't see it says which service it is about.
fn act(main: &mut String, visitor: &Visitor, route: &str, index: usize, action: &str, label: &str, class: &str) {
    let _ = write!(
        main,
        "<form method=\"post\" action=\"/connect/{action}\">\n\
         <input type=\"hidden\" name=\"csrf\" value=\"{}\">\n<input type=\"hidden\" name=\"route\" value=\"{}\">\n\
         <button{class} id=\"{action}{index}\" aria-labelledby=\"{action}{index} r{index}\">{label}</button>\n</form>\n",
        visitor.token(),
        whole(route),
    );
}

fn details(main: &mut String, connection: &Connection) {
    let mut say = |line: String| {
        let _ = writeln!(main, "<p class=\"soft small\">{line}</p>");
    };
    match connection.state {
        State::Disconnected => return,
        State::NeedsAuth => say("The service no longer accepts the login that you made.".to_owned()),
        State::Failing => say(format!(
            "The login can’t be renewed at the moment{}. It is tried again with the next call.",
            connection
                .last_error
                .as_deref()
                .map_or_else(String::new, |error| format!(": {}", text(error)))
        )),
        State::Connected | State::Expiring => {}
    }
    if let Some(since) = connection.since {
        say(format!("Since {}", time(since)));
    }
    if !connection.scopes.is_empty() {
        say(format!("May: {}", text(&connection.scopes.join(", "))));
    }
    if !connection.wanted.is_empty() {
        say(format!("Wants besides: {}", text(&connection.wanted.join(", "))));
    }
}

/// Who is signed in, and the way out.
fn who(visitor: &Visitor) -> String {
    format!(
        "<div class=\"who\"><span class=\"small\">Signed in as <strong><bdi>{}</bdi></strong> <span class=\"soft\">with \
         <bdi>{}</bdi></span></span>\n<form method=\"post\" action=\"/connect/logout\">\
         <input type=\"hidden\" name=\"csrf\" value=\"{}\"><button class=\"plain\">Sign out</button></form></div>",
        text(&visitor.name),
        text(&visitor.identity.name),
        visitor.token(),
    )
}

/// Which of several ways to sign in.
pub fn chooser(identities: &[&str], route: Option<&str>) -> Response<Body> {
    let mut main = "<h1>Sign in</h1>\n<p>Choose who vouches for you: the same login that your agents use here.</p>\n\
                    <ul class=\"cards\">\n"
        .to_owned();
    for identity in identities {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("identity", identity);
        if let Some(route) = route {
            query.append_pair("route", route);
        }
        let _ = writeln!(
            main,
            "<li><a class=\"button\" href=\"/connect?{}\">Sign in with <bdi>{}</bdi></a></li>",
            whole(&query.finish()),
            text(identity)
        );
    }
    main.push_str("</ul>\n");
    page("Sign in", String::new(), main)
}

/// Nobody can sign in, at all or for this service.
pub fn nobody(at_all: bool) -> Response<Body> {
    let what = match at_all {
        true => {
            "No identity of this gateway is set up for people to sign in here. Accounts can still be connected from a \
             terminal, with <code>portcullis connect</code>."
        }
        false => {
            "None of the identities that this service takes is set up for people to sign in here. It can still be connected \
             from a terminal, with <code>portcullis connect</code>."
        }
    };
    let main = format!(
        "<h1>There is no way to sign in</h1>\n<p>{what}</p>\n<p class=\"soft\">Whoever runs this gateway can set \
         <code>identity.NAME.login</code>.</p>\n"
    );
    page("There is no way to sign in", String::new(), main)
}

/// On the way to a service's login. A form of ours may not lead to another site by itself (`form-action`), a page may.
pub fn leaving(visitor: &Visitor, route: &str, url: &url::Url) -> Response<Body> {
    let main = format!(
        "<h1>Going to the login of <bdi>{}</bdi></h1>\n<p>You are taken to <strong><bdi>{}</bdi></strong>. Check that address \
         before you type a password there.</p>\n\
         <p><a class=\"button\" rel=\"noreferrer\" href=\"{}\">Continue</a> <a class=\"button plain\" href=\"/connect\">Back</a></p>\n",
        text(route),
        text(&url.origin().ascii_serialization()),
        whole(url.as_str()),
    );
    Page {
        title: "Going to the login",
        aside: who(visitor),
        main,
        leads_to: Some(url.as_str()),
    }
    .respond(StatusCode::OK)
}

/// The answer to a login that was begun in a terminal.
pub fn terminal(route: &str, address: &str) -> Response<Body> {
    let main = format!(
        "<h1>Copy this address into your terminal</h1>\n\
         <p>A login for <strong><bdi>{}</bdi></strong> was begun there with <code>portcullis connect</code>, and ends there. \
         Nothing has been connected yet.</p>\n\
         <label for=\"address\">The whole address of this page</label>\n\
         <textarea id=\"address\" readonly autofocus spellcheck=\"false\" aria-describedby=\"care\">{}</textarea>\n\
         <div class=\"note bad\" id=\"care\"><p>Only if it was you who began it, in your own terminal. Give this address to \
         nobody: with it they could join your account to theirs.</p></div>\n",
        text(route),
        whole(address),
    );
    page("Copy this address into your terminal", String::new(), main)
}

/// After signing out.
pub fn signed_out() -> Response<Body> {
    let main = "<h1>You are signed out</h1>\n\
        <p>Your connections stay, and your agents can go on using them. You may still be signed in to your organisation’s \
        login itself.</p>\n<p><a class=\"button\" href=\"/connect\">Sign in again</a></p>\n";
    page("You are signed out", String::new(), main.to_owned())
}

fn page(title: &str, aside: String, main: String) -> Response<Body> {
    Page {
        title,
        aside,
        main,
        leads_to: None,
    }
    .respond(StatusCode::OK)
}

fn time(at: UnixSeconds) -> String {
    let at = i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
    at.map_or_else(String::new, |at| {
        format!("<time datetime=\"{at}\">{}</time>", at.strftime("%-d %B %Y, %H:%M UTC"))
    })
}
