//! Starts workers: processes of this machine, an array of Slurm's, or whoever is told the line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use retouch_cluster::{Objects, Place, slurm};
use retouch_graph::{Cancel, Code};

use super::profile::{self, Profile};
use super::run::{JobEntry, Run};
use crate::args::{CacheArgs, OnArgs, Where};
use crate::output::{say, say_raw, tell};
use crate::{Failure, signals};

/// How often it is looked whether a worker ended.
const LOOK: Duration = Duration::from_millis(50);

/// How workers are started.
pub struct Launch<'a> {
    /// Where, how many, with which options of a scheduler.
    pub on: &'a OnArgs,
    /// Where, when it is not said: where the run was begun.
    pub place: Where,
    /// How many.
    pub workers: usize,
    /// The output folder.
    pub out: &'a Path,
    /// Options of each worker: of the cache, of models.
    pub options: Vec<String>,
    /// Threads of each, if that is said.
    pub threads: Option<u16>,
    /// Whether only the script is printed.
    pub dry_run: bool,
}

/// What became of workers that were waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launched {
    /// All of them ended well.
    Ended,
    /// They work on without us.
    Away,
}

/// The number of workers when it is not said: one a GPU, else one for each four cores.
pub fn workers(device: &str) -> usize {
    match device.starts_with("cuda") {
        true => gpus().len().max(1),
        false => (cores() / 4).max(1),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them.
fn gpus() -> Vec<String> {
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        let names = visible.split(',').map(str::trim);
        return names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
    }
    let listed = Command::new("nvidia-smi")
        .arg("-L")
        .stdin(Stdio::null())
        .output();
    let text = listed
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    (0..text.lines().filter(|line| line.starts_with("GPU ")).count())
        .map(|gpu| gpu.to_string())
        .collect()
}

/// Whether what is said of Slurm goes with where workers are started.
///
/// # Errors
/// When it does not.
pub fn fits(on: &OnArgs, place: Where) -> Result<(), Failure> {
    let of_slurm =
        !on.sbatch.is_empty() || on.profile.is_some() || on.at_once.is_some() || on.collect;
    if place != Where::Slurm && of_slurm {
        return Err(Failure::usage(
            "`--sbatch`, `--profile`, `--at-once` and `--collect` are for `--on slurm`",
        )
        .help("leave them out, or submit to Slurm"));
    }
    Ok(())
}

/// The options of the cache and of what is told, as each worker is started with them.
pub fn options(cache: &CacheArgs, quiet: bool) -> Vec<String> {
    let number = |bytes: Option<u64>| bytes.map(|bytes| bytes.to_string());
    let folder = |path: &PathBuf| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        path.display().to_string()
    };
    let valued = [
        ("--cache-dir", cache.cache_dir.as_ref().map(folder)),
        (
            "--remote-cache",
            cache.remote_cache.as_deref().map(super::shared_place),
        ),
        ("--disk-cache", number(cache.disk_cache)),
        ("--ram-cache", number(cache.ram_cache)),
        ("--device-cache", number(cache.device_cache)),
        ("--source-store", number(cache.source_store)),
    ];
    let flags = [
        ("--no-cache", cache.no_cache),
        ("--remote-read-only", cache.remote_read_only),
        ("--quiet", quiet),
    ];
    let valued = valued
        .into_iter()
        .filter_map(|(name, value)| Some([name.to_owned(), value?]));
    let flags = flags
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| name.to_owned());
    valued.flatten().chain(flags).collect()
}

impl Launch<'_> {
    /// The line that starts a worker, word by word.
    fn line(&self, run: &Run) -> Vec<String> {
        let program = std::env::current_exe()
            .map_or_else(|_| "retouch".to_owned(), |path| path.display().to_string());
        let mut words = vec![program, "worker".to_owned(), run.about.run.clone()];
        words.push("--store".to_owned());
        words.push(run.store.shown());
        words.extend(self.options.iter().cloned());
        words
    }

    /// Starts the workers of a run. Those of this machine are waited for.
    ///
    /// # Errors
    /// When they cannot be started, or one of them failed.
    pub fn start(&self, run: &Run, cancel: &Cancel) -> Result<Launched, Failure> {
        match self.place {
            Where::Local => self.local(run, cancel),
            Where::Slurm => self.slurm(run),
            Where::Command => {
                let words = self.line(run);
                let words: Vec<String> = words.iter().map(|word| slurm::quoted(word)).collect();
                say_raw(&format!("{}\n", words.join(" ")))?;
                Ok(Launched::Away)
            }
        }
    }

    fn local(&self, run: &Run, cancel: &Cancel) -> Result<Launched, Failure> {
        let gpus = match run.about.asked.device.starts_with("cuda") {
            true => gpus(),
            false => Vec::new(),
        };
        let threads = self
            .threads
            .map_or_else(|| (cores() / self.workers.max(1)).max(1), usize::from);
        let mut words = self.line(run);
        words.push("--threads".to_owned());
        words.push(threads.to_string());
        let mut children: Vec<Child> = Vec::new();
        let mut failed = 0;
        for worker in 0..self.workers {
            let mut command = Command::new(&words[0]);
            command
                .args(&words[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            if !gpus.is_empty() {
                command.env("CUDA_VISIBLE_DEVICES", &gpus[worker % gpus.len()]);
            }
            match command.spawn() {
                Ok(child) => children.push(child),
                Err(error) => {
                    tell(&format!("warning: a worker cannot be started: {error}"));
                    failed += 1;
                }
            }
        }
        let mut told = false;
        while !children.is_empty() {
            if cancel.is_cancelled() && !told {
                told = true;
                children.iter().for_each(signals::end);
            }
            children.retain_mut(|child| match child.try_wait() {
                Ok(Some(status)) => {
                    failed += usize::from(!status.success());
                    false
                }
                Ok(None) => true,
                Err(_) => false,
            });
            std::thread::sleep(LOOK);
        }
        if cancel.is_cancelled() {
            return Err(Failure::interrupted(&format!(
                "what was finished is in the store, and `retouch sweep resume {} --store {}` continues from there",
                run.about.run,
                slurm::quoted(&run.store.shown())
            )));
        }
        // The others did what one left.
        if failed == self.workers {
            return Err(Failure::failed("every worker failed, as they said above"));
        }
        Ok(Launched::Ended)
    }

    /// The folder that jobs print to.
    fn logs(&self, run: &Run) -> PathBuf {
        match run.store.place() {
            Place::Folder(folder) => folder.join(run.name("slurm")),
            Place::Bucket { .. } => {
                let out = std::path::absolute(self.out).unwrap_or_else(|_| self.out.to_owned());
                out.join(".retouch-slurm").join(&run.about.run)
            }
        }
    }

    fn array(&self, run: &Run, profile: &Profile) -> Result<slurm::Array, Failure> {
        let mut options = profile.sbatch.clone();
        for text in &self.on.sbatch {
            let more =
                slurm::options(text).map_err(|why| Failure::usage(format!("`--sbatch`: {why}")))?;
            options.extend(more);
        }
        // `sweep cancel` ends the jobs of this name alone.
        let names = |option: &&String| option.starts_with("--job-name") || option.starts_with("-J");
        if let Some(option) = options.iter().find(names) {
            return Err(Failure::usage(format!(
                "`{option}` cannot be given: the jobs of a run have its name, by which `retouch sweep cancel` finds them"
            )));
        }
        let logs = self.logs(run);
        let threads = self
            .threads
            .map(|threads| ["--threads".to_owned(), threads.to_string()]);
        Ok(slurm::Array {
            run: run.about.run.clone(),
            workers: self.workers,
            at_once: self.on.at_once,
            log: logs.join("%A_%a.log").display().to_string(),
            options,
            setup: profile.setup.clone(),
            worker: (profile.launch.iter().cloned())
                .chain(self.line(run))
                .chain(threads.into_iter().flatten())
                .collect(),
        })
    }

    fn slurm(&self, run: &Run) -> Result<Launched, Failure> {
        let profile = self
            .on
            .profile
            .as_deref()
            .map(profile::read)
            .transpose()?
            .unwrap_or_default();
        let array = self.array(run, &profile)?;
        let script = slurm::script(&array).map_err(Failure::usage)?;
        if self.dry_run {
            say_raw(&script)?;
            return Ok(Launched::Away);
        }
        let logs = self.logs(run);
        std::fs::create_dir_all(&logs).map_err(|error| {
            Failure::unwritable(format!(
                "the folder {} cannot be made: {error}",
                logs.display()
            ))
        })?;
        let job = submit(&script, &[])?;
        run.add_job(&JobEntry {
            slurm: job,
            workers: self.workers,
            logs,
        })?;
        say(&format!("job {job}: {} workers", self.workers))?;
        if self.on.collect {
            let collect = self.collecting(run, &array);
            let script = slurm::script(&collect).map_err(Failure::usage)?;
            let after = format!("--dependency=afterany:{job}");
            say(&format!(
                "job {}: collects when they are over",
                submit(&script, &[after])?
            ))?;
        }
        Ok(Launched::Away)
    }

    /// The job that collects.
    fn collecting(&self, run: &Run, workers: &slurm::Array) -> slurm::Array {
        let out = std::path::absolute(self.out).unwrap_or_else(|_| self.out.to_owned());
        let mut words: Vec<String> = workers.worker.clone();
        // The launcher and the program stay.
        let at = words.iter().position(|word| word == "worker").unwrap_or(0);
        words.truncate(at);
        let shown = run.store.shown();
        let more = [
            "sweep",
            "collect",
            run.about.run.as_str(),
            "--store",
            shown.as_str(),
            "--out",
        ];
        words.extend(more.map(str::to_owned));
        words.push(out.display().to_string());
        slurm::Array {
            workers: 1,
            at_once: None,
            worker: words,
            ..workers.clone()
        }
    }
}

/// Hands a script to Slurm; the job's number.
fn submit(script: &str, options: &[String]) -> Result<u64, Failure> {
    let failed = |why: &str| {
        Failure::failed(format!("sbatch did not take the job: {why}"))
            .code(Code::SchedulerFailed)
            .help(
                "`--dry-run` prints the script; `--sbatch` and `--profile` say what the site needs",
            )
    };
    let child = Command::new("sbatch")
        .arg("--parsable")
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| failed(&error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it did not read it says itself.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(&error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(said.trim()));
    }
    let answer = String::from_utf8_lossy(&output.stdout);
    slurm::submitted(&answer).ok_or_else(|| failed(&format!("it answered `{}`", answer.trim())))
}

/// Runs one of Slurm's commands.
fn ask(program: &str, arguments: &[String]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// How often a controller that does not answer is asked again, after half a second more each time.
const TRIES: u32 = 3;

/// The tasks of some jobs that are in the queue, asked for at once.
///
/// # Errors
/// Why Slurm does not answer, in words.
pub fn queue(jobs: &[JobEntry]) -> Result<Vec<slurm::Task>, String> {
    let ids: Vec<String> = jobs.iter().map(|job| job.slurm.to_string()).collect();
    let ids = format!("--jobs={}", ids.join(","));
    let mut why = String::new();
    for again in 0..TRIES {
        std::thread::sleep(Duration::from_millis(500) * again);
        let answer = ask("squeue", &["--json".to_owned(), ids.clone()]);
        if let Ok(text) = &answer
            && let Some(tasks) = slurm::tasks_of_json(text)
        {
            return Ok(tasks);
        }
        // An older one, or one that was built without JSON.
        let format = format!("--format={}", slurm::FORMAT);
        match ask("squeue", &["--noheader".to_owned(), ids.clone(), format]) {
            Ok(text) => return Ok(slurm::tasks(&text)),
            Err(error) if slurm::is_forgotten(&error) => return Ok(Vec::new()),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Ends jobs of a run.
///
/// # Errors
/// Why Slurm does not, in words.
pub fn scancel(run: &str, jobs: &[JobEntry]) -> Result<(), String> {
    // The numbers are what the store says; jobs of another name are not touched.
    let mut arguments = vec![format!("--name={run}")];
    arguments.extend(jobs.iter().map(|job| job.slurm.to_string()));
    match ask("scancel", &arguments) {
        Err(error) if !slurm::is_forgotten(&error) => Err(error),
        _ => Ok(()),
    }
}
