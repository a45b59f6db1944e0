//! Where the cache of this user is, how large it may be, and the engine on it.

pub use retouch_diffusion::checkpoint::memory::size;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use retouch_cluster::Place;
use retouch_graph::cache::disk::is_full;
use retouch_graph::engine::DEFAULT_SOURCES;
use retouch_graph::write::{self, Access};
use retouch_graph::{Cache, DiskCache, DiskFiles, Environment, Files, RemoteCache, TieredCache};
use retouch_nodes::payload::decoders;

use crate::args::CacheArgs;
use crate::far::remote::Values;
use crate::{Failure, config};

/// Memory of the host that the cache may take: a quarter of what a small machine has.
const RAM: u64 = 2 << 30;
/// Memory of a device that the cache may take.
const DEVICE: u64 = 2 << 30;
/// Disk that the cache may take.
const DISK: u64 = 10 << 30;

/// The cache's settings: the command line's, else the configuration file's, else the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// The folder of the disk tier and of the journal; `None`: nothing outlives the process.
    pub folder: Option<PathBuf>,
    /// Bytes of each tier.
    pub device: u64,
    /// Bytes of the host's memory.
    pub ram: u64,
    /// Bytes of disk.
    pub disk: u64,
    /// Bytes of keys and values of attention that a run keeps.
    pub sources: u64,
    /// The level below the disk, which several machines share.
    pub remote: Option<Place>,
    /// Whether what is made is written there too.
    pub remote_writes: bool,
}

impl Store {
    /// The settings of a command.
    ///
    /// # Errors
    /// When the configuration file makes no sense.
    pub fn of(args: &CacheArgs) -> Result<Self, Failure> {
        let all = config::get()?;
        let config = all.cache.clone();
        let remote = args.remote_cache.as_ref().or(all.remote_cache.as_ref());
        let remote = remote.map(|place| Place::parse(place)).transpose();
        let remote = remote.map_err(|why| Failure::usage(format!("`--remote-cache`: {why}")))?;
        let folder = args
            .cache_dir
            .clone()
            .or(config.folder)
            .or_else(|| dirs::cache_dir().map(|folder| folder.join("retouch")));
        let disk = args.disk_cache.or(config.disk).unwrap_or(DISK);
        Ok(Self {
            folder: folder.filter(|_| !args.no_cache && disk > 0),
            device: args.device_cache.or(config.device).unwrap_or(DEVICE),
            ram: args.ram_cache.or(config.ram).unwrap_or(RAM),
            disk,
            sources: args
                .source_store
                .or(config.sources)
                .unwrap_or(DEFAULT_SOURCES),
            remote: remote.filter(|_| !args.no_cache),
            remote_writes: !args.remote_read_only,
        })
    }

    /// The same without a folder on disk.
    #[must_use]
    pub fn without_disk(&self) -> Self {
        Self {
            folder: None,
            remote: None,
            ..self.clone()
        }
    }

    /// The disk tier, if there is one.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn open_disk(&self) -> io::Result<Option<DiskCache>> {
        self.folder
            .as_ref()
            .map(|folder| DiskCache::open(folder, self.disk, decoders()))
            .transpose()
    }

    /// The cache. A folder that cannot be made is said and done without.
    #[must_use]
    pub fn cache(&self, environments: Vec<Environment>) -> Arc<TieredCache> {
        if let Some(folder) = &self.folder {
            tidy(folder);
        }
        let disk = self.open_disk().unwrap_or_else(|error| {
            let folder = self.folder.clone().unwrap_or_default();
            warn(&format!(
                "the cache's folder {} cannot be used: {error}; going on without it",
                folder.display()
            ));
            None
        });
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Arc::new(TieredCache::new(
            bytes(self.device),
            bytes(self.ram),
            disk,
            environments,
        ))
    }

    /// The cache with its remote level, if there is one. A store that cannot be opened is said and done without.
    #[must_use]
    pub fn whole_cache(&self, environments: Vec<Environment>) -> Arc<dyn Cache> {
        let local = self.cache(environments);
        let Some(place) = &self.remote else {
            return local;
        };
        match retouch_cluster::Store::open(place) {
            Ok(far) => Arc::new(RemoteCache::new(
                local,
                Box::new(Values(far)),
                decoders(),
                self.remote_writes,
            )),
            Err(fault) => {
                warn(&format!("the remote cache is not used: {fault}"));
                local
            }
        }
    }

    /// What files are read through, with the digests that are known.
    #[must_use]
    pub fn files(&self) -> Arc<dyn Files> {
        Arc::new(DiskFiles::with_memo(self.file("digests.json")))
    }

    /// A file of the cache's folder that is no entry: the journal, the records of plans.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(name))
    }
}

/// Closes to other users what an earlier version left open, and removes what a killed process left behind.
fn tidy(folder: &Path) {
    // A folder that the user named may hold other things: only what is in it is ours.
    let ours = dirs::cache_dir().is_some_and(|own| own.join("retouch") == folder);
    let within = ["runs", "plans", "bundles"].map(|name| folder.join(name));
    for folder in within
        .iter()
        .map(PathBuf::as_path)
        .chain(ours.then_some(folder))
    {
        if folder.is_dir() {
            // That it belongs to another user is reported when it cannot be written.
            let _ = write::private_folder(folder);
            write::remove_stale(folder);
        }
    }
}

/// Writes a file as a whole: to a temporary name, then renamed.
///
/// # Errors
/// When the file system refuses; what was there is then as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write::replace(path, bytes, Access::Usual)
}

/// The same for a file in the cache's folder `cache`: private, and on a full disk entries of the cache are evicted for it.
///
/// # Errors
/// As [`write_whole`].
pub fn write_private(cache: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    making_room(cache, bytes.len() as u64, || {
        write::replace(path, bytes, Access::Private)
    })
}

/// Writes something of about `bytes` bytes; if the disk is full, evicts entries of the cache in the folder `cache` and
/// tries once more.
///
/// # Errors
/// As `write` gives them.
pub fn making_room<T>(
    cache: &Path,
    bytes: u64,
    mut write: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    /// What a folder, a name and a temporary name may take.
    const AROUND: u64 = 16 << 10;
    match write() {
        Err(error) if is_full(&error) => {
            let freed = DiskCache::open(cache, u64::MAX, decoders())
                .and_then(|disk| disk.free(bytes.saturating_add(AROUND)));
            match freed {
                Ok(freed) if freed > 0 => write(),
                _ => Err(error),
            }
        }
        written => written,
    }
}

fn warn(text: &str) {
    crate::output::tell(&format!("warning: {text}"));
}

/// How long ago, for people: `3 min`.
#[must_use]
pub fn ago(time: SystemTime) -> String {
    let seconds = SystemTime::now()
        .duration_since(time)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn on_a_full_disk_entries_of_the_cache_make_room_and_it_is_tried_once_more() {
        let cache = tempfile::tempdir().unwrap();
        let entry = cache.path().join("v1/01").join("01".repeat(32));
        fs::create_dir_all(entry.parent().unwrap()).unwrap();
        fs::write(&entry, vec![0; 100_000]).unwrap();
        let tries = |error: io::ErrorKind, fails: usize| {
            let mut tries = 0;
            let written = making_room(cache.path(), 1000, || {
                tries += 1;
                if tries <= fails {
                    return Err(error.into());
                }
                Ok(())
            });
            (tries, written.is_ok())
        };
        assert_eq!(tries(io::ErrorKind::PermissionDenied, 1), (1, false));
        assert!(entry.exists());
        assert_eq!(tries(io::ErrorKind::StorageFull, 1), (2, true));
        assert!(!entry.exists());
        // Nothing is left to give up.
        assert_eq!(tries(io::ErrorKind::StorageFull, 1), (1, false));
    }

    #[test]
    fn sizes_are_written() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(3 << 29), "1.5 GiB");
    }
}
