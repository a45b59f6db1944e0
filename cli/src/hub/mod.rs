//! Models on a hub: `hf://owner/name[@revision][/path]`, fetched into the cache that the hub's own programs use.
//!
//! Written here, as the crate `hf-hub` does not fit: version 1 is asynchronous and brings an HTTP stack and a runtime; the
//! blocking client of version 0.5 does not compare a download with its digest, appends whole files to partial ones, takes
//! paths from the server unchecked, and has no offline mode. Here a file gets its name only after its digest was compared
//! with the one that the hub announced. HTTP and TLS are `ureq`'s and `rustls`'s.

mod client;
mod consent;
mod files;
mod store;
mod tell;

use std::path::PathBuf;
use std::time::Duration;

use retouch_graph::problem::Code;
use retouch_graph::{Cancel, Withheld};

pub use consent::{Consent, Foreign, Permit};
pub use files::HubFiles;
pub use tell::Teller;

use crate::Failure;

/// Where models are fetched from unless HF_ENDPOINT names another hub.
const ENDPOINT: &str = "https://huggingface.co";
/// How long a hub may keep silent unless HF_HUB_DOWNLOAD_TIMEOUT says otherwise.
const SILENCE: Duration = Duration::from_secs(30);

/// Which hub, with what, and where to.
#[derive(Clone)]
pub struct Settings {
    /// The hub's address without a `/` at its end.
    pub endpoint: String,
    /// The folder of the cache: `models--owner--name` and the like are in it.
    pub cache: PathBuf,
    /// The access token, sent to this hub only.
    pub token: Option<String>,
    /// Whether nothing is fetched, whatever is missing.
    pub offline: bool,
    /// How long the hub may keep silent.
    pub silence: Duration,
    /// What of the environment makes no sense.
    pub fault: Option<Withheld>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token must not appear in logs.
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// The value of an environment variable; none when it is empty.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// Whether an environment variable says yes, by the words that the hub's programs know.
fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| {
        ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
    })
}

fn folder(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    let path = PathBuf::from(value);
    // As the hub's programs do it, `~` is the user's folder even where no shell has seen it.
    match (path.strip_prefix("~"), dirs::home_dir()) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

impl Settings {
    /// Reads the environment variables that the hub's own programs read: HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_TOKEN,
    /// HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT. What makes no sense is told when a hub is needed.
    #[must_use]
    pub fn of_environment(offline: bool) -> Self {
        let mut fault = None;
        let mut wrong = |message: String, help: &str| {
            fault.get_or_insert_with(|| withheld(Code::Usage, message, help));
        };
        let home = folder("HF_HOME").or_else(|| {
            let cache = folder("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.unwrap_or_else(|| {
            wrong(
                "there is no folder for models of hubs: this user has no home folder".to_owned(),
                "name a folder in HF_HUB_CACHE",
            );
            PathBuf::new()
        });
        let cache = std::path::absolute(&cache).unwrap_or(cache);
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if client::origin(&endpoint).is_none() {
            wrong(
                "HF_ENDPOINT is not a valid address".to_owned(),
                "write `https://` and a host, without a name or password in it, or unset it",
            );
        }
        let token = variable("HF_TOKEN")
            .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
            .map(|token| ("HF_TOKEN".to_owned(), token));
        let token = token.or_else(|| {
            let file = folder("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")))?;
            let text = retouch_graph::files::read_text(&file, 1 << 16).ok()?;
            let token = text.trim().to_owned();
            (!token.is_empty()).then(|| (file.display().to_string(), token))
        });
        let token = token.and_then(|(from, token)| {
            let sound = token.bytes().all(|b| b.is_ascii_graphic());
            if !sound {
                wrong(
                    format!("the token in {from} is invalid: it contains spaces or other characters that tokens cannot have"),
                    "put the token alone there, or take it away",
                );
            }
            sound.then_some(token)
        });
        let silence =
            variable("HF_HUB_DOWNLOAD_TIMEOUT").map_or(SILENCE, |text| match text.parse::<u64>() {
                Ok(seconds @ 1..=86_400) => Duration::from_secs(seconds),
                _ => {
                    wrong(
                        format!(
                            "HF_HUB_DOWNLOAD_TIMEOUT is a number of seconds, not `{}`",
                            text.escape_debug()
                        ),
                        "give a whole number from 1 to 86400, or unset it",
                    );
                    SILENCE
                }
            });
        Self {
            endpoint,
            cache,
            token,
            offline: offline || is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            silence,
            fault,
        }
    }
}

/// Whether missing files are downloaded, and where progress is reported.
#[derive(Clone)]
pub enum Mode {
    /// Only the cache is used; missing files are reported.
    Look,
    /// What is missing is fetched.
    Fetch {
        /// Ends a fetch; what came so far stays.
        cancel: Cancel,
        /// Hears how it gets on.
        teller: std::sync::Arc<Teller>,
        /// What of it is fetched for a file that somebody else made.
        permit: Permit,
    },
}

fn withheld(code: Code, message: impl Into<String>, help: impl Into<String>) -> Withheld {
    Withheld {
        code,
        message: message.into(),
        help: help.into(),
        later: false,
    }
}

impl Mode {
    /// Fetches what is missing, and tells programs or people, or nobody. For a file that somebody else made nothing is
    /// fetched unless the user agrees on the terminal.
    #[must_use]
    pub fn fetching(cancel: &Cancel, json: bool, quiet: bool) -> Self {
        Self::Fetch {
            cancel: cancel.clone(),
            teller: std::sync::Arc::new(Teller::new(json, quiet)),
            permit: Permit {
                ask: Permit::can_ask(json, quiet),
                ..Permit::default()
            },
        }
    }

    /// The same, with what the command line permits for files that somebody else made: all that they name, and the
    /// repositories `named`.
    #[must_use]
    pub fn permitting(mut self, all: bool, named: &[String]) -> Self {
        if let Self::Fetch { permit, .. } = &mut self {
            permit.all = all;
            permit.named = named.to_vec();
        }
        self
    }

    /// What is permitted for a file that somebody else made.
    #[must_use]
    pub fn permit(&self) -> Permit {
        match self {
            Self::Look => Permit::default(),
            Self::Fetch { permit, .. } => permit.clone(),
        }
    }
}

/// How a command ends whose fetch was interrupted.
#[must_use]
pub fn interrupted() -> Failure {
    Failure::interrupted(
        "nothing was run; what was downloaded is kept, and the same command resumes from there",
    )
}
