//! What is asked of a hub, and what of its answers is believed; why it is not the crate `hf-hub` is said in [`super`].

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;
use std::time::Duration;

use retouch_graph::Withheld;
use retouch_graph::problem::Code;
use retouch_graph::remote::{self, Address};
use retouch_graph::text::shortened;
use serde::{Deserialize, Serialize};
use ureq::http::Response;
use ureq::http::header::HeaderMap;
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::settings::{Settings, origin, withheld};

/// Redirects that are followed; a hub needs two.
const MOST_REDIRECTS: usize = 8;
/// Bytes of a listing that are read: the largest repositories have some ten thousand files.
const MOST_LISTING: u64 = 64 << 20;
/// Files of a repository that are listed.
const MOST_FILES: usize = 100_000;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A file as a repository lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its bytes, when the hub says.
    pub size: Option<u64>,
    /// The SHA-256 digest of a large file, when the hub says.
    pub sha256: Option<String>,
    /// Git's name of a small file, when the hub says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<String>,
}

/// What a commit of a repository holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The files by their paths.
    pub files: BTreeMap<String, Listed>,
}

/// What a hub says of a file before it gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// What its content is called in the cache: its digest.
    pub etag: String,
    /// Its bytes.
    pub size: Option<u64>,
}

impl Announced {
    /// The SHA-256 digest of the content, when that is what it is called by: so it is with large files.
    pub fn sha256(&self) -> Option<&str> {
        is_hex(&self.etag, 64).then_some(self.etag.as_str())
    }

    /// Git's name of the content (the SHA-1 digest of a blob), when that is what it is called by: so it is with small files.
    pub fn git(&self) -> Option<&str> {
        is_hex(&self.etag, 40).then_some(self.etag.as_str())
    }
}

/// Whether a text is a digest of that many lower-case hexadecimal digits.
fn is_hex(text: &str, digits: usize) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == digits && text.bytes().all(hex)
}

/// Why a request did not do.
pub enum Refused {
    /// It may go better another time: the network, a busy hub.
    Passing(Withheld),
    /// It will not.
    Lasting(Withheld),
}

impl Refused {
    /// The message.
    pub fn why(self) -> Withheld {
        match self {
            Self::Passing(why) | Self::Lasting(why) => why,
        }
    }
}

/// Asks one hub.
pub struct Client {
    /// Made for the first request: most commands make none.
    agent: OnceLock<Agent>,
    silence: Duration,
    endpoint: String,
    origin: Option<(String, String, u16)>,
    token: Option<String>,
}

fn agent(silence: Duration) -> Agent {
    let silence = Some(silence);
    Agent::config_builder()
        .http_status_as_error(false)
        // Redirects are followed here, so that the token stays where it belongs.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(silence)
        .timeout_per_read(silence)
        .user_agent(concat!("retouch/", env!("CARGO_PKG_VERSION")))
        // Digests and sizes are of the file as it is.
        .accept_encoding("identity")
        .tls_config(
            TlsConfig::builder()
                .root_certs(retouch_cluster::authorities())
                .build(),
        )
        .build()
        .into()
}

/// A path for a URL: what is not plain is written as `%XX`.
fn escaped(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// A revision for a URL: it is one part, so `/` is escaped too.
fn escaped_revision(revision: &str) -> String {
    escaped(revision).replace('/', "%2F")
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The tag without what marks it as weak, and without its quotes.
fn plain_etag(text: &str) -> &str {
    text.trim_start_matches("W/").trim_matches('"')
}

/// Whether a tag can be the name of a file in the cache.
fn is_etag(text: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (1..=128).contains(&text.len()) && text.bytes().all(sound)
}

impl Client {
    /// Makes a client; nothing is asked yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            agent: OnceLock::new(),
            silence: settings.silence,
            endpoint: settings.endpoint.clone(),
            origin: origin(&settings.endpoint),
            token: settings.token.clone(),
        }
    }

    fn unreachable(&self, why: &str) -> Withheld {
        withheld(
            Code::HubUnreachable,
            format!("the hub {} does not answer: {why}", self.endpoint),
            "check the network and try again, what was fetched is kept; `--offline` uses only what is in the cache",
        )
    }

    fn strange(&self, what: impl std::fmt::Display) -> Withheld {
        withheld(
            Code::HubContent,
            format!(
                "the hub {} gave an unexpected response: {what}",
                self.endpoint
            ),
            "check HF_ENDPOINT and whether a proxy answers in its place",
        )
    }

    /// One request; the token goes to the hub's own host alone.
    fn once(&self, head: bool, url: &str, from: Option<u64>) -> Result<Response<Body>, Refused> {
        let agent = self.agent.get_or_init(|| agent(self.silence));
        let mut request = if head {
            agent.head(url)
        } else {
            agent.get(url)
        };
        if let Some(token) = &self.token
            && origin(url) == self.origin
        {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Refused::Lasting(self.strange("it redirects to an invalid address"))
            }
            other => Refused::Passing(self.unreachable(&other.to_string())),
        })
    }

    /// Where a redirect leads.
    fn target(&self, from: &str, headers: &HeaderMap) -> Result<String, Refused> {
        let strange = |what: &str| Refused::Lasting(self.strange(what));
        let to =
            header(headers, "location").ok_or_else(|| strange("a redirect without a target"))?;
        let (scheme, host, port) =
            origin(from).ok_or_else(|| strange("a redirect from an invalid address"))?;
        let to = if to.starts_with('/') && !to.starts_with("//") {
            format!("{scheme}://{host}:{port}{to}")
        } else {
            to.to_owned()
        };
        match origin(&to) {
            Some((other, ..)) if scheme == "https" && other != "https" => {
                Err(strange("a redirect from https to http"))
            }
            Some(_) => Ok(to),
            None => Err(strange("a redirect to an invalid address")),
        }
    }

    /// What the files of a revision are, and which commit it is.
    pub fn listing(&self, address: &Address) -> Result<(String, Listing), Refused> {
        let mut url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint,
            address.repo(),
            escaped_revision(address.wanted())
        );
        for _ in 0..MOST_REDIRECTS {
            let response = self.once(false, &url, None)?;
            let status = response.status().as_u16();
            if response.status().is_redirection() {
                url = self.target(&url, response.headers())?;
                continue;
            }
            if status != 200 {
                return Err(self.refusal(status, response.headers(), address));
            }
            let mut text = Vec::new();
            let mut reader = response.into_body().into_reader().take(MOST_LISTING + 1);
            reader
                .read_to_end(&mut text)
                .map_err(|error| Refused::Passing(self.unreachable(&error.to_string())))?;
            if text.len() as u64 > MOST_LISTING {
                return Err(Refused::Lasting(
                    self.strange("a file listing that is too long"),
                ));
            }
            return self.read_listing(&text).map_err(Refused::Lasting);
        }
        Err(Refused::Lasting(self.strange("too many redirects")))
    }

    fn read_listing(&self, text: &[u8]) -> Result<(String, Listing), Withheld> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            #[serde(rename = "blobId")]
            blob: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: Option<String>,
            size: Option<u64>,
        }
        let info: Info = serde_json::from_slice(text).map_err(|error| {
            self.strange(format!("an invalid description of the repository: {error}"))
        })?;
        if !remote::is_commit(&info.sha) {
            return Err(self.strange("an invalid commit"));
        }
        let files = (info.siblings.into_iter())
            // A name that could leave the cache's folder is no file for anybody.
            .filter(|file| file.rfilename.split('/').all(remote::is_part))
            .take(MOST_FILES)
            .map(|file| {
                // Of a large file git knows a pointer alone, whose name says nothing about the content.
                let git = file
                    .blob
                    .filter(|blob| file.lfs.is_none() && is_hex(blob, 40));
                let (sha256, large) = file.lfs.map_or((None, None), |lfs| (lfs.sha256, lfs.size));
                let listed = Listed {
                    size: file.size.or(large),
                    sha256: sha256.map(|text| text.to_ascii_lowercase()),
                    git,
                };
                (file.rfilename, listed)
            })
            .collect();
        Ok((info.sha, Listing { files }))
    }

    fn url(&self, address: &Address, commit: &str) -> String {
        format!(
            "{}/{}/resolve/{}/{}",
            self.endpoint,
            address.repo(),
            escaped_revision(commit),
            escaped(&address.file)
        )
    }

    /// What a file is called and how long it is.
    pub fn announced(&self, address: &Address, commit: &str) -> Result<Announced, Refused> {
        let mut url = self.url(address, commit);
        for _ in 0..MOST_REDIRECTS {
            let response = self.once(true, &url, None)?;
            let (status, headers) = (response.status(), response.headers());
            let linked = header(headers, "x-linked-etag");
            // A large file lies elsewhere; the hub itself says what it is, and only that is believed.
            if status.is_redirection() && linked.is_none() {
                url = self.target(&url, headers)?;
                continue;
            }
            if !status.is_redirection() && status.as_u16() != 200 {
                return Err(self.refusal(status.as_u16(), headers, address));
            }
            if let Some(other) = header(headers, "x-repo-commit")
                && other != commit
            {
                let what = format!(
                    "the commit {commit} was requested, but {} was returned",
                    shortened(&other.escape_debug().to_string(), 40)
                );
                return Err(Refused::Lasting(self.strange(what)));
            }
            let etag = plain_etag(
                linked
                    .or_else(|| header(headers, "etag"))
                    .unwrap_or_default(),
            );
            if !is_etag(etag) {
                return Err(Refused::Lasting(
                    self.strange(format!("{address} without a valid ETag")),
                ));
            }
            let own = (!status.is_redirection()).then_some("content-length");
            let size = ["x-linked-size"]
                .into_iter()
                .chain(own)
                .find_map(|name| header(headers, name)?.parse().ok());
            return Ok(Announced {
                etag: etag.to_owned(),
                size,
            });
        }
        Err(Refused::Lasting(self.strange("too many redirects")))
    }

    /// The content of a file from a byte on: where it begins, and the bytes. A hub that knows no ranges begins at 0.
    pub fn content(
        &self,
        address: &Address,
        commit: &str,
        from: u64,
    ) -> Result<(u64, Box<dyn Read + Send>), Refused> {
        let mut url = self.url(address, commit);
        for _ in 0..MOST_REDIRECTS {
            let response = self.once(false, &url, (from > 0).then_some(from))?;
            let (status, headers) = (response.status().as_u16(), response.headers());
            if response.status().is_redirection() {
                url = self.target(&url, headers)?;
                continue;
            }
            let start = match status {
                200 => 0,
                206 => {
                    let range = header(headers, "content-range").unwrap_or_default();
                    let start = (range.strip_prefix("bytes "))
                        .and_then(|range| range.split('-').next())
                        .and_then(|start| start.trim().parse::<u64>().ok());
                    if start != Some(from) {
                        return Err(Refused::Lasting(self.strange(format!(
                            "a different byte range of {address} than was requested"
                        ))));
                    }
                    from
                }
                _ => return Err(self.refusal(status, headers, address)),
            };
            return Ok((start, Box::new(response.into_body().into_reader())));
        }
        Err(Refused::Lasting(self.strange("too many redirects")))
    }

    /// What a status other than success means.
    fn refusal(&self, status: u16, headers: &HeaderMap, address: &Address) -> Refused {
        let code = header(headers, "x-error-code").unwrap_or_default();
        let (repo, revision) = (address.repo(), address.wanted());
        let page = format!("{}/{repo}", self.endpoint);
        let lasting =
            |code, message: String, help: String| Refused::Lasting(withheld(code, message, help));
        match (status, code) {
            (401 | 403, "GatedRepo") => lasting(
                Code::HubDenied,
                format!(
                    "`{repo}` is gated: the hub gives it to those who accepted its conditions ({status})"
                ),
                format!(
                    "accept them at {page}, then set your token in HF_TOKEN or with the hub's own `login`"
                ),
            ),
            (_, "RevisionNotFound") => lasting(
                Code::HubMissing,
                format!("`{repo}` has no revision `{revision}` ({status})"),
                format!("the branches and tags are at {page}"),
            ),
            (_, "EntryNotFound") => lasting(
                Code::HubMissing,
                format!(
                    "`{repo}` has no file `{}` at `{revision}` ({status})",
                    address.file
                ),
                format!(
                    "the files are listed at {page}/tree/{}",
                    escaped_revision(revision)
                ),
            ),
            (401, _) if self.token.is_none() => lasting(
                Code::HubDenied,
                format!(
                    "access to `{repo}` is denied: the repository does not exist, or it is private or gated (401)"
                ),
                format!(
                    "check the name at {page}; if it is private or gated, set a token in HF_TOKEN or with the hub's own `login`"
                ),
            ),
            (401 | 403, _) => lasting(
                Code::HubDenied,
                match self.token {
                    Some(_) => format!("the token may not read `{repo}` ({status})"),
                    None => format!("access to `{repo}` is denied ({status})"),
                },
                format!(
                    "check the name and what the token may do; conditions, if it has any, are at {page}"
                ),
            ),
            (404, _) => lasting(
                Code::HubMissing,
                format!("the hub has no repository `{repo}` (404)"),
                format!("check owner and name at {page}; a private one needs a token in HF_TOKEN"),
            ),
            (408 | 429 | 500..=599, _) => Refused::Passing(withheld(
                Code::HubUnreachable,
                format!(
                    "the hub {} cannot answer now: status {status}",
                    self.endpoint
                ),
                "try again later, what was fetched is kept; `--offline` uses only what is in the cache",
            )),
            _ => Refused::Lasting(self.strange(format!("status {status} for {address}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_belongs_to_one_scheme_host_and_port() {
        let of = |url| origin(url).unwrap();
        assert_eq!(
            of("https://Hub.example/x"),
            of("https://hub.example:443/y?z")
        );
        for other in [
            "http://hub.example",
            "https://hub.example:8443",
            "https://hub.example.org",
            "https://a.hub.example",
        ] {
            assert_ne!(of("https://hub.example"), of(other));
        }
        for none in [
            "",
            "hub.example",
            "ftp://hub.example",
            "file:///etc/passwd",
            "https://",
            "https://me:secret@hub.example",
        ] {
            assert_eq!(origin(none), None, "{none}");
        }
    }

    #[test]
    fn a_tag_that_is_no_plain_name_is_none() {
        assert_eq!(plain_etag("W/\"abc\""), "abc");
        assert!(is_etag("0a") && is_etag("abc-2"));
        for etag in [
            "",
            "..",
            "../../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "a.lock",
            "a b",
            &"x".repeat(129),
        ] {
            assert!(!is_etag(etag), "{etag}");
        }
    }
}
