//! Secrets leave by one named method and by nothing else.
//!
//! [`Secret`] has neither `Debug` nor `Display` nor `Serialize`, so a struct that holds one can't be logged by accident,
//! and its memory is wiped when it is dropped.

use zeroize::Zeroizing;

/// A credential, key or token in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself. Call it only where the secret is put on the wire or into a cipher.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
