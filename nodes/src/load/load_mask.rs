//! `load_mask`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::AssetPath;
use crate::image::mask::luma;
use crate::load::load_image::{inspect, load, over, reads};
use crate::payload::mask::Mask;

/// Reads a mask from a picture file: white is the subject.
///
/// The file is a PNG, JPEG or WebP as `load_image` takes them; it is turned as its EXIF orientation says, so that a mask
/// drawn over a photo and saved with the photo's metadata fits it. Grey levels are kept: a mask need not be black and
/// white. With `channel: luma` or `red`, transparent pixels count as black.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadMask {
    /// The picture file.
    pub path: AssetPath,
    /// Makes black the subject instead of white.
    #[serde(default)]
    pub invert: bool,
    /// What of the picture is the mask.
    #[serde(default)]
    pub channel: Channel,
}

/// The channel of a picture that is read as a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Channel {
    /// The brightness: 0.299 red + 0.587 green + 0.114 blue (Rec. 601).
    #[default]
    Luma,
    /// The alpha channel: what is opaque is the subject.
    Alpha,
    /// The red channel.
    Red,
}

ports! {
    /// `load_mask` takes no links.
    pub struct Inputs {}
}

ports! {
    /// What `load_mask` gives.
    pub struct Outputs {
        /// The mask, a batch of one.
        pub mask: Arc<Mask>,
    }
}

const NO_ALPHA: &str = "has no alpha channel";
const NO_ALPHA_HELP: &str = "with `channel: luma` (the default) its brightness is the mask";

impl Node for LoadMask {
    const OP: &'static str = "load_mask";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        reads(self.path.as_path(), files)
    }

    fn check(&self, _: &Types<Inputs>, files: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let Some(header) = inspect(self.path.as_path(), files)? else {
            return Ok(Types::unknown());
        };
        if self.channel == Channel::Alpha && !header.has_alpha {
            let message = format!("`{}` {NO_ALPHA}", self.path.as_path().display());
            return Err(vec![Fault::value("channel", message).help(NO_ALPHA_HELP)]);
        }
        Ok(Types::unknown().with("mask", &header.facts()))
    }

    fn run(&self, _: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let mut picture = load(self.path.as_path(), context.files())?;
        let area = picture.width * picture.height;
        if self.channel != Channel::Alpha
            && let Some(alpha) = &picture.alpha
        {
            over(&mut picture.colours, alpha, 0.0);
        }
        let mut plane = match self.channel {
            Channel::Luma => luma(&picture.colours),
            Channel::Red => {
                picture.colours.truncate(area);
                picture.colours
            }
            Channel::Alpha => picture.alpha.ok_or_else(|| {
                NodeError::failed(format!("`{}` {NO_ALPHA}", self.path.as_path().display()))
                    .help(NO_ALPHA_HELP)
            })?,
        };
        if self.invert {
            for value in &mut plane {
                *value = 1.0 - *value;
            }
        }
        Ok(Outputs {
            mask: Arc::new(Mask::from_values(1, picture.width, picture.height, plane)?),
        })
    }
}
