//! Opens the user's editor at a line: `$VISUAL`, `$EDITOR`, else one that is there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
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

/// How an editor is told the place.
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

/// Editors that are known: their names, how they are told the place, and whether they need a terminal.
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

/// What is tried when nobody says which editor.
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

/// What `$VISUAL` or `$EDITOR` says, split at spaces as a shell would, quotes kept together.
#[must_use]
pub fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            ('\\', None | Some('"')) if !cfg!(windows) => {
                let next = letters.next().unwrap_or('\\');
                word.get_or_insert_default().push(next);
            }
            (letter, Some(_)) => word.get_or_insert_default().push(letter),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, None) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The command that opens a file at a place, and whether it needs a terminal.
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
    // A file whose name ends like a place would be misread.
    if goto == Goto::Suffix && spot.file.to_string_lossy().contains(':') {
        goto = Goto::None;
    }
    let mut words: Words = editor.iter().map(OsString::from).collect();
    let mut with_place = spot.file.clone().into_os_string();
    with_place.push(format!(":{}:{}", spot.line, spot.column));
    match goto {
        Goto::Flag => words.extend(["--goto".into(), with_place]),
        Goto::Plus => words.extend([format!("+{}", spot.line).into(), spot.file.clone().into()]),
        Goto::Suffix => words.push(with_place),
        Goto::Line => words.extend([
            "--line".into(),
            spot.line.to_string().into(),
            spot.file.clone().into(),
        ]),
        Goto::None => words.push(spot.file.clone().into()),
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

/// The editor that the environment names, or one that is there.
fn editor() -> Option<Vec<String>> {
    let named = ["VISUAL", "EDITOR"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok());
    let mut named = named
        .map(|text| split(&text))
        .filter(|words| !words.is_empty());
    named.next().or_else(|| {
        let there = TRIED.iter().find(|program| on_path(program));
        there.map(|program| vec![(*program).to_owned()])
    })
}

/// Opens the editor at a place.
///
/// # Errors
/// What to say when there is none, or it does not start.
pub fn open(spot: &Spot) -> Result<String, String> {
    let editor = editor().ok_or("no editor is known: set VISUAL, for example `VISUAL=code`")?;
    let (mut words, terminal) = command(&editor, spot).ok_or("VISUAL names no program")?;
    if terminal {
        let own = std::env::var("TERMINAL")
            .ok()
            .map(|text| split(&text))
            .filter(|own| !own.is_empty());
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
    // Somebody has to take note of its end.
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
        let (words, terminal) = command(&split(editor), &spot(file)).unwrap();
        let words = words.iter().map(|word| word.to_string_lossy().into_owned());
        (words.collect(), terminal)
    }

    #[test]
    fn each_kind_of_editor_is_told_the_place_in_its_own_way() {
        assert_eq!(
            words("code --wait", "a b.yaml").0,
            ["code", "--wait", "--goto", "a b.yaml:12:7"]
        );
        assert_eq!(
            words("/usr/bin/nvim", "w.yaml"),
            (
                vec!["/usr/bin/nvim".into(), "+12".into(), "w.yaml".into()],
                true
            )
        );
        assert_eq!(
            words("emacs", "w.yaml"),
            (vec!["emacs".into(), "+12".into(), "w.yaml".into()], false)
        );
        assert!(words("emacs -nw", "w.yaml").1);
        assert_eq!(words("hx", "w.yaml").0, ["hx", "w.yaml:12:7"]);
        assert_eq!(words("hx", "c:w.yaml").0, ["hx", "c:w.yaml"]);
        assert_eq!(
            words("kate", "w.yaml").0,
            ["kate", "--line", "12", "w.yaml"]
        );
        assert_eq!(
            words("something-new", "w.yaml").0,
            ["something-new", "w.yaml"]
        );
        assert!(command(&[], &spot("w.yaml")).is_none());
    }

    #[test]
    fn the_words_of_an_editor_are_split_as_a_shell_does() {
        assert_eq!(split("  code   --wait "), ["code", "--wait"]);
        assert_eq!(
            split("'/my apps/ed' \"a b\"c d"),
            ["/my apps/ed", "a bc", "d"]
        );
        assert_eq!(split("''"), [""]);
        assert!(split(" \t").is_empty());
    }
}
