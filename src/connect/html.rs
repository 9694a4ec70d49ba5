//! HTML that can't be broken out of, and the frame that every page stands in.
//!
//! 1. Whatever isn't written here goes through [`text`]: markup characters become references, and control characters,
//!    which could hide or reorder what is read, the replacement character.
//! 2. A page is one document: no script, one style sheet within it, nothing loaded from anywhere. The policy that says so
//!    names the style sheet by its hash, so that no other style applies either.
//! 3. Pages are nobody's to frame, to cache or to index.

use std::fmt::{self, Display};
use std::sync::LazyLock;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};

use crate::edge::{Body, full};

/// Characters of a text somebody else chose.
const MAX_TEXT: usize = 200;

const STYLE: &str = include_str!("style.css");

/// `form-action` names nobody else: where a form leads on to another site, a page says so and leads there by itself.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    );
    HeaderValue::try_from(policy).expect("base64 is a header value")
});

/// Other people's text, cut at 200 characters, for between tags and in quoted attributes.
pub fn text(text: &str) -> Text<'_> {
    Text(text, MAX_TEXT)
}

/// Text that must stay whole, such as an address.
pub fn whole(text: &str) -> Text<'_> {
    Text(text, usize::MAX)
}

/// See [`text`].
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(&'a str, usize);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for (place, character) in self.0.chars().enumerate() {
            if place == self.1 {
                return f.write_char('…');
            }
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                character if hides(character) => f.write_char(char::REPLACEMENT_CHARACTER)?,
                character => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// Control characters, and those that turn the direction of what follows.
fn hides(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// One page.
pub struct Page<'a> {
    /// Plain text.
    pub title: &'a str,
    /// Within `header`, beside the gate's name: HTML.
    pub aside: String,
    /// Within `main`: HTML.
    pub main: String,
    /// Where the page leads by itself, at once.
    pub leads_to: Option<&'a str>,
}

impl Page<'_> {
    /// The page as a response.
    pub fn respond(&self, status: StatusCode) -> Response<Body> {
        let leads = self.leads_to.map_or_else(String::new, |url| {
            format!("<meta http-equiv=\"refresh\" content=\"0;url={}\">\n", whole(url))
        });
        let html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"robots\" content=\"noindex\">\n\
             {leads}<title>{title} · Portcullis</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <header><p class=\"gate\">Portcullis</p>{aside}</header>\n<main>\n{main}</main>\n</body>\n</html>\n",
            title = text(self.title),
            aside = self.aside,
            main = self.main,
        );
        let mut response = Response::new(full(html));
        *response.status_mut() = status;
        guard(&mut response);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        response
    }
}

/// Puts the headers on a response that all of ours to browsers have.
pub fn guard(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    for (name, value) in [
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // `no-referrer` would make browsers send `Origin: null` with our own forms (Fetch, "append a request Origin
        // header"), and a check of the origin would have nothing to go by. Other sites get no referrer either way.
        (REFERRER_POLICY, "same-origin"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(
            text("<a href=\"x\" class='y'>&amp;</a>").to_string(),
            "&lt;a href=&quot;x&quot; class=&#39;y&#39;&gt;&amp;amp;&lt;/a&gt;"
        );
        assert_eq!(
            text("a\u{202e}b\r\nc\0\u{200f}").to_string(),
            "a\u{fffd}b\u{fffd}\u{fffd}c\u{fffd}\u{fffd}"
        );
        assert_eq!(text("Zoë 佐藤").to_string(), "Zoë 佐藤");
        assert_eq!(text(&"é".repeat(300)).to_string(), format!("{}…", "é".repeat(200)));
        assert_eq!(whole(&"é".repeat(300)).to_string(), "é".repeat(300));
    }

    #[tokio::test]
    async fn a_page_is_guarded_and_its_style_is_the_one_that_is_named() {
        let page = Page {
            title: "<t>",
            aside: String::new(),
            main: "<h1>Hello</h1>\n".to_owned(),
            leads_to: Some("https://login.example/?a=1&b=\"2\""),
        };
        let response = page.respond(StatusCode::OK);
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert_eq!(response.headers()[X_FRAME_OPTIONS], "DENY");
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let html = std::str::from_utf8(&body).unwrap();
        let style = html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let hash = STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));
        assert!(policy.contains(&format!("style-src 'sha256-{hash}'")), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"));
        assert!(html.contains("content=\"0;url=https://login.example/?a=1&amp;b=&quot;2&quot;\""));
        assert!(html.contains("<title>&lt;t&gt; ·"));
        assert!(!html.contains("style=") && !html.contains("<script") && !html.contains(" on"));
    }
}
