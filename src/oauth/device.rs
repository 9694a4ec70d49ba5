//! Logins without a browser here: RFC 8628, as far as the asking and the waiting go.
//!
//! 1. Five seconds between two polls unless the issuer says longer; `slow_down` adds five for good, and nothing shortens
//!    the pause again (r23).
//! 2. An issuer that can't be reached is asked again, each time after twice the pause; when it answers, the pause is what
//!    it was (section 3.5).
//! 3. `access_denied`, `expired_token` and anything else that isn't "not yet" ends it; so does the end of the codes, and
//!    30 minutes whatever the issuer says. An error with status 200 is an error (r23).
//! 4. What a person is shown is printable and bounded, and the address they are sent to is http or https.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use url::Url;

use super::TokenError;
use crate::authn::strict_json;
use crate::secret::Secret;

/// RFC 8628 section 3.2.
const INTERVAL: Duration = Duration::from_secs(5);

/// What `slow_down` adds (section 3.5).
const SLOWER: Duration = Duration::from_secs(5);

/// Longest pause that an issuer may ask for, and that failures lead to.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Longest that anybody is waited for.
const MAX_WAIT: Duration = Duration::from_secs(30 * 60);

/// Longest code that a person is asked to type.
const MAX_USER_CODE: usize = 64;

const MAX_DEVICE_CODE: usize = 8 * 1024;

/// Why a login by device code came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("the issuer has no device authorization endpoint")]
    Unsupported,
    #[error("the issuer's device codes can't be used: {0}")]
    Answer(&'static str),
    #[error("the login was refused")]
    Denied,
    #[error("the code has expired")]
    Expired,
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// The codes that an issuer gave (section 3.2). Has no `Debug`: the device code is a secret.
pub(super) struct Codes {
    pub(super) device_code: Secret,
    pub(super) user_code: String,
    pub(super) verification_uri: Url,
    pub(super) verification_uri_complete: Option<Url>,
    pub(super) lifetime: Duration,
    pub(super) interval: Duration,
}

impl Codes {
    pub(super) fn parse(document: &[u8]) -> Result<Self, DeviceError> {
        use DeviceError::Answer;
        let answer =
            strict_json::object(document).ok_or(Answer("it is no JSON object, or a key stands twice in it"))?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str);
        let device_code = text("device_code").ok_or(Answer("no device_code"))?;
        if device_code.is_empty() || device_code.len() > MAX_DEVICE_CODE {
            return Err(Answer("device_code is empty or too long"));
        }
        let user_code = text("user_code").ok_or(Answer("no user_code"))?;
        let typed = user_code.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
        if user_code.trim().is_empty() || user_code.len() > MAX_USER_CODE || !typed {
            return Err(Answer("user_code can't be typed"));
        }
        let address = |key| match text(key) {
            // `verification_url` is what it was called in drafts, and still is by some.
            None if key == "verification_uri" => text("verification_url").map(page),
            given => given.map(page),
        };
        let verification_uri = address("verification_uri").ok_or(Answer("no verification_uri"))?;
        // REQUIRED, and still left out by some.
        let lifetime = match answer.get("expires_in") {
            None => MAX_WAIT,
            Some(value) => seconds(value).ok_or(Answer("expires_in is not a number"))?,
        };
        let interval = match answer.get("interval") {
            None => INTERVAL,
            Some(value) => seconds(value).ok_or(Answer("interval is not a number"))?,
        };
        Ok(Self {
            device_code: Secret::new(device_code),
            user_code: user_code.to_owned(),
            verification_uri: verification_uri.ok_or(Answer("verification_uri is no web address"))?,
            verification_uri_complete: address("verification_uri_complete").flatten(),
            lifetime: lifetime.min(MAX_WAIT),
            interval: interval.clamp(Duration::from_secs(1), MAX_PAUSE),
        })
    }
}

/// Whole seconds, also of issuers that write them as text; a negative number is none.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number
            .as_u64()
            .or_else(|| number.as_f64().map(|seconds| seconds as u64)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    seconds.map(Duration::from_secs)
}

/// An address that a person can be sent to.
fn page(url: &str) -> Option<Url> {
    let url = Url::parse(url).ok()?;
    let anonymous = url.username().is_empty() && url.password().is_none();
    (matches!(url.scheme(), "https" | "http") && url.host().is_some() && anonymous).then_some(url)
}

/// When to ask next.
struct Pace {
    interval: Duration,
    /// In a row.
    failures: u32,
}

impl Pace {
    fn pause(&self) -> Duration {
        let backed_off = self.interval.saturating_mul(1_u32 << self.failures.min(16));
        backed_off.min(MAX_PAUSE.max(self.interval))
    }

    /// What an answer means: an error ends it.
    fn after(&mut self, refusal: TokenError) -> Result<(), DeviceError> {
        match refusal {
            TokenError::Unreachable(_) => {
                self.failures += 1;
                return Ok(());
            }
            TokenError::Rejected {
                error: "authorization_pending",
            } => {}
            TokenError::Rejected { error: "slow_down" } => self.interval = self.interval.saturating_add(SLOWER),
            TokenError::Rejected { error: "access_denied" } => return Err(DeviceError::Denied),
            TokenError::Rejected { error: "expired_token" } => return Err(DeviceError::Expired),
            other => return Err(other.into()),
        }
        self.failures = 0;
        Ok(())
    }
}

/// Asks until there is an answer or the codes are over.
pub(super) async fn poll<T>(
    interval: Duration,
    deadline: Instant,
    ask: impl AsyncFn() -> Result<T, TokenError>,
) -> Result<T, DeviceError> {
    let mut pace = Pace { interval, failures: 0 };
    loop {
        let next = Instant::now() + pace.pause();
        if next >= deadline {
            sleep_until(deadline).await;
            return Err(DeviceError::Expired);
        }
        sleep_until(next).await;
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(refusal) => pace.after(refusal)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PENDING: TokenError = TokenError::Rejected {
        error: "authorization_pending",
    };
    const SLOW_DOWN: TokenError = TokenError::Rejected { error: "slow_down" };
    const UNREACHABLE: TokenError = TokenError::Unreachable("no answer in time");

    /// What comes of these answers, and how many seconds after the one before each question was asked.
    async fn course(
        interval: u64,
        lifetime: u64,
        answers: impl IntoIterator<Item = TokenError>,
    ) -> (Result<&'static str, DeviceError>, Vec<u64>) {
        let answers = Mutex::new(answers.into_iter().collect::<Vec<_>>().into_iter());
        let began = Instant::now();
        let asked = Mutex::new(vec![began]);
        let result = poll(
            Duration::from_secs(interval),
            began + Duration::from_secs(lifetime),
            async || {
                asked.lock().unwrap().push(Instant::now());
                answers.lock().unwrap().next().map_or(Ok("token"), Err)
            },
        )
        .await;
        let asked = asked.into_inner().unwrap();
        let pauses = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
        (result, pauses)
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_until_there_is_a_token() {
        let (result, pauses) = course(5, 600, [PENDING, PENDING]).await;
        assert_eq!((result, pauses), (Ok("token"), vec![5, 5, 5]));
    }

    #[tokio::test(start_paused = true)]
    async fn r23_slow_down_adds_five_seconds_for_good() {
        let (result, pauses) = course(5, 600, [SLOW_DOWN, PENDING, SLOW_DOWN, PENDING, PENDING]).await;
        assert_eq!((result, pauses), (Ok("token"), vec![5, 10, 10, 15, 15, 15]));
    }

    #[tokio::test(start_paused = true)]
    async fn r23_a_poll_survives_transport_errors_and_asks_less_often() {
        let (result, pauses) = course(
            5,
            600,
            [
                UNREACHABLE,
                UNREACHABLE,
                PENDING,
                SLOW_DOWN,
                UNREACHABLE,
                UNREACHABLE,
                UNREACHABLE,
                UNREACHABLE,
                PENDING,
            ],
        )
        .await;
        assert_eq!(result, Ok("token"));
        assert_eq!(pauses, [5, 10, 20, 5, 10, 20, 40, 60, 60, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_not_yet_ends_it() {
        let rejected = |error| TokenError::Rejected { error };
        for (answer, error) in [
            (rejected("access_denied"), DeviceError::Denied),
            (rejected("expired_token"), DeviceError::Expired),
            (rejected("invalid_grant"), DeviceError::Token(rejected("invalid_grant"))),
            (rejected("other"), DeviceError::Token(rejected("other"))),
            (
                TokenError::Malformed("no access_token"),
                DeviceError::Token(TokenError::Malformed("no access_token")),
            ),
        ] {
            let (result, pauses) = course(5, 600, [PENDING, answer]).await;
            assert_eq!((result, pauses), (Err(error), vec![5, 5]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_codes() {
        let began = Instant::now();
        let (result, pauses) = course(5, 23, std::iter::repeat_n(PENDING, 100)).await;
        assert_eq!((result, pauses), (Err(DeviceError::Expired), vec![5, 5, 5, 5]));
        assert_eq!(began.elapsed(), Duration::from_secs(23));
        let (result, _) = course(5, 600, std::iter::repeat_n(UNREACHABLE, 1000)).await;
        assert_eq!(result, Err(DeviceError::Expired));
    }

    #[test]
    fn codes_that_can_be_used() {
        let codes = Codes::parse(
            br#"{"device_code":"d","user_code":"WDJB-MJHT","verification_uri":"https://issuer.test/device",
                "verification_uri_complete":"https://issuer.test/device?code=WDJB-MJHT","expires_in":900,"interval":7}"#,
        )
        .ok()
        .unwrap();
        assert_eq!(codes.device_code.expose(), "d");
        assert_eq!(codes.user_code, "WDJB-MJHT");
        assert_eq!(codes.verification_uri.as_str(), "https://issuer.test/device");
        assert_eq!(codes.verification_uri_complete.unwrap().query(), Some("code=WDJB-MJHT"));
        assert_eq!(codes.lifetime, Duration::from_secs(900));
        assert_eq!(codes.interval, Duration::from_secs(7));

        let with = |rest: &str| {
            let document =
                format!(r#"{{"device_code":"d","user_code":"U","verification_url":"https://i.test/d"{rest}}}"#);
            Codes::parse(document.as_bytes()).ok().unwrap()
        };
        let plain = with("");
        assert_eq!(plain.interval, INTERVAL);
        assert_eq!(plain.lifetime, MAX_WAIT);
        assert_eq!(plain.verification_uri_complete, None);
        // A complete address that can't be used is done without.
        assert_eq!(
            with(r#","verification_uri_complete":"javascript:alert(1)""#).verification_uri_complete,
            None
        );
        let odd = with(r#","interval":0,"expires_in":18446744073709551615"#);
        assert_eq!((odd.interval, odd.lifetime), (Duration::from_secs(1), MAX_WAIT));
        assert_eq!(with(r#","interval":1e300"#).interval, MAX_PAUSE);
        assert_eq!(with(r#","interval":"8""#).interval, Duration::from_secs(8));
    }

    #[test]
    fn codes_that_cannot_be_used() {
        let cases = [
            ("", "it is no JSON object, or a key stands twice in it"),
            ("[]", "it is no JSON object, or a key stands twice in it"),
            ("{}", "no device_code"),
            (r#"{"device_code":""}"#, "device_code is empty or too long"),
            (r#"{"device_code":"d"}"#, "no user_code"),
            (r#"{"device_code":"d","user_code":" "}"#, "user_code can't be typed"),
            (
                r#"{"device_code":"d","user_code":"\u001b[2J"}"#,
                "user_code can't be typed",
            ),
            (r#"{"device_code":"d","user_code":"U"}"#, "no verification_uri"),
            (
                r#"{"device_code":"d","user_code":"U","verification_uri":"javascript:alert(1)"}"#,
                "verification_uri is no web address",
            ),
            (
                r#"{"device_code":"d","user_code":"U","verification_uri":"https://a:b@i.test/"}"#,
                "verification_uri is no web address",
            ),
            (
                r#"{"device_code":"d","user_code":"U","verification_uri":"https://i.test/","expires_in":[]}"#,
                "expires_in is not a number",
            ),
            (
                r#"{"device_code":"d","user_code":"U","verification_uri":"https://i.test/","interval":"soon"}"#,
                "interval is not a number",
            ),
        ];
        for (document, reason) in cases {
            let error = Codes::parse(document.as_bytes()).err();
            assert_eq!(error, Some(DeviceError::Answer(reason)), "{document}");
        }
    }
}
