//! `retouch view`, and `retouch watch --view`: the watch loop with the viewer looking on.

#[cfg(test)]
mod tests;

use retouch_view::app::Tab;
use retouch_view::memory::Colours;
use retouch_view::{Options, Screenshot};

use super::watch::{self, Looking};
use crate::args::{FollowArgs, ViewArgs, ViewTab, ViewTheme};
use crate::runs::Kind;
use crate::watching::Observer;
use crate::{Exit, Failure};

impl From<ViewTab> for Tab {
    fn from(tab: ViewTab) -> Self {
        match tab {
            ViewTab::Pictures => Self::Pictures,
            ViewTab::Steps => Self::Steps,
            ViewTab::Params => Self::Params,
            ViewTab::Problems => Self::Problems,
        }
    }
}

impl From<ViewTheme> for Colours {
    fn from(theme: ViewTheme) -> Self {
        match theme {
            ViewTheme::Dark => Self::Dark,
            ViewTheme::Light => Self::Light,
        }
    }
}

fn options(args: &ViewArgs) -> Options {
    Options {
        select: args.select.clone(),
        step: args.step,
        tab: args.tab.map(Tab::from).or(args.step.map(|_| Tab::Steps)),
        size: args.size,
        colours: args.theme.map(Colours::from),
    }
}

/// The watch loop, looked at by `observer`; without `runs` it ends once the workflow is planned.
fn looked_at(
    args: &FollowArgs,
    observer: &dyn Observer,
    runs: bool,
    kind: Kind,
) -> Result<Exit, Failure> {
    let looking = Looking {
        observer,
        runs,
        kind,
    };
    watch::watch(args, Some(looking))
}

/// `retouch view`.
///
/// # Errors
/// When there is no screen, nothing to draw with, or as [`watch::watch`].
pub fn view(args: &ViewArgs) -> Result<Exit, Failure> {
    let follow = &args.follow;
    match &args.screenshot {
        Some(file) => {
            let screenshot = Screenshot {
                file,
                scale: args.scale,
                named: !follow.drawing.json,
            };
            retouch_view::picture(options(args), &screenshot, |observer| {
                looked_at(follow, observer, !args.no_run, Kind::View)
            })
        }
        None => retouch_view::window(options(args), true, |observer| {
            looked_at(follow, observer, true, Kind::View)
        }),
    }
}

/// `retouch watch --view`.
///
/// # Errors
/// As [`view`].
pub fn watch(args: &FollowArgs) -> Result<Exit, Failure> {
    retouch_view::window(Options::default(), false, |observer| {
        looked_at(args, observer, true, Kind::Watch)
    })
}
