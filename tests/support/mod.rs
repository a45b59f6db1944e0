//! What the end-to-end suites share: an engine with all ops, and the program itself.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::Child;
use std::process::{Command, Output};
use std::sync::Arc;

use retouch_graph::{Cancel, Engine, Recorder, RunOptions, Settings, Value};
use retouch_nodes::Runtime;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// The program, to be run as a user would.
pub fn retouch(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("RETOUCH_NO_CACHE", "1")
        .env("RETOUCH_CONFIG", "")
        .output()
        .unwrap()
}

/// Sends a signal to a child that was not waited for yet.
#[cfg(unix)]
#[track_caller]
pub fn signal(child: &Child, signal: libc::c_int) {
    let id = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: it has no preconditions; the process was not waited for, so its number is its own.
    assert_eq!(unsafe { libc::kill(id, signal) }, 0);
}

/// Holds a child where it is, until `SIGCONT`. False: it has ended already.
#[cfg(unix)]
#[track_caller]
pub fn hold(child: &Child) -> bool {
    signal(child, libc::SIGSTOP);
    let mut status = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // `WNOWAIT`: the child stays to be waited for.
    let what = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: `status` is large enough for what is written to it.
    let waited = unsafe { libc::waitid(libc::P_PID, child.id(), status.as_mut_ptr(), what) };
    assert_eq!(waited, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: plain numbers, of which any value is one; the call has filled them in.
    unsafe { status.assume_init() }.si_code == libc::CLD_STOPPED
}

/// What a run printed of its outputs: that each file is what lay there already, and that there is one.
#[track_caller]
pub fn unchanged(said: &[u8]) {
    let said = String::from_utf8_lossy(said);
    let same = said.lines().all(|line| line.ends_with("(unchanged)"));
    assert!(same && !said.is_empty(), "{said:?}");
}

/// Whether the test of this name (`suite::test`) has the process for itself. If not, it is run in one that has, from the
/// repository's root, and nothing is left to do here: for tests that measure their process or depend on its current folder.
#[track_caller]
pub fn is_alone(test: &str) -> bool {
    const ALONE: &str = "RETOUCH_TEST_ALONE";
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .current_dir(root())
        .env(ALONE, test)
        .output()
        .unwrap();
    let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy);
    println!("{}", said.join("\n"));
    assert!(output.status.success(), "{test}: {}", output.status);
    // A name that no test has runs none, and that is a success.
    assert!(said[0].contains("1 passed"), "{test} is no test");
    false
}

/// An engine on the device that `RETOUCH_TEST_DEVICE` names (the CPU by default).
pub struct Bench {
    pub engine: Engine,
}

impl Bench {
    pub fn new() -> Self {
        Self::on(&std::env::var("RETOUCH_TEST_DEVICE").unwrap_or_else(|_| "cpu".into()))
    }

    /// The same on this device.
    pub fn on(device: &str) -> Self {
        let runtime = Runtime::by_name(device).unwrap();
        let numerics = runtime.numerics();
        Self {
            engine: Engine::new(retouch_nodes::registry())
                .with_environment(Arc::new(runtime))
                .with_numerics(numerics),
        }
    }

    /// Runs a workflow that is a text; its outputs by name.
    #[track_caller]
    pub fn run(&self, yaml: &str) -> BTreeMap<String, Value> {
        self.run_with(yaml, &[]).0
    }

    /// The same with `--set`, and what happened.
    #[track_caller]
    pub fn run_with(&self, yaml: &str, set: &[&str]) -> (BTreeMap<String, Value>, Recorder) {
        let settings = Settings {
            set: set.iter().map(|&s| s.to_owned()).collect(),
            ..Settings::default()
        };
        let checked = match self.engine.load_str("test.yaml", yaml, &settings) {
            Ok(checked) => checked,
            Err(problems) => panic!("{problems:?}\n{yaml}"),
        };
        let plan = self.engine.plan(&checked, &[]).unwrap();
        let recorder = Recorder::new();
        let options = RunOptions::default();
        let report = self
            .engine
            .run(&plan, &recorder, &Cancel::new(), &options)
            .unwrap();
        let outputs = report
            .outputs
            .into_iter()
            .map(|o| (o.name, o.value))
            .collect();
        (outputs, recorder)
    }
}
