//! Slurm through its commands: the script of an array of workers, and what `sbatch` and `squeue` answer. Pure functions: who runs
//! the commands is the caller.
//!
//! Slurm schedules; it is told of W workers once, not of each cell: `slurmctld` keeps a record of every job, and sites limit how
//! many one may have.

use serde_json::Value as Json;

/// How long before its end a worker is told, in seconds: a step of a large model, and what is written then.
pub const NOTICE: u32 = 90;

/// An array of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Array {
    /// The run, which the job is called by.
    pub run: String,
    /// The number of workers.
    pub workers: usize,
    /// How many of them at a time; all when `None`.
    pub at_once: Option<usize>,
    /// Where what they print goes; `%A` and `%a` are the job and the task.
    pub log: String,
    /// Options of `sbatch`, each as it stands on its command line: `--partition=gpu`.
    pub options: Vec<String>,
    /// Lines of shell before the worker: modules to load.
    pub setup: Vec<String>,
    /// What starts a worker, each word by itself.
    pub worker: Vec<String>,
}

/// A word as a shell reads it back.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,+@%".contains(letter);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Whether a text may stand in a line of `#SBATCH`, which ends at its end.
fn is_line(text: &str) -> bool {
    !text.contains(['\n', '\r', '\0'])
}

/// The script of an array of workers, for `sbatch`.
///
/// # Errors
/// When an option is none, in words.
pub fn script(array: &Array) -> Result<String, String> {
    let mut text = String::from("#!/bin/bash\n");
    let at_once = array
        .at_once
        .map_or_else(String::new, |most| format!("%{most}"));
    let own = [
        format!("--job-name={}", array.run),
        format!("--array=0-{}{at_once}", array.workers.max(1) - 1),
        "--requeue".to_owned(),
        "--open-mode=append".to_owned(),
        format!("--signal=B:USR2@{NOTICE}"),
        format!("--comment=retouch:{}", array.run),
        format!("--output={}", array.log),
    ];
    for option in own.iter().chain(&array.options) {
        if !option.starts_with('-') || !is_line(option) {
            return Err(format!(
                "`{option}` is no option of sbatch: it begins with `-`, and is one line"
            ));
        }
        // Slurm splits these lines as a shell does.
        text += &match option.split_once('=') {
            Some((name, value)) => format!("#SBATCH {name}={}\n", quoted(value)),
            None => format!("#SBATCH {option}\n"),
        };
    }
    text.push('\n');
    for line in &array.setup {
        text += line;
        text.push('\n');
    }
    let words: Vec<String> = array.worker.iter().map(|word| quoted(word)).collect();
    // `--signal=B:` tells this shell alone, and a shell that waits for its child hears nothing before the child ends.
    text += &format!(
        "late=
worker=
trap 'late=1; kill -USR2 \"$worker\" 2>/dev/null' USR2
trap 'kill -TERM \"$worker\" 2>/dev/null' TERM
{} &
worker=$!
code=0
wait \"$worker\" || code=$?
while kill -0 \"$worker\" 2>/dev/null; do
    code=0
    wait \"$worker\" || code=$?
done
# Stopped as its time is over, with work left: this task goes to the end of the queue.
if [ -n \"$late\" ] && [ \"$code\" -eq 130 ]; then
    exec scontrol requeue \"$SLURM_JOB_ID\"
fi
exit \"$code\"
",
        words.join(" ")
    );
    Ok(text)
}

/// The options of `sbatch` in one text, as on a command line: `--partition=gpu --time 2:00:00`.
///
/// # Errors
/// When a word is no option, in words.
pub fn options(text: &str) -> Result<Vec<String>, String> {
    let mut found: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match found.last_mut() {
            _ if word.starts_with('-') => found.push(word.to_owned()),
            // `--time 2:00:00` is `--time=2:00:00`.
            Some(last) if last.starts_with("--") && !last.contains('=') => {
                last.push('=');
                last.push_str(word);
            }
            _ => return Err(format!("`{word}` belongs to no option of sbatch")),
        }
    }
    Ok(found)
}

/// The job that `sbatch --parsable` names: `1234`, or `1234;cluster`.
#[must_use]
pub fn submitted(answer: &str) -> Option<u64> {
    let line = answer.lines().next_back()?;
    line.split(';').next()?.trim().parse().ok()
}

/// A task of an array, as `squeue` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The array's job.
    pub job: u64,
    /// The task of the array, or several that wait: `3`, `4-7%2`.
    pub task: String,
    /// `RUNNING`, `PENDING`, ...
    pub state: String,
    /// Where it runs; empty while it waits.
    pub nodes: String,
    /// Why it waits.
    pub reason: String,
}

/// How `squeue` is asked for all jobs at once in the older form: `job|state|nodes|reason`.
pub const FORMAT: &str = "%i|%T|%N|%r";

/// What `squeue --noheader --format=`[`FORMAT`] tells.
#[must_use]
pub fn tasks(text: &str) -> Vec<Task> {
    let line = |line: &str| {
        let mut parts = line.splitn(4, '|');
        let name = parts.next()?;
        let (job, task) = name.split_once('_').unwrap_or((name, ""));
        Some(Task {
            job: job.parse().ok()?,
            task: task.trim_matches(['[', ']']).to_owned(),
            state: parts.next()?.to_owned(),
            nodes: parts.next()?.to_owned(),
            reason: parts.next()?.trim().to_owned(),
        })
    };
    text.lines().filter_map(line).collect()
}

/// How many tasks a text names: `3` is one, `1,4-7%2` are five.
#[must_use]
pub fn count(tasks: &str) -> usize {
    let ranges = tasks.split('%').next().unwrap_or_default().split(',');
    let length = |range: &str| match range.split_once('-') {
        Some((from, to)) => {
            let (from, to) = (from.parse::<usize>(), to.parse::<usize>());
            from.ok()
                .zip(to.ok())
                .map_or(1, |(from, to)| (to + 1).saturating_sub(from))
        }
        None => 1,
    };
    ranges.map(length).sum()
}

/// A number as `squeue --json` has it: plain in the first versions, since 23.02 `{"set": true, "infinite": false, "number": 7}`.
fn number(value: &Json) -> Option<u64> {
    match value {
        Json::Number(number) => number.as_u64(),
        Json::Object(map) => map
            .get("set")
            .and_then(Json::as_bool)
            .unwrap_or(true)
            .then(|| map.get("number")?.as_u64())
            .flatten(),
        _ => None,
    }
}

/// What `squeue --json` tells; `None`: it is no answer of any version that we know.
#[must_use]
pub fn tasks_of_json(text: &str) -> Option<Vec<Task>> {
    let answer: Json = serde_json::from_str(text).ok()?;
    let jobs = answer.get("jobs")?.as_array()?;
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let one = |job: &Json| {
        let own = number(&job["job_id"])?;
        // 0 stands for a job that is no array.
        let array = number(&job["array_job_id"]).filter(|array| *array != 0);
        let task = match (&job["array_task_string"], number(&job["array_task_id"])) {
            (Json::String(waiting), _) if !waiting.is_empty() => waiting.clone(),
            (_, Some(task)) if array.is_some() => task.to_string(),
            _ => String::new(),
        };
        Some(Task {
            job: array.unwrap_or(own),
            task,
            // A list of flags since 23.11, of which the first is the state.
            state: match &job["job_state"] {
                Json::Array(states) => states.first().map(text).unwrap_or_default(),
                state => text(state),
            },
            nodes: text(&job["nodes"]),
            reason: text(&job["state_reason"]),
        })
    };
    Some(jobs.iter().filter_map(one).collect())
}

/// Whether an answer says that Slurm does not know the job: it is over, and forgotten.
#[must_use]
pub fn is_forgotten(error: &str) -> bool {
    error.contains("Invalid job id specified")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array() -> Array {
        Array {
            run: "20261130-104512-abcd".to_owned(),
            workers: 8,
            at_once: Some(4),
            log: "/shared/my runs/%A_%a.log".to_owned(),
            options: vec![
                "--partition=gpu".to_owned(),
                "--gres=gpu:1".to_owned(),
                "--exclusive".to_owned(),
            ],
            setup: vec!["module load cuda/12.4".to_owned()],
            worker: ["/opt/retouch", "worker", "R", "--store", "/shared/it's"]
                .map(str::to_owned)
                .into(),
        }
    }

    #[test]
    fn the_script_is_one_array_with_its_options_before_its_first_command() {
        let text = script(&array()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..13],
            [
                "#!/bin/bash",
                "#SBATCH --job-name=20261130-104512-abcd",
                "#SBATCH --array=0-7%4",
                "#SBATCH --requeue",
                "#SBATCH --open-mode=append",
                "#SBATCH --signal=B:USR2@90",
                "#SBATCH --comment=retouch:20261130-104512-abcd",
                "#SBATCH --output='/shared/my runs/%A_%a.log'",
                "#SBATCH --partition=gpu",
                "#SBATCH --gres=gpu:1",
                "#SBATCH --exclusive",
                "",
                "module load cuda/12.4",
            ]
        );
        assert!(
            text.contains("\n/opt/retouch worker R --store '/shared/it'\\''s' &\n"),
            "{text}"
        );
        let all = Array {
            at_once: None,
            workers: 1,
            ..array()
        };
        assert!(script(&all).unwrap().contains("#SBATCH --array=0-0\n"));
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for bad in ["partition=gpu", "--comment=a\nrm", ""] {
            let array = Array {
                options: vec![bad.to_owned()],
                ..array()
            };
            assert!(script(&array).unwrap_err().contains("no option of sbatch"));
        }
        assert_eq!(
            options("--time 2:00:00  -p gpu --mem=8G").unwrap_err(),
            "`gpu` belongs to no option of sbatch"
        );
        assert_eq!(
            options("--time 2:00:00 --mem=8G").unwrap(),
            ["--time=2:00:00", "--mem=8G"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_quoted_words_back() {
        for word in [
            "",
            "a b",
            "it's",
            "$HOME",
            "`x`",
            "\\",
            "a\nb",
            "*",
            "plain-1.0/x",
        ] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn the_answers_of_sbatch_are_read() {
        assert_eq!(submitted("1234\n"), Some(1234));
        assert_eq!(submitted("sbatch: a note\n1234;cluster\n"), Some(1234));
        assert_eq!(submitted("error"), None);
        assert_eq!(submitted(""), None);
    }

    #[test]
    fn the_queue_is_read_in_all_its_forms() {
        let running = Task {
            job: 7,
            task: "0".to_owned(),
            state: "RUNNING".to_owned(),
            nodes: "n1".to_owned(),
            reason: "None".to_owned(),
        };
        let waiting = Task {
            job: 7,
            task: "1-3%2".to_owned(),
            state: "PENDING".to_owned(),
            nodes: String::new(),
            reason: "JobArrayTaskLimit".to_owned(),
        };
        let expected = [waiting, running];
        let text = "7_[1-3%2]|PENDING||JobArrayTaskLimit\n7_0|RUNNING|n1|None\nslurm: a note\n";
        assert_eq!(tasks(text), expected);
        for fixture in [
            include_str!("../tests/squeue-22.05.json"),
            include_str!("../tests/squeue-24.11.json"),
        ] {
            assert_eq!(tasks_of_json(fixture).unwrap(), expected);
        }
        assert_eq!(
            [count("3"), count("1-3%2"), count("1,4-7%2"), count("")],
            [1, 3, 5, 1]
        );
        assert_eq!(tasks_of_json("{}"), None);
        assert_eq!(tasks_of_json("squeue: error"), None);
        assert!(is_forgotten(
            "slurm_load_jobs error: Invalid job id specified"
        ));
    }
}
