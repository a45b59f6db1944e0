//! Object stores behind one blocking client: folders, S3, Google Cloud Storage, Azure, by the crate `object_store`.
//!
//! Credentials come from the environment and from the files that the services' own tools keep (`~/.aws/credentials`,
//! `GOOGLE_APPLICATION_CREDENTIALS`, ...), and are held by that crate alone.

mod aws;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::future::Future;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use tokio::runtime::{Builder, Runtime};

use crate::http::Connector;
use crate::objects::{Fault, Listed, Objects};
use crate::place::{Place, Service};
use crate::redact;

/// How long a request is tried again for.
const RETRY: Duration = Duration::from_secs(60);
/// How often it is.
const RETRIES: usize = 6;

thread_local! {
    /// Timers for pauses between tries; each thread waits for its own requests.
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

/// A store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    /// What all names begin with.
    prefix: Path,
    place: Place,
}

impl fmt::Debug for Store {
    // What is inside holds credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.shown()).finish()
    }
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: RETRIES,
        retry_timeout: RETRY,
    }
}

/// The variables of the environment that say how services are reached.
///
/// It is not printed: credentials are in it.
#[derive(Clone, Default)]
pub struct Environment(pub BTreeMap<String, String>);

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let unicode = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(unicode).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl Store {
    /// Opens a store with what the environment of this process says. A folder is made; a bucket has to be there, and is asked
    /// nothing yet.
    ///
    /// # Errors
    /// When the folder cannot be made, or what the environment says of a service makes no sense.
    pub fn open(place: &Place) -> Result<Self, Fault> {
        Self::open_in(place, &Environment::of_process())
    }

    /// The same with another environment; Google's and Azure's clients read that of the process.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in(place: &Place, environment: &Environment) -> Result<Self, Fault> {
        let unusable = |error: Error| {
            Fault::Unusable(format!(
                "the store {place} cannot be used: {}",
                redact::message(&error.to_string())
            ))
        };
        let (inner, prefix): (Arc<dyn ObjectStore>, &str) = match place {
            Place::Folder(folder) => {
                let store = folder_store(folder).map_err(|why| {
                    Fault::Unusable(format!("the store {place} cannot be made: {why}"))
                })?;
                (Arc::new(store), "")
            }
            Place::Bucket {
                service,
                bucket,
                prefix,
            } => {
                let store: Arc<dyn ObjectStore> = match service {
                    Service::S3 => Arc::new(
                        aws::builder(environment)
                            .with_bucket_name(bucket)
                            .with_retry(retries())
                            .with_http_connector(Connector)
                            .build()
                            .map_err(unusable)?,
                    ),
                    Service::Gcs => Arc::new(
                        GoogleCloudStorageBuilder::from_env()
                            .with_bucket_name(bucket)
                            .with_retry(retries())
                            .with_http_connector(Connector)
                            .build()
                            .map_err(unusable)?,
                    ),
                    Service::Azure => Arc::new(
                        MicrosoftAzureBuilder::from_env()
                            .with_container_name(bucket)
                            .with_retry(retries())
                            .with_http_connector(Connector)
                            .build()
                            .map_err(unusable)?,
                    ),
                };
                (store, prefix)
            }
        };
        Ok(Self {
            inner,
            prefix: Path::from(prefix),
            place: place.clone(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    fn path(&self, name: &str) -> Result<Path, Fault> {
        let whole = match self.prefix.as_ref() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        };
        Path::parse(&whole)
            .map_err(|_| Fault::Unusable(format!("`{name}` cannot be the name of an object")))
    }

    /// Waits for an answer. A folder's is there at once; requests pause between tries, for which there is a timer.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.place {
            Place::Folder(_) => pollster::block_on(work),
            Place::Bucket { .. } => RUNTIME.with(|cell| {
                let runtime = cell.get_or_init(|| {
                    // It has timers alone: nothing of the system is asked for that could be refused.
                    #[allow(clippy::expect_used)]
                    Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .expect("a runtime of one thread")
                });
                runtime.block_on(work)
            }),
        }
    }

    fn fault(&self, doing: &str, error: &Error) -> Fault {
        let why = redact::message(&error_text(error));
        let place = &self.place;
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Fault::Refused(format!("the store {place} does not let us {doing}: {why}"))
            }
            // A listing's refusal has no kind of its own.
            _ if is_refusal(&why) => {
                Fault::Refused(format!("the store {place} does not let us {doing}: {why}"))
            }
            Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::InvalidPath { .. } => {
                Fault::Unusable(format!("the store {place} cannot {doing}: {why}"))
            }
            _ => Fault::Unreachable(format!("the store {place} did not {doing}: {why}")),
        }
    }
}

/// The innermost reason and what was said of it: those in between repeat it.
fn error_text(error: &Error) -> String {
    let text = error.to_string();
    if redact::code(&text).is_some() {
        return text;
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Whether what a store said is that it does not let us.
fn is_refusal(said: &str) -> bool {
    const CODES: [&str; 6] = [
        "AccessDenied",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "401 Unauthorized",
        "403 Forbidden",
    ];
    CODES.iter().any(|code| said.contains(code))
}

fn folder_store(folder: &FilePath) -> Result<LocalFileSystem, String> {
    fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    LocalFileSystem::new_with_prefix(folder).map_err(|error| error.to_string())
}

impl Objects for Store {
    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault> {
        let path = self.path(name)?;
        let options = PutOptions::from(PutMode::Create);
        let put = self.inner.put_opts(&path, PutPayload::from(bytes), options);
        match self.wait(put) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.fault("create an object", &error)),
        }
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault> {
        let path = self.path(name)?;
        let put = self.inner.put(&path, PutPayload::from(bytes));
        (self.wait(put).map(drop)).map_err(|error| self.fault("take an object", &error))
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let path = self.path(name)?;
        let got = self.wait(async { self.inner.get(&path).await?.bytes().await });
        match got {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.fault("give an object", &error)),
        }
    }

    fn has(&self, name: &str) -> Result<bool, Fault> {
        let path = self.path(name)?;
        match self.wait(self.inner.head(&path)) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.fault("say whether it has an object", &error)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
        let path = self.path(folder.trim_end_matches('/'))?;
        let found = self.wait(self.inner.list(Some(&path)).try_collect::<Vec<_>>());
        let found = match found {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(self.fault("list objects", &error)),
        };
        let skip = match self.prefix.as_ref() {
            "" => 0,
            prefix => prefix.len() + 1,
        };
        let mut listed: Vec<Listed> = (found.into_iter())
            .filter_map(|one| {
                Some(Listed {
                    name: one.location.as_ref().get(skip..)?.to_owned(),
                    modified: u64::try_from(one.last_modified.timestamp_millis()).unwrap_or(0),
                    size: one.size,
                })
            })
            .collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn delete(&self, name: &str) -> Result<(), Fault> {
        let path = self.path(name)?;
        match self.wait(self.inner.delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.fault("remove an object", &error)),
        }
    }

    fn shown(&self) -> String {
        self.place.to_string()
    }
}
