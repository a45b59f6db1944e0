//! `retouch-dev make-random`.

use retouch_cli::commands::convert::{Draft, Writing, finish, free};
use retouch_cli::commands::run;
use retouch_common::{Exit, Failure};
use retouch_diffusion::checkpoint::export::{self, Family};
use retouch_graph::Cancel;

use crate::args::{FamilyName, MakeRandomArgs};

/// Writes a model of random weights.
///
/// # Errors
/// When the folder is there and not empty, or cannot be written.
pub fn make_random(args: &MakeRandomArgs) -> Result<Exit, Failure> {
    free(&args.folder)?;
    let draft = Draft::begin(&args.folder, false)?;
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let family = match args.family {
        FamilyName::Sd15 => Family::Sd15,
        FamilyName::Sd21 => Family::Sd21,
        FamilyName::Sdxl => Family::Sdxl,
        FamilyName::Tiny => Family::Tiny,
    };
    let follow = Writing::new("making", false, &cancel);
    let made = export::make(family, args.seed, args.dtype.into(), &draft.path(), &follow);
    drop(follow);
    finish(draft, &args.folder, false, made)
}
