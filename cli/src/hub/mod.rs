//! Models on a hub: `hf://owner/name[@revision][/path]`, fetched into the cache that the hub's own programs use.
//!
//! Written here, as the crate `hf-hub` does not fit: version 1 is asynchronous and brings an HTTP stack and a runtime; the
//! blocking client of version 0.5 does not compare a download with its digest, appends whole files to partial ones, takes
//! paths from the server unchecked, and has no offline mode. Here a file gets its name only after its digest was compared
//! with the one that the hub announced. HTTP and TLS are `ureq`'s and `rustls`'s.

mod client;
mod consent;
mod files;
mod reporter;
mod settings;
mod store;

use retouch_graph::Cancel;

pub use consent::{Consent, Foreign, Permit};
pub use files::HubFiles;
pub use reporter::Reporter;
pub use settings::Settings;

use crate::Failure;

/// Whether missing files are downloaded, and where progress is reported.
#[derive(Clone)]
pub enum Mode {
    /// Only the cache is used; missing files are reported.
    Look,
    /// What is missing is fetched.
    Fetch {
        /// Ends a fetch; what came so far stays.
        cancel: Cancel,
        /// Reports its progress.
        reporter: std::sync::Arc<Reporter>,
        /// What of it is fetched for a third party's file.
        permit: Permit,
    },
}

impl Mode {
    /// Fetches what is missing, and reports progress as events, as text, or not at all. For a third party's file nothing is
    /// fetched unless the user agrees on the terminal.
    #[must_use]
    pub fn fetching(cancel: &Cancel, json: bool, quiet: bool) -> Self {
        Self::Fetch {
            cancel: cancel.clone(),
            reporter: std::sync::Arc::new(Reporter::new(json, quiet)),
            permit: Permit {
                ask: Permit::can_ask(json, quiet),
                ..Permit::default()
            },
        }
    }

    /// The same, with what the command line permits for third parties' files: all that they name, and the
    /// repositories `named`.
    #[must_use]
    pub fn permitting(mut self, all: bool, named: &[String]) -> Self {
        if let Self::Fetch { permit, .. } = &mut self {
            permit.all = all;
            permit.named = named.to_vec();
        }
        self
    }

    /// What is permitted for a third party's file.
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
