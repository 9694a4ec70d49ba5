//! Seals. Input: where to tamper (two bytes) and with what (one), then a text.
//!
//! Oracle: no text opens under a key that never sealed anything; a seal opens to what was sealed, for its purpose only; and not with any one
//! character changed, dropped or added.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use portcullis::config::SealKey;
use portcullis::session::{MAX_SEALED, Purpose, SealError, Sealer};
use zeroize::Zeroizing;

static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(&[SealKey(Zeroizing::new([7; 32]))]));
/// libFuzzer learns the texts that are compared, real seals among them, and tries them again.
static UNUSED: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(&[SealKey(Zeroizing::new([8; 32]))]));

/// Version, key id, nonce and tag, in bytes.
const OVERHEAD: usize = 1 + 4 + 12 + 16;

const PURPOSES: [Purpose; 5] = [
    Purpose::Session,
    Purpose::SseSession,
    Purpose::Task,
    Purpose::AuditArguments,
    Purpose::DpopNonce,
];

fuzz_target!(|input: &[u8]| {
    let [high, low, with, text @ ..] = input else {
        return;
    };
    let purpose = PURPOSES[usize::from(*with) % PURPOSES.len()];
    if let Ok(text) = std::str::from_utf8(text) {
        assert_eq!(UNUSED.open(purpose, text), Err(SealError::Invalid));
    }
    let sealed = match SEALER.seal(purpose, text) {
        Ok(sealed) => sealed,
        Err(error) => {
            assert!(error == SealError::TooLong && text.len() + OVERHEAD > MAX_SEALED / 4 * 3);
            return;
        }
    };
    for other in PURPOSES {
        let opened = SEALER.open(other, &sealed);
        assert_eq!(
            opened,
            if other == purpose {
                Ok(text.to_vec())
            } else {
                Err(SealError::Invalid)
            }
        );
    }
    let place = usize::from(u16::from_be_bytes([*high, *low])) % sealed.len();
    let (before, after) = sealed.split_at(place);
    let with = char::from(*with);
    for altered in [
        format!("{before}{with}{}", &after[1..]),
        format!("{before}{}", &after[1..]),
        format!("{before}{with}{after}"),
    ] {
        if altered != sealed {
            assert_eq!(SEALER.open(purpose, &altered), Err(SealError::Invalid), "{altered}");
        }
    }
});
