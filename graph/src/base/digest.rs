//! Digests of content.

/// The digest of a file's content: BLAKE3, 256 bits.
pub type Digest = [u8; 32];

/// The first eight hexadecimal digits of a digest.
#[must_use]
pub fn short(digest: &Digest) -> String {
    hex(digest)[..8].to_owned()
}

/// A digest in hexadecimal digits.
#[must_use]
pub fn hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// Computes the digest of content that arrives in pieces.
#[derive(Debug, Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces.
    #[must_use]
    pub fn finish(&self) -> Digest {
        *self.0.finalize().as_bytes()
    }
}

/// Parses a digest of 64 hexadecimal digits.
#[must_use]
pub fn parse_hex(text: &str) -> Option<Digest> {
    let hash = blake3::Hash::from_hex(text).ok()?;
    Some(*hash.as_bytes())
}
