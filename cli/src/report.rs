//! Faults for people: file, line, column, the line itself, a caret and a way out.

use std::io::{IsTerminal, Write};

use miette::{GraphicalReportHandler, GraphicalTheme};
use retouch_graph::problem::{Problem, Problems, Severity};

/// Renders problems, one after another, in colour if `colour`.
#[must_use]
pub fn render<'a>(problems: impl IntoIterator<Item = &'a Problem>, colour: bool) -> String {
    let theme = if colour {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(100)
        .with_context_lines(1)
        .with_links(false);
    let mut text = String::new();
    for problem in problems {
        if handler.render_report(&mut text, problem).is_err() {
            text.push_str(&problem.to_string());
            text.push('\n');
        }
    }
    text
}

/// Whether standard error may be coloured.
#[must_use]
pub fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints the faults of a workflow and how many there are.
pub fn print_problems(problems: &Problems) {
    let mut text = render(problems.iter(), colour());
    let faults = problems
        .iter()
        .filter(|problem| problem.severity() != Severity::Warning)
        .count();
    if faults > 0 {
        text.push_str(&format!(
            "{faults} fault{} found; `retouch explain CODE` says more of each",
            if faults == 1 { "" } else { "s" }
        ));
        text.push('\n');
    }
    // Nobody may be reading.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
