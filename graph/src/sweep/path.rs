//! The paths of files that all cells of a sweep share.

use crate::base::problem::{Code, Problem, Source};
use crate::files::output_path;
use crate::sweep::label::shown;
use crate::sweep::sweep::Sweep;
use crate::syntax::template::{self, Piece};
use crate::syntax::workflow::Spanned;

impl Sweep {
    /// Fills in a path that all cells share.
    pub(super) fn path_of(
        &self,
        text: &Spanned<String>,
        output: &str,
        source: &Source,
        problems: &mut Vec<Problem>,
    ) -> Option<String> {
        let mut report = |code, message: String, help: &str| {
            problems.push(Problem::new(code, source, text.span, message).help(help));
        };
        let Ok(pieces) = template::pieces(&text.value) else {
            report(
                Code::BadTemplate,
                "the template cannot be read".to_owned(),
                "write `{name}`; a brace itself is written twice: `{{` or `}}`",
            );
            return None;
        };
        let mut path = String::new();
        for piece in pieces {
            let name = match piece {
                Piece::Text(text) => {
                    path.push_str(&text);
                    continue;
                }
                Piece::Name(name, _) => name,
            };
            let param = self.whole.params.iter().find(|param| param.name == name);
            let value = match (name, param) {
                (_, Some(param)) => shown(&param.value),
                ("workflow", None) => self.name().to_owned(),
                ("output", None) => output.to_owned(),
                _ if self.varying.iter().any(|one| one == name) => {
                    report(
                        Code::UnknownTemplateName,
                        format!("`{name}` varies in the sweep, and this is one file for all cells"),
                        "leave it out",
                    );
                    return None;
                }
                _ => {
                    report(
                        Code::UnknownTemplateName,
                        format!("there is no param `{name}`"),
                        "here `{workflow}` and the params that do not vary can be named",
                    );
                    return None;
                }
            };
            if let Err(why) = output_path::check_value(&value) {
                report(
                    Code::UnsafePath,
                    format!("`{{{name}}}` is `{}`, and {why}", value.escape_debug()),
                    "name the file without it, or give it another value",
                );
                return None;
            }
            path.push_str(&value);
        }
        if let Err(why) = output_path::check_path(&path) {
            report(
                Code::UnsafePath,
                format!("`{}` cannot be saved to: {why}", path.escape_debug()),
                "a path is relative and stays below the output folder: `{workflow}/sheet.png`",
            );
            return None;
        }
        Some(path)
    }
}
