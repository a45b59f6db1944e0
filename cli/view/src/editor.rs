//! Opens the user's editor at a line: `$VISUAL`, `$EDITOR`, else one that is there.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// A place in a file: line and column from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The file.
    pub file: PathBuf,
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// How the place is passed to an editor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goto {
    /// `--goto file:line:column`
    Flag,
    /// `+line file`
    Plus,
    /// `file:line:column`
    Suffix,
    /// `--line n file`
    Line,
    /// It is not: the file alone.
    None,
}

/// Editors that are known: their names, how the place is passed to them, and whether they need a terminal.
const KNOWN: &[(&[&str], Goto, bool)] = &[
    (
        &[
            "code",
            "code-insiders",
            "codium",
            "vscodium",
            "code-oss",
            "cursor",
            "windsurf",
            "positron",
        ],
        Goto::Flag,
        false,
    ),
    (
        &[
            "vi",
            "vim",
            "nvim",
            "nano",
            "kak",
            "joe",
            "jed",
            "ne",
            "mg",
            "emacs-nox",
        ],
        Goto::Plus,
        true,
    ),
    (
        &[
            "gvim",
            "mvim",
            "nvim-qt",
            "neovide",
            "gedit",
            "gnome-text-editor",
            "emacs",
            "emacsclient",
        ],
        Goto::Plus,
        false,
    ),
    (&["hx", "helix", "micro"], Goto::Suffix, true),
    (
        &["zed", "zeditor", "subl", "sublime_text", "lapce"],
        Goto::Suffix,
        false,
    ),
    (
        &["kate", "idea", "pycharm", "clion", "rustrover", "mate"],
        Goto::Line,
        false,
    ),
];

/// What is tried when no editor is set.
const TRIED: &[&str] = &[
    "code",
    "codium",
    "zed",
    "subl",
    "gnome-text-editor",
    "gedit",
    "kate",
    "gvim",
];

/// Terminals that editors in one are opened in, and what stands before a command.
const TERMINALS: &[(&str, &[&str])] = &[
    ("x-terminal-emulator", &["-e"]),
    ("gnome-terminal", &["--"]),
    ("konsole", &["-e"]),
    ("alacritty", &["-e"]),
    ("kitty", &[]),
    ("foot", &[]),
    ("wezterm", &["start", "--"]),
    ("xterm", &["-e"]),
];

/// A command: its program, then its arguments.
pub type Words = Vec<OsString>;

/// Editors that take `--` as the end of their options.
const DASHES: &[&str] = &["vi", "vim", "nvim", "gvim", "mvim", "kak"];

/// What `$VISUAL` or `$EDITOR` says, split into words as a shell does; `None` when a quote is not closed.
#[must_use]
pub fn split(text: &str) -> Option<Vec<String>> {
    // On Windows a backslash stands in paths.
    match cfg!(windows) {
        true => shlex::split(&text.replace('\\', "\\\\")),
        false => shlex::split(text),
    }
}

/// The command that opens a file at a place, and whether it needs a terminal. A workflow may name any file, also one that an
/// editor would take for an option (`-c…`) or a command (`+!…`): it is given by its absolute path.
#[must_use]
pub fn command(editor: &[String], spot: &Spot) -> Option<(Words, bool)> {
    let program = editor.first()?;
    let name = Path::new(program).file_stem()?.to_str()?.to_lowercase();
    let known = KNOWN
        .iter()
        .find(|(names, ..)| names.contains(&name.as_str()));
    let (mut goto, mut terminal) = known.map_or((Goto::None, false), |(_, goto, terminal)| {
        (*goto, *terminal)
    });
    // `emacs -nw` and `emacsclient -t` are in a terminal.
    let has = |flag: &str| editor.iter().any(|word| word == flag);
    if name.starts_with("emacs") && (has("-nw") || has("-t") || has("-tty")) {
        terminal = true;
    }
    let file = std::path::absolute(&spot.file).ok()?;
    // A file whose name ends like a place would be misread.
    let mut parts = file.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy()),
        _ => None,
    });
    if goto == Goto::Suffix && parts.any(|part| part.contains(':')) {
        goto = Goto::None;
    }
    let mut words: Words = editor.iter().map(OsString::from).collect();
    let mut with_place = file.clone().into_os_string();
    with_place.push(format!(":{}:{}", spot.line, spot.column));
    match goto {
        Goto::Flag => words.extend(["--goto".into(), with_place]),
        Goto::Plus => {
            words.push(format!("+{}", spot.line).into());
            if DASHES.contains(&name.as_str()) {
                words.push("--".into());
            }
            words.push(file.into());
        }
        Goto::Suffix => words.push(with_place),
        Goto::Line => words.extend(["--line".into(), spot.line.to_string().into(), file.into()]),
        Goto::None => words.push(file.into()),
    }
    Some((words, terminal))
}

fn on_path(program: &str) -> bool {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.is_file();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| {
        folder.join(program).is_file() || folder.join(format!("{program}.exe")).is_file()
    })
}

/// The words of a variable that names a command; `None` when it is not set or empty.
fn named(variable: &str) -> Option<Result<Vec<String>, String>> {
    let text = std::env::var(variable).ok()?;
    match split(&text) {
        Some(words) if words.is_empty() => None,
        Some(words) => Some(Ok(words)),
        None => Some(Err(format!(
            "{variable} cannot be read: a quote in it is not closed"
        ))),
    }
}

/// The editor that the environment names, or one that is there.
fn editor() -> Result<Vec<String>, String> {
    if let Some(words) = named("VISUAL").or_else(|| named("EDITOR")) {
        return words;
    }
    let there = TRIED.iter().find(|program| on_path(program));
    there.map_or_else(
        || Err("no editor is known: set VISUAL, for example `VISUAL=code`".to_owned()),
        |program| Ok(vec![(*program).to_owned()]),
    )
}

/// Opens the editor at a place.
///
/// # Errors
/// What to say when there is none, or it does not start.
pub fn open(spot: &Spot) -> Result<String, String> {
    let editor = editor()?;
    let (mut words, terminal) = command(&editor, spot).ok_or("VISUAL does not name a program")?;
    if terminal {
        let own = named("TERMINAL").transpose()?;
        let before: Option<Words> =
            match own {
                Some(own) => Some(
                    own.into_iter()
                        .map(OsString::from)
                        .chain(["-e".into()])
                        .collect(),
                ),
                None => TERMINALS.iter().find(|(program, _)| on_path(program)).map(
                    |(program, flags)| {
                        std::iter::once(program)
                            .chain(*flags)
                            .map(OsString::from)
                            .collect()
                    },
                ),
            };
        let mut before = before.ok_or_else(|| {
            format!("`{}` needs a terminal, and none is known: set TERMINAL, or VISUAL to an editor with a window", editor[0])
        })?;
        before.append(&mut words);
        words = before;
    }
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command
        .spawn()
        .map_err(|e| format!("`{}` does not start: {e}", words[0].to_string_lossy()))?;
    // Its end must be waited for.
    std::thread::spawn(move || child.wait());
    Ok(format!(
        "{}:{} in {}",
        spot.file.display(),
        spot.line,
        editor[0]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(file: &str) -> Spot {
        Spot {
            file: file.into(),
            line: 12,
            column: 7,
        }
    }

    fn words(editor: &str, file: &str) -> (Vec<String>, bool) {
        let (words, terminal) = command(&split(editor).unwrap(), &spot(file)).unwrap();
        let words = words.iter().map(|word| word.to_string_lossy().into_owned());
        (words.collect(), terminal)
    }

    /// The file as the editor is given it.
    fn at(file: &str) -> String {
        std::path::absolute(file).unwrap().display().to_string()
    }

    #[test]
    fn each_kind_of_editor_is_told_the_place_in_its_own_way() {
        let w = at("w.yaml");
        assert_eq!(
            words("code --wait", "a b.yaml").0,
            [
                "code",
                "--wait",
                "--goto",
                &format!("{}:12:7", at("a b.yaml"))
            ]
        );
        assert_eq!(
            words("/usr/bin/nvim", "w.yaml"),
            (
                vec!["/usr/bin/nvim".into(), "+12".into(), "--".into(), w.clone()],
                true
            )
        );
        assert_eq!(
            words("emacs", "w.yaml"),
            (vec!["emacs".into(), "+12".into(), w.clone()], false)
        );
        assert!(words("emacs -nw", "w.yaml").1);
        assert_eq!(words("hx", "w.yaml").0, ["hx", &format!("{w}:12:7")]);
        assert_eq!(words("hx", "c:w.yaml").0, ["hx", &at("c:w.yaml")]);
        assert_eq!(words("kate", "w.yaml").0, ["kate", "--line", "12", &w]);
        assert_eq!(words("something-new", "w.yaml").0, ["something-new", &w]);
        assert!(command(&[], &spot("w.yaml")).is_none());
    }

    #[test]
    fn no_file_name_becomes_an_option_or_a_command_of_the_editor() {
        for file in ["-c:!touch x", "+!touch x.yaml", "--cmd", "-"] {
            for editor in KNOWN
                .iter()
                .flat_map(|(names, ..)| *names)
                .chain(&["other"])
            {
                let (words, _) = words(editor, file);
                let (given, before) = words.split_last().unwrap();
                assert!(given.starts_with(&at(file)), "{words:?}");
                assert!(before.iter().all(|word| word != file), "{words:?}");
            }
        }
    }

    #[test]
    fn the_words_of_an_editor_are_split_as_a_shell_does() {
        assert_eq!(split("  code   --wait ").unwrap(), ["code", "--wait"]);
        assert_eq!(
            split("'/my apps/ed' \"a b\"c d").unwrap(),
            ["/my apps/ed", "a bc", "d"]
        );
        assert_eq!(split("''").unwrap(), [""]);
        assert!(split(" \t").unwrap().is_empty());
        assert!(split("code '--wait").is_none());
    }
}
