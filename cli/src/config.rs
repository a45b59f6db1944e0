//! The settings of this user: the environment, then the configuration file, then the defaults. `retouch config` prints them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use retouch_graph::yaml::{self, Node, Tree};
use retouch_graph::{Code, Source, Span, files};

use crate::{Failure, parse_size};

/// What the configuration file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The device.
    pub device: Option<String>,
    /// The type of weights.
    pub dtype: Option<String>,
    /// Folders of models.
    pub models: Vec<PathBuf>,
    /// The output folder.
    pub out: Option<PathBuf>,
    /// The store of runs.
    pub store: Option<String>,
    /// The cache's remote level.
    pub remote_cache: Option<String>,
    /// The cache's settings.
    pub cache: CacheConfig,
}

/// What the configuration file says of the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheConfig {
    /// The folder.
    pub folder: Option<PathBuf>,
    /// Bytes of a device's memory.
    pub device: Option<u64>,
    /// Bytes of the host's memory.
    pub ram: Option<u64>,
    /// Bytes of disk.
    pub disk: Option<u64>,
    /// Bytes of keys and values of attention.
    pub sources: Option<u64>,
}

/// What the file may hold.
const FORM: &str = "the file is `device: cuda`, `dtype: bf16`, `models: [DIR]`, `out: DIR`, `store: PLACE`, `remote_cache: PLACE`, `cache: {folder: DIR, device: 2GiB, ram: 2GiB, disk: 10GiB, sources: 6GiB}`";

/// The configuration file: `RETOUCH_CONFIG`, else `retouch/config.yaml` in the platform's configuration folder.
#[must_use]
pub fn file() -> Option<PathBuf> {
    match std::env::var_os("RETOUCH_CONFIG") {
        Some(path) if path.is_empty() => None,
        Some(path) => Some(PathBuf::from(path)),
        None => dirs::config_dir().map(|folder| folder.join("retouch").join("config.yaml")),
    }
}

/// What is wrong with the file: where and what, and a help.
type Fault = (String, String);

/// The configuration, read once in a process.
///
/// # Errors
/// When the file cannot be read or makes no sense.
pub fn get() -> Result<&'static Config, Failure> {
    let fault = |(message, help): &Fault| {
        let failure = Failure::usage(message.clone()).code(Code::BadConfiguration);
        match help.is_empty() {
            true => failure,
            false => failure.help(help.clone()),
        }
    };
    read_once().as_ref().map_err(fault)
}

fn read_once() -> &'static Result<Config, Fault> {
    static CONFIG: OnceLock<Result<Config, Fault>> = OnceLock::new();
    CONFIG.get_or_init(read)
}

/// What holds where the file is silent, or at fault: who uses a setting reads the file again with [`get`] and tells.
fn known() -> Config {
    read_once().as_ref().cloned().unwrap_or_default()
}

/// The device that is meant when none is named.
#[must_use]
pub fn device() -> String {
    known().device.unwrap_or_else(|| "cpu".to_owned())
}

/// The type of weights that is meant when none is named.
#[must_use]
pub fn dtype() -> String {
    known().dtype.unwrap_or_else(|| "f32".to_owned())
}

/// The output folder that is meant when none is named.
#[must_use]
pub fn out() -> PathBuf {
    known().out.unwrap_or_else(|| PathBuf::from("out"))
}

/// The folders of models that the file names.
#[must_use]
pub fn models() -> Vec<PathBuf> {
    known().models
}

fn read() -> Result<Config, Fault> {
    let Some(file) = file() else {
        return Ok(Config::default());
    };
    let bytes = match files::read(&file, yaml::MAX_BYTES as u64) {
        Ok(bytes) => bytes,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && std::env::var_os("RETOUCH_CONFIG").is_none() =>
        {
            return Ok(Config::default());
        }
        Err(error) => {
            let message = format!(
                "the configuration file {} cannot be read: {error}",
                file.display()
            );
            return Err((message, String::new()));
        }
    };
    parse(&file, &bytes)
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Config, Fault> {
    let name = file.display().to_string();
    let told = |problem: &retouch_graph::Problem| {
        let (line, column) = problem.line_column();
        let message = format!("{name}:{line}:{column}: {}", problem.message());
        (message, problem.hint().unwrap_or_default().to_owned())
    };
    let source = yaml::decode(&name, bytes).map_err(|problem| told(&problem))?;
    let mut problems = Vec::new();
    let tree = yaml::parse(&source, &mut problems);
    if let Some(first) = problems.first() {
        return Err(told(first));
    }
    let reader = Reader {
        name: &name,
        source: &source,
        folder: file.parent().unwrap_or(Path::new("")),
    };
    match tree {
        None => Ok(Config::default()),
        Some(tree) => reader.config(tree),
    }
}

/// Reads the file's tree.
struct Reader<'a> {
    name: &'a str,
    source: &'a Source,
    /// What paths count from.
    folder: &'a Path,
}

impl Reader<'_> {
    fn wrong(&self, span: Span, what: &str) -> Fault {
        let (line, column) = self.source.line_column(span.start);
        (
            format!("{}:{line}:{column}: {what}", self.name),
            FORM.to_owned(),
        )
    }

    fn config(&self, tree: Tree) -> Result<Config, Fault> {
        let entries = match tree.node {
            Node::Map(entries) => entries,
            Node::Null => Vec::new(),
            _ => return Err(self.wrong(tree.span, "the configuration is a map")),
        };
        let mut config = Config::default();
        for (key, value) in entries {
            match key.text.as_str() {
                "cache" => config.cache = self.cache(value)?,
                "device" => config.device = Some(self.text(&value)?),
                "dtype" => {
                    let dtype = self.text(&value)?;
                    if !["f32", "f16", "bf16"].contains(&dtype.as_str()) {
                        return Err(self.wrong(value.span, "`dtype` is f32, f16 or bf16"));
                    }
                    config.dtype = Some(dtype);
                }
                "out" => config.out = Some(self.folder.join(self.text(&value)?)),
                "store" => config.store = Some(self.place(&value)?),
                "remote_cache" => config.remote_cache = Some(self.place(&value)?),
                "models" => {
                    let Node::Seq(items) = &value.node else {
                        return Err(self.wrong(value.span, "`models` is a list of folders"));
                    };
                    for item in items {
                        config.models.push(self.folder.join(self.text(item)?));
                    }
                }
                other => {
                    return Err(self.wrong(key.span, &format!("there is no setting `{other}`")));
                }
            }
        }
        Ok(config)
    }

    fn text(&self, value: &Tree) -> Result<String, Fault> {
        match &value.node {
            Node::String { text, .. } if !text.is_empty() => Ok(text.clone()),
            _ => Err(self.wrong(value.span, "expected a text")),
        }
    }

    /// A store: a folder counts from the file's own.
    fn place(&self, value: &Tree) -> Result<String, Fault> {
        let text = self.text(value)?;
        match retouch_cluster::Place::parse(&text) {
            Ok(retouch_cluster::Place::Folder(folder)) => {
                Ok(self.folder.join(folder).display().to_string())
            }
            Ok(bucket) => Ok(bucket.to_string()),
            Err(why) => Err(self.wrong(value.span, &why)),
        }
    }

    fn cache(&self, tree: Tree) -> Result<CacheConfig, Fault> {
        let Node::Map(entries) = tree.node else {
            return Err(self.wrong(tree.span, "`cache` is a map"));
        };
        let mut config = CacheConfig::default();
        for (key, value) in entries {
            let text = match &value.node {
                Node::String { text, .. } => text.clone(),
                Node::Int(number) => number.to_string(),
                _ => return Err(self.wrong(value.span, "expected a size or a folder")),
            };
            if key.text == "folder" {
                config.folder = Some(self.folder.join(text));
                continue;
            }
            let bytes = parse_size(&text).map_err(|what| self.wrong(value.span, &what))?;
            match key.text.as_str() {
                "device" => config.device = Some(bytes),
                "ram" => config.ram = Some(bytes),
                "disk" => config.disk = Some(bytes),
                "sources" => config.sources = Some(bytes),
                other => {
                    return Err(self.wrong(key.span, &format!("`cache` has no setting `{other}`")));
                }
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Config, String> {
        parse(Path::new("/etc/r/config.yaml"), text.as_bytes()).map_err(|(message, _)| message)
    }

    #[test]
    fn settings_are_read_and_paths_count_from_the_file() {
        let text = "device: cuda\ndtype: bf16\nmodels: [/m, own]\nout: /out\nstore: s3://lab/runs\nremote_cache: shared\ncache: {disk: 1GiB, folder: c}\n";
        let config = of(text).unwrap();
        assert_eq!(
            (config.device.as_deref(), config.dtype.as_deref()),
            (Some("cuda"), Some("bf16"))
        );
        assert_eq!(config.models, [Path::new("/m"), Path::new("/etc/r/own")]);
        assert_eq!(config.out.as_deref(), Some(Path::new("/out")));
        assert_eq!(config.store.as_deref(), Some("s3://lab/runs"));
        assert_eq!(config.remote_cache.as_deref(), Some("/etc/r/shared"));
        assert_eq!(config.cache.disk, Some(1 << 30));
        assert_eq!(config.cache.folder.as_deref(), Some(Path::new("/etc/r/c")));
        assert_eq!(of("").unwrap(), Config::default());
    }

    #[test]
    fn faults_have_a_place_and_no_password() {
        for (text, says) in [
            ("dtype: f64\n", ":1:8: `dtype` is f32, f16 or bf16"),
            ("models: m\n", ":1:9: `models` is a list of folders"),
            ("device: [a]\n", ":1:9: expected a text"),
            ("store: s3://key:password@b\n", "holds no credentials"),
            ("colour: red\n", ":1:1: there is no setting `colour`"),
        ] {
            let error = of(text).unwrap_err();
            assert!(
                error.contains(says) && !error.contains("password"),
                "{error}"
            );
        }
    }
}
