//! Digests of large files that outlive the process.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::base::digest::Digest;
use crate::files::read::open;
use crate::files::stamp::FileIdentity;
use crate::files::write::{self, Access};

/// Smaller files are hashed in no time.
const LARGE: u64 = 1 << 20;
/// A file that was changed so shortly ago may change again within the resolution of its time.
const SETTLED: Duration = Duration::from_secs(2);
/// The most digests that are stored.
const MOST_KNOWN: usize = 10_000;
/// The digest of a file, as long as it is the file that it was.
#[derive(Debug)]
pub(super) struct KeptDigest {
    pub(super) stamp: FileIdentity,
    pub(super) digest: Digest,
    /// Whether an earlier process stored it.
    pub(super) remembered: bool,
    /// Whether this process may store it.
    pub(super) lasts: bool,
}

/// The digests of an earlier process, by what [`store`] was given.
pub(super) fn load(memo: &Path) -> HashMap<Digest, KeptDigest> {
    let known = records(memo).unwrap_or_default();
    known
        .into_iter()
        .filter_map(|known| {
            let since = Duration::from_secs(known.seconds)
                .checked_add(Duration::from_nanos(known.nanoseconds.into()))?;
            let stamp = FileIdentity {
                size: known.size,
                modified: Some(UNIX_EPOCH.checked_add(since)?),
                inode: known.inode,
                changed: known.changed,
            };
            let place = blake3::Hash::from_hex(&known.place).ok()?;
            let digest = blake3::Hash::from_hex(&known.digest).ok()?;
            let kept = KeptDigest {
                stamp,
                digest: *digest.as_bytes(),
                remembered: true,
                lasts: true,
            };
            Some((*place.as_bytes(), kept))
        })
        .collect()
}

/// Stores the digests of large files that have not changed for a while.
pub(super) fn store(memo: &Path, digests: &HashMap<Digest, KeptDigest>) {
    let now = SystemTime::now();
    let known: Vec<SealedRecord> = digests
        .iter()
        .filter(|(_, kept)| kept.lasts)
        .filter_map(|(place, kept)| {
            let (stamp, digest) = (&kept.stamp, &kept.digest);
            let modified = stamp.modified?;
            let settled = now.duration_since(modified).ok()? >= SETTLED;
            let since = modified.duration_since(UNIX_EPOCH).ok()?;
            (settled && stamp.size >= LARGE).then(|| DigestRecord {
                place: blake3::Hash::from_bytes(*place).to_hex().to_string(),
                size: stamp.size,
                seconds: since.as_secs(),
                nanoseconds: since.subsec_nanos(),
                inode: stamp.inode,
                changed: stamp.changed,
                digest: blake3::Hash::from_bytes(*digest).to_hex().to_string(),
            })
        })
        .filter_map(SealedRecord::new)
        .take(MOST_KNOWN)
        .collect();
    if known.is_empty() {
        return;
    }
    let known = Memo {
        schema: SCHEMA.to_owned(),
        known,
    };
    // A failure costs only time: the next process hashes anew.
    if let Ok(text) = serde_json::to_vec(&known) {
        let _ = write::replace(memo, &text, Access::Private);
    }
}

/// What stands under `schema` in the file of stored digests.
const SCHEMA: &str = "retouch-digests/2";
/// The longest file of stored digests: [`MOST_KNOWN`] of them take less than half of it.
const MEMO_BYTES: u64 = 8 << 20;

/// The digests that outlive the process.
#[derive(Serialize, Deserialize)]
struct Memo {
    schema: String,
    known: Vec<SealedRecord>,
}

/// A stored digest with a checksum: a disk or an editor that changes one digit of it must not give a file the digest of
/// another.
#[derive(Serialize, Deserialize)]
struct SealedRecord {
    #[serde(flatten)]
    known: DigestRecord,
    check: String,
}

impl SealedRecord {
    fn new(known: DigestRecord) -> Option<Self> {
        let check = known.check()?;
        Some(Self { known, check })
    }

    fn verified(self) -> Option<DigestRecord> {
        (self.known.check()? == self.check).then_some(self.known)
    }
}

/// The records that an earlier process stored. They are trusted only from a file that nobody else could write: whoever
/// sets a file's digest can pass one model off as another.
fn records(memo: &Path) -> Option<Vec<DigestRecord>> {
    let file = open(memo).ok()?;
    if !is_own(&file.metadata().ok()?) {
        tracing::warn!(
            "{} belongs to another user, or others may write it: it is not used",
            memo.display()
        );
        return None;
    }
    let mut text = Vec::new();
    file.take(MEMO_BYTES).read_to_end(&mut text).ok()?;
    let memo: Memo = serde_json::from_slice(&text).ok()?;
    let known = memo.known.into_iter().filter_map(SealedRecord::verified);
    (memo.schema == SCHEMA).then(|| known.collect())
}

/// Whether a file is this user's, and nobody else may write it. Where files have no owners it is.
fn is_own(metadata: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // SAFETY: the call has no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        metadata.uid() == user && metadata.mode() & 0o022 == 0
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        true
    }
}

/// A stored digest and the file that it is of.
#[derive(Serialize, Deserialize)]
struct DigestRecord {
    /// A digest of the path: a folder that is shared names no places.
    place: String,
    size: u64,
    seconds: u64,
    nanoseconds: u32,
    inode: (u64, u64),
    changed: (i64, i64),
    digest: String,
}

impl DigestRecord {
    /// A checksum of all fields.
    fn check(&self) -> Option<String> {
        let text = serde_json::to_vec(self).ok()?;
        let mut hasher = blake3::Hasher::new_derive_key("retouch 2026 known digests");
        hasher.update(&text);
        Some(hasher.finalize().to_hex()[..32].to_owned())
    }
}
