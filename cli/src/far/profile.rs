//! Profiles of clusters: what a site's jobs need, in a file beside the workflow or in a group's folder.

use std::path::Path;

use retouch_graph::yaml::{self, Node};
use retouch_graph::{Code, files};

use crate::Failure;

/// What the jobs of a cluster need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Options of `sbatch`.
    pub sbatch: Vec<String>,
    /// Lines of shell before a worker: modules to load.
    pub setup: Vec<String>,
    /// Words before the worker's own: a container.
    pub launch: Vec<String>,
}

/// Reads a profile.
///
/// # Errors
/// When it cannot be read, or makes no sense; it says where.
pub fn read(path: &Path) -> Result<Profile, Failure> {
    let name = path.display().to_string();
    let bytes = files::read(path, yaml::MAX_BYTES as u64)
        .map_err(|error| Failure::unreadable_argument(path, error))?;
    let wrong = |line: usize, column: usize, what: &str| {
        Failure::usage(format!("{name}:{line}:{column}: {what}"))
            .code(Code::BadConfiguration)
            .help("a profile is `sbatch: [--partition=gpu]`, `setup: [module load cuda]`, `launch: [apptainer, exec, image.sif]`")
    };
    let mut problems = Vec::new();
    let source = yaml::decode(&name, &bytes).map_err(|problem| {
        let (line, column) = problem.line_column();
        wrong(line, column, problem.message())
    })?;
    let tree = yaml::parse(&source, &mut problems);
    if let Some(first) = problems.first() {
        let (line, column) = first.line_column();
        return Err(wrong(line, column, first.message()));
    }
    let mut profile = Profile::default();
    let entries = match tree.map(|tree| tree.node) {
        None | Some(Node::Null) => return Ok(profile),
        Some(Node::Map(entries)) => entries,
        Some(_) => return Err(wrong(1, 1, "a profile is a map")),
    };
    for (key, value) in entries {
        let (line, column) = source.line_column(key.span.start);
        let list = match key.text.as_str() {
            "sbatch" => &mut profile.sbatch,
            "setup" => &mut profile.setup,
            "launch" => &mut profile.launch,
            other => return Err(wrong(line, column, &format!("a profile has no `{other}`"))),
        };
        let Node::Seq(items) = value.node else {
            return Err(wrong(
                line,
                column,
                &format!("`{}` is a list of texts", key.text),
            ));
        };
        for item in items {
            let (line, column) = source.line_column(item.span.start);
            match item.node {
                Node::String { text, .. } => list.push(text),
                _ => {
                    return Err(wrong(
                        line,
                        column,
                        &format!("`{}` is a list of texts", key.text),
                    ));
                }
            }
        }
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Profile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.yaml");
        std::fs::write(&path, text).unwrap();
        let shown = folder.path().display().to_string();
        read(&path).map_err(|failure| failure.message().replace(&shown, ""))
    }

    #[test]
    fn a_profile_is_read_and_its_faults_have_a_place() {
        let text = "sbatch: [--partition=gpu, \"--gres=gpu:1\"]\nsetup:\n  - module load cuda\nlaunch: [apptainer, exec, --nv, r.sif]\n";
        let profile = of(text).unwrap();
        assert_eq!(profile.sbatch, ["--partition=gpu", "--gres=gpu:1"]);
        assert_eq!(profile.setup, ["module load cuda"]);
        assert_eq!(profile.launch.len(), 4);
        assert_eq!(of("").unwrap(), Profile::default());
        assert_eq!(
            of("partition: gpu\n").unwrap_err(),
            "/lab.yaml:1:1: a profile has no `partition`"
        );
        assert_eq!(
            of("sbatch: gpu\n").unwrap_err(),
            "/lab.yaml:1:1: `sbatch` is a list of texts"
        );
        assert_eq!(
            of("sbatch:\n  - [a]\n").unwrap_err(),
            "/lab.yaml:2:5: `sbatch` is a list of texts"
        );
    }
}
