//! What may be fetched for a third party's file. A bundle, or the recipe in a picture, names models on hubs; the
//! user has not. Nothing is fetched for it unless the user says so, and the user's token is not sent for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, IsTerminal};
#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use retouch_graph::interrupt;
use retouch_graph::paths::normal;
use retouch_graph::remote::Address;

use super::client::Listing;
use crate::output::tell;
use crate::store::size;
use crate::total;

/// What the command line says about the models that others name.
#[derive(Clone, Debug, Default)]
pub struct Permit {
    /// Whether all of them may be fetched: `--fetch`.
    pub all: bool,
    /// The repositories that the user names, `owner/name`: they are fetched, and the user's token may be sent for them.
    pub named: Vec<String>,
    /// Whether the user can be asked: a terminal, and neither `--json` nor `--quiet`.
    pub ask: bool,
}

impl Permit {
    /// Whether the user can be asked.
    #[must_use]
    pub fn can_ask(json: bool, quiet: bool) -> bool {
        !json && !quiet && io::stdin().is_terminal() && crate::output::terminal()
    }
}

/// A third party's file that names models.
#[derive(Clone, Debug)]
pub enum Foreign {
    /// A bundle.
    Bundle(PathBuf),
    /// A picture with a recipe.
    Picture(PathBuf),
}

impl Foreign {
    fn describe(&self) -> String {
        match self {
            Self::Bundle(path) => format!("the bundle {}", path.display()),
            Self::Picture(path) => format!("the picture {}", path.display()),
        }
    }
}

/// Asks a question that is answered by yes or no.
type Ask = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What a yes is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    /// The list of a repository's files, and the files whose sizes the foreign file declares.
    Declared,
    /// Every file of the repository that is needed.
    Whole,
}

/// What may be fetched for a foreign file.
pub struct Consent {
    foreign: Foreign,
    all: bool,
    named: Mutex<BTreeSet<String>>,
    /// The bytes of files on hubs, as the foreign file declares them.
    declared: Mutex<BTreeMap<PathBuf, u64>>,
    /// The answers so far, by model.
    answers: Mutex<BTreeMap<(PathBuf, Scope), bool>>,
    ask: Option<Ask>,
}

impl std::fmt::Debug for Consent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consent")
            .field("foreign", &self.foreign)
            .field("all", &self.all)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks on the terminal. No answer is no, and so is an interruption, after which the command ends.
fn on_terminal(question: &str) -> bool {
    tell(&format!("{question} [y/N]"));
    let mut input = io::stdin().lock();
    #[cfg(unix)]
    let answer = {
        let stdin = io::stdin();
        line(&mut input, stdin.as_fd(), interrupt::is_requested)
    };
    #[cfg(not(unix))]
    let answer = {
        let mut answer = String::new();
        input.read_line(&mut answer).map(|_| answer)
    };
    answer.is_ok_and(|answer| {
        matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
            && !interrupt::is_requested()
    })
}

/// Reads a line, and looks ten times a second whether that is over: reading alone goes on when a signal is handled.
/// `input` reads from `source` and has nothing buffered; a terminal hands out one line at a time.
#[cfg(unix)]
fn line(
    input: &mut impl BufRead,
    source: BorrowedFd<'_>,
    is_over: impl Fn() -> bool,
) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        if is_over() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut poll = libc::pollfd {
            fd: source.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: it is one entry, and its descriptor is open as long as `source` is borrowed.
        match unsafe { libc::poll(&raw mut poll, 1, 100) } {
            0 => continue,
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            _ => {}
        }
        let piece = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            piece => piece?,
        };
        let length = piece.len();
        if length == 0 {
            break; // the end of the input, Ctrl-D
        }
        line.extend_from_slice(piece);
        input.consume(length);
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

impl Consent {
    /// What the command line permits for a foreign file.
    #[must_use]
    pub fn new(foreign: Foreign, permit: Permit) -> Self {
        Self {
            foreign,
            all: permit.all,
            named: Mutex::new(permit.named.into_iter().collect()),
            declared: Mutex::default(),
            answers: Mutex::default(),
            ask: (permit.ask).then(|| Box::new(on_terminal) as Ask),
        }
    }

    /// Notes a repository that the user names: it may be fetched, with the user's token.
    pub fn name(&self, repo: String) {
        lock(&self.named).insert(repo);
    }

    /// Notes the sizes of files, by their paths, as the foreign file declares them.
    pub fn declare(&self, sizes: impl IntoIterator<Item = (PathBuf, u64)>) {
        let sizes = sizes.into_iter().map(|(path, size)| (normal(&path), size));
        lock(&self.declared).extend(sizes);
    }

    /// The bytes that a file has by what the foreign file declares.
    pub fn declared(&self, path: &Path) -> Option<u64> {
        lock(&self.declared).get(&normal(path)).copied()
    }

    /// Whether the user's token may be sent for a repository.
    pub fn sends_token(&self, repo: &str) -> bool {
        lock(&self.named).contains(repo)
    }

    /// Whether everything of a model may be fetched without another question.
    pub fn is_granted(&self, address: &Address) -> bool {
        let answer = (address.model(), Scope::Whole);
        self.all
            || self.sends_token(&address.repo())
            || lock(&self.answers).get(&answer) == Some(&true)
    }

    /// The files of a model that the foreign file declares: how many, and their bytes.
    fn sum(&self, address: &Address) -> (usize, u64) {
        let model = address.model();
        let declared = lock(&self.declared);
        let own = declared
            .iter()
            .filter(|(path, _)| Address::parse(path).is_ok_and(|file| file.model() == model));
        let sizes: Vec<u64> = own.map(|(_, size)| *size).collect();
        (sizes.len(), total(sizes))
    }

    /// The files of a model as the foreign file declares them, for messages.
    pub fn extent(&self, address: &Address) -> String {
        match self.sum(address) {
            (0, _) => "size unknown".to_owned(),
            (1, bytes) => format!("1 file, {}", size(bytes)),
            (files, bytes) => format!("{files} files, {}", size(bytes)),
        }
    }

    fn asked(&self, address: &Address, scope: Scope, question: impl FnOnce() -> String) -> bool {
        if self.is_granted(address) {
            return true;
        }
        let Some(ask) = &self.ask else {
            return false;
        };
        let key = (address.model(), scope);
        if let Some(known) = lock(&self.answers).get(&key) {
            return *known;
        }
        let answer = ask(&question());
        lock(&self.answers).insert(key, answer);
        answer
    }

    /// Whether a hub may be asked for the list of a model's files. `revision` is what is asked for.
    pub fn may_list(&self, address: &Address, revision: &str, endpoint: &str) -> bool {
        self.asked(address, Scope::Declared, || {
            let (what, repo) = (self.foreign.describe(), address.repo());
            match self.sum(address) {
                (0, _) => format!(
                    "{what} names the model {repo} at {revision} on {endpoint}, which is not in the cache, and does not say how large it is. \
                     Ask the hub for the list of its files, without your token?"
                ),
                _ => format!(
                    "{what} names the model {repo} at {revision} on {endpoint}, which is not in the cache: {}. Fetch it, without your token?",
                    self.extent(address)
                ),
            }
        })
    }

    /// Whether a file of a model may be fetched.
    pub fn may_fetch(
        &self,
        address: &Address,
        path: &Path,
        commit: &str,
        listing: Option<&Listing>,
        endpoint: &str,
    ) -> bool {
        if self.declared(path).is_some() {
            return self.may_list(address, commit, endpoint);
        }
        self.asked(address, Scope::Whole, || {
            let (what, repo) = (self.foreign.describe(), address.repo());
            let all = listing.map_or_else(
                || "of an unknown size".to_owned(),
                |listing| {
                    let bytes = total(listing.files.values().filter_map(|file| file.size));
                    format!("{} files, {} in all", listing.files.len(), size(bytes))
                },
            );
            format!(
                "{what} names the model {repo} at {commit} on {endpoint} ({all}). Fetch the files of it that are needed, without your token?"
            )
        })
    }

    /// The message and the hint for a model that is not fetched without consent.
    pub fn refusal(&self, address: &Address) -> (String, String) {
        let repo = address.repo();
        let message = format!(
            "`{}` is not in the cache ({}). It is named by {} and is not fetched without your consent",
            address.model().display(),
            self.extent(address),
            self.foreign.describe(),
        );
        let before = match &self.foreign {
            Foreign::Bundle(path) => format!(", `retouch fetch {}` beforehand", path.display()),
            Foreign::Picture(_) => String::new(),
        };
        let help = format!(
            "`--fetch` fetches what it names without your token{before}; `--token-for {repo}` fetches this repository with your token"
        );
        (message, help)
    }

    /// The hint when a hub refuses a repository to a request without a token.
    pub fn without_token(&self, repo: &str) -> String {
        format!(
            "your token was not sent, as the repository is named by {} and not by you: `--token-for {repo}` sends it",
            self.foreign.describe()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::client::Listed;
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn address(text: &str) -> Address {
        Address::parse(Path::new(text)).unwrap()
    }

    /// A consent that is answered with `answers` in turn, and the questions that were asked.
    fn asked(answers: &[bool]) -> (Consent, Arc<Mutex<Vec<String>>>) {
        let questions: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, answers) = (Arc::clone(&questions), answers.to_vec());
        let mut consent = Consent::new(Foreign::Picture("a.png".into()), Permit::default());
        consent.ask = Some(Box::new(move |question| {
            let mut log = lock(&log);
            log.push(question.to_owned());
            answers[log.len() - 1]
        }));
        (consent, questions)
    }

    #[cfg(unix)]
    #[test]
    fn an_answer_is_waited_for_until_it_comes_or_the_user_interrupts() {
        use std::cell::Cell;
        use std::io::{BufReader, Write};
        let (reader, mut writer) = io::pipe().unwrap();
        let mut input = BufReader::new(reader.try_clone().unwrap());
        // Nothing comes: it ends when it is over, not before.
        let looks = Cell::new(0);
        let is_over = || {
            looks.set(looks.get() + 1);
            looks.get() == 3
        };
        let error = line(&mut input, reader.as_fd(), is_over).unwrap_err();
        assert_eq!((error.kind(), looks.get()), (io::ErrorKind::Interrupted, 3));
        let mut read = || line(&mut input, reader.as_fd(), || false);
        writer.write_all(b"yes\n").unwrap();
        assert_eq!(read().unwrap(), "yes\n");
        // In two pieces, the second while it waits.
        writer.write_all(b"y").unwrap();
        let later = std::thread::spawn(move || {
            writer.write_all(b"e\n").unwrap();
            writer
        });
        assert_eq!(read().unwrap(), "ye\n");
        let mut writer = later.join().unwrap();
        // What the input's end cuts off counts as it is.
        writer.write_all(b"n").unwrap();
        drop(writer);
        assert_eq!(read().unwrap(), "n");
        assert_eq!(read().unwrap(), "");
    }

    #[test]
    fn a_declared_model_is_asked_about_once_with_its_repository_revision_and_size() {
        let (consent, questions) = asked(&[true]);
        let model = address(&format!("hf://a/b@{COMMIT}"));
        let file = |name: &str| PathBuf::from(format!("hf://a/b@{COMMIT}/{name}"));
        consent.declare([(file("x.json"), 1 << 20), (file("y.json"), 2 << 20)]);
        consent.declare([(PathBuf::from("hf://c/d/z.json"), 1 << 30)]);
        for name in ["x.json", "y.json"] {
            assert!(consent.may_list(&model, COMMIT, "https://hub"));
            assert!(consent.may_fetch(&model, &file(name), COMMIT, None, "https://hub"));
        }
        let questions = lock(&questions);
        assert_eq!(questions.len(), 1, "{questions:?}");
        for part in ["a.png", "a/b", COMMIT, "https://hub", "2 files, 3.0 MiB"] {
            assert!(questions[0].contains(part), "{part}: {questions:?}");
        }
        assert!(!consent.sends_token("a/b"), "a yes is no name");
    }

    #[test]
    fn what_is_not_declared_is_asked_about_by_what_the_hub_lists() {
        let (consent, questions) = asked(&[true, false]);
        let model = address("hf://a/b");
        let mut listing = Listing::default();
        for (name, bytes) in [("x.json", 5 << 20), ("y.bin", 7 << 20)] {
            let listed = Listed {
                size: Some(bytes),
                ..Listed::default()
            };
            listing.files.insert(name.to_owned(), listed);
        }
        assert!(consent.may_list(&model, "main", "https://hub"));
        let file = Path::new("hf://a/b/x.json");
        for _ in 0..2 {
            assert!(!consent.may_fetch(&model, file, COMMIT, Some(&listing), "https://hub"));
        }
        let questions = lock(&questions);
        assert_eq!(questions.len(), 2, "{questions:?}");
        assert!(questions[0].contains("does not say how large"));
        assert!(questions[1].contains("2 files, 12.0 MiB in all"));
    }

    #[test]
    fn without_a_terminal_only_what_the_command_line_names_is_fetched() {
        let file = Path::new("hf://a/b/x.json");
        let may = |permit: Permit, text: &str| {
            let consent = Consent::new(Foreign::Bundle("x.tar.zst".into()), permit);
            let address = address(text);
            let listed = consent.may_list(&address, "main", "https://hub");
            let fetched = consent.may_fetch(&address, file, COMMIT, None, "https://hub");
            assert_eq!(listed, fetched);
            (listed, consent.sends_token(&address.repo()))
        };
        let named = Permit {
            named: vec!["a/b".to_owned()],
            ..Permit::default()
        };
        let all = Permit {
            all: true,
            ..Permit::default()
        };
        assert_eq!(may(Permit::default(), "hf://a/b"), (false, false));
        assert_eq!(may(all, "hf://a/b"), (true, false));
        assert_eq!(may(named.clone(), "hf://a/b"), (true, true));
        assert_eq!(may(named, "hf://a/c"), (false, false));
    }
}
