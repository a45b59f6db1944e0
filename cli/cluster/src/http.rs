//! The transport to object stores: `ureq`, which the hub's client uses too. `object_store` would bring another HTTP stack with
//! TLS libraries in C; it lets us give it this one.
//!
//! Each thread waits for its own requests, so a blocking client serves.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpService,
};
use ureq::http::{Method, Request, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Error};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a store may be silent before it answers.
const SILENCE: Duration = Duration::from_secs(60);
/// How long one request may take, with what it sends and gets: a gigabyte at 2 MB/s.
const WHOLE: Duration = Duration::from_secs(600);
/// An answer of more bytes is none: entries of a cache are far smaller.
const MOST: u64 = 16 << 30;

/// Who vouches for servers, of stores and of hubs: the authorities that the system trusts, as a company's proxy has one of its
/// own. Where the system has none at all, as in a bare container, those of Mozilla that come with the program.
#[must_use]
pub fn authorities() -> RootCerts {
    #[cfg(all(unix, not(target_vendor = "apple")))]
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return RootCerts::WebPki;
    }
    RootCerts::PlatformVerifier
}

/// Makes clients over `ureq`.
#[derive(Debug)]
pub struct Connector;

#[derive(Debug)]
struct Service {
    agent: Agent,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(http.as_deref() != Some("true"))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_global(Some(WHOLE))
            .user_agent(concat!("retouch/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(authorities()).build())
            .build();
        Ok(HttpClient::new(Service {
            agent: agent.into(),
        }))
    }
}

/// What kind of failure it is: that decides whether it is tried again.
fn kind(error: &Error) -> HttpErrorKind {
    match error {
        Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve)
        | Error::HostNotFound
        | Error::ConnectionFailed => HttpErrorKind::Connect,
        Error::Timeout(_) => HttpErrorKind::Timeout,
        Error::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => HttpErrorKind::Connect,
            io::ErrorKind::TimedOut => HttpErrorKind::Timeout,
            _ => HttpErrorKind::Interrupted,
        },
        Error::Protocol(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    }
}

fn failed(error: Error) -> HttpError {
    HttpError::new(kind(&error), error)
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (mut parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        // It is counted here, and the host is that of the address.
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::HOST);
        let sends = matches!(parts.method, Method::PUT | Method::POST | Method::PATCH);
        let answer = match sends {
            true => self.agent.run(Request::from_parts(parts, body.as_ref())),
            false => self.agent.run(Request::from_parts(parts, ())),
        };
        let (parts, mut body) = answer.map_err(failed)?.into_parts();
        let bytes = (body.with_config().limit(MOST).read_to_vec()).map_err(failed)?;
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }
}
