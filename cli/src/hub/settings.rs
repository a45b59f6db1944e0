//! Which hub, with what, and where to: what the environment says.

use std::path::PathBuf;
use std::time::Duration;

use retouch_graph::Withheld;
use retouch_graph::problem::Code;
use ureq::http::Uri;

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
    /// HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT. What is invalid is reported when a hub is needed.
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
        if origin(&endpoint).is_none() {
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
                    "put only the token there, or remove it",
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

/// The scheme, host and port of an address.
pub fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    // A name and password in the address would be shown in messages.
    if uri.authority()?.as_str().contains('@') {
        return None;
    }
    let host = uri.host()?.to_ascii_lowercase();
    Some((scheme, host, uri.port_u16().unwrap_or(port)))
}

pub(super) fn withheld(
    code: Code,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Withheld {
    Withheld {
        code,
        message: message.into(),
        help: help.into(),
        later: false,
    }
}
