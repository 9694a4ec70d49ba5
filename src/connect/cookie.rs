//! The two cookies of the gateway's pages.
//!
//! 1. `__Host-`: the browser takes them over TLS only, for this host alone, and no sibling host can set them
//!    (RFC 6265bis section 4.1.3.2). `HttpOnly`: no script reads them. `SameSite=Lax`: they come along when an
//!    authorization server sends the browser back, and with no form or frame of another site.
//! 2. On plain http, which is loopback (`listen.public_url` allows nothing else), browsers disagree about `Secure`, so
//!    the names stand there without prefix and the cookies without it.
//! 3. A cookie that comes twice is none: one of the two is somebody else's.

use http::header::{COOKIE, HeaderMap, HeaderValue};

/// How the cookies are spelled here.
#[derive(Clone, Copy, Debug)]
pub struct Jar {
    secure: bool,
}

/// A cookie of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookie {
    /// Who is signed in.
    Visitor,
    /// A sign-in under way.
    SignIn,
}

impl Jar {
    /// For pages under this URL.
    pub fn new(public_url: &str) -> Self {
        Self {
            secure: public_url.starts_with("https://"),
        }
    }

    fn name(self, cookie: Cookie) -> &'static str {
        match (cookie, self.secure) {
            (Cookie::Visitor, true) => "__Host-portcullis",
            (Cookie::Visitor, false) => "portcullis",
            (Cookie::SignIn, true) => "__Host-portcullis-sign-in",
            (Cookie::SignIn, false) => "portcullis-sign-in",
        }
    }

    /// The cookie's value, if it came once.
    pub fn read(self, headers: &HeaderMap, cookie: Cookie) -> Option<&str> {
        let name = self.name(cookie);
        // HTTP/2 may split the header (RFC 9113 section 8.2.3).
        let mut found = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|header| header.to_str().ok())
            .flat_map(|header| header.split(';'))
            .filter_map(|pair| pair.trim_matches([' ', '\t']).split_once('='))
            .filter(|(found, _)| *found == name)
            .map(|(_, value)| value);
        let value = found.next();
        if found.next().is_some() { None } else { value }
    }

    /// Sets the cookie for so many seconds. The value is base64url.
    pub fn set(self, cookie: Cookie, value: &str, seconds: u64) -> HeaderValue {
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!(
            "{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}",
            self.name(cookie)
        );
        HeaderValue::try_from(text).expect("base64url is a cookie's value")
    }

    /// Takes the cookie away.
    pub fn clear(self, cookie: Cookie) -> HeaderValue {
        self.set(cookie, "", 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (COOKIE, HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_cookie_is_read_when_it_came_once() {
        let jar = Jar::new("https://mcp.example.com");
        for (values, expected) in [
            (&["__Host-portcullis=a"][..], Some("a")),
            (&["x=1; __Host-portcullis=a; y=2"], Some("a")),
            (&["x=1", "__Host-portcullis=a"], Some("a")),
            (&["__Host-portcullis=a; __Host-portcullis=a"], None),
            (&["__Host-portcullis=a", "__Host-portcullis=b"], None),
            (&["portcullis=a"], None),
            (&["__host-portcullis=a"], None),
            (&["__Host-portcullis"], None),
            (&["__Host-portcullis=a=b"], Some("a=b")),
            (&[], None),
        ] {
            assert_eq!(jar.read(&headers(values), Cookie::Visitor), expected, "{values:?}");
        }
    }

    #[test]
    fn only_over_tls_there_is_a_prefix() {
        let tls = Jar::new("https://mcp.example.com");
        assert_eq!(
            tls.set(Cookie::Visitor, "v", 60),
            "__Host-portcullis=v; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
        );
        let loopback = Jar::new("http://127.0.0.1:8080");
        assert_eq!(
            loopback.clear(Cookie::SignIn),
            "portcullis-sign-in=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"
        );
        assert_eq!(loopback.read(&headers(&["__Host-portcullis=a"]), Cookie::Visitor), None);
    }
}
