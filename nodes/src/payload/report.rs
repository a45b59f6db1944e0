//! Reports: pages for people.

use retouch_graph::{NodeError, Payload};
use serde::{Deserialize, Serialize};

use crate::payload::image::unknown_format;

/// A report, as a page of its own and as Markdown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// HTML that needs no other file.
    pub html: String,
    /// Markdown, without pictures.
    pub markdown: String,
}

impl Payload for Report {
    const TYPE: &'static str = "report";
    const FORMATS: &'static [&'static str] = &["html", "md"];

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(serde_json::to_vec(self).map_err(|e| NodeError::failed(e.to_string())))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        serde_json::from_slice(bytes).map_err(|e| NodeError::failed(e.to_string()))
    }

    fn bytes(&self) -> usize {
        self.html.len() + self.markdown.len()
    }

    fn summary(&self) -> String {
        format!("report of {} kB", self.html.len().div_ceil(1000))
    }

    /// One file: HTML with its pictures inside, or Markdown.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        match format {
            "html" => Ok(vec![self.html.clone().into_bytes()]),
            "md" => Ok(vec![self.markdown.clone().into_bytes()]),
            _ => Err(unknown_format::<Self>(format)),
        }
    }
}
