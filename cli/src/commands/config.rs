//! `retouch config`.

use std::env;

use retouch_cluster::Place;
use serde_json::json;

use crate::config::{self, Config};
use crate::output::{say, say_json};
use crate::{Exit, Failure};

/// A setting, its value, and where that comes from.
struct Setting {
    name: &'static str,
    variable: &'static str,
    value: String,
    from: &'static str,
}

/// Finds a setting: the environment's, else the file's, else the default.
fn setting(
    name: &'static str,
    variable: &'static str,
    file: Option<String>,
    default: &str,
) -> Setting {
    let named = env::var(variable).ok().filter(|value| !value.is_empty());
    let (value, from) = match (named, file) {
        (Some(value), _) => (value, "environment"),
        (None, Some(value)) => (value, "file"),
        (None, None) => (default.to_owned(), "default"),
    };
    Setting {
        name,
        variable,
        value,
        from,
    }
}

/// An address of a store; one that is none, and may hold a password, is not shown.
fn place(mut setting: Setting) -> Setting {
    if !setting.value.is_empty() && Place::parse(&setting.value).is_err() {
        setting.value = "(no address)".to_owned();
    }
    setting
}

fn settings(config: &Config) -> Vec<Setting> {
    let models: Vec<String> = config
        .models
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    let models = (!models.is_empty()).then(|| models.join(":"));
    let folder = dirs::cache_dir().map(|folder| folder.join("retouch").display().to_string());
    let path =
        |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    vec![
        setting("device", "RETOUCH_DEVICE", config.device.clone(), "cpu"),
        setting("dtype", "RETOUCH_DTYPE", config.dtype.clone(), "f32"),
        setting("models", "RETOUCH_MODELS", models, ""),
        setting("out", "RETOUCH_OUT", path(&config.out), "out"),
        place(setting("store", "RETOUCH_STORE", config.store.clone(), "")),
        place(setting(
            "remote_cache",
            "RETOUCH_REMOTE_CACHE",
            config.remote_cache.clone(),
            "",
        )),
        setting(
            "cache",
            "RETOUCH_CACHE",
            path(&config.cache.folder),
            &folder.unwrap_or_default(),
        ),
    ]
}

/// Prints the settings and where each comes from.
///
/// # Errors
/// When the configuration file makes no sense.
pub fn config(json: bool) -> Result<Exit, Failure> {
    let config = config::get()?;
    let file = config::file().filter(|file| file.is_file());
    if json {
        let settings: Vec<_> = (settings(config).into_iter())
            .map(|one| json!({"name": one.name, "value": one.value, "from": one.from, "variable": one.variable}))
            .collect();
        let file = file.map(|file| file.display().to_string());
        say_json(&json!({"file": file, "settings": settings}).to_string())?;
        return Ok(Exit::Done);
    }
    for one in settings(config) {
        say(&format!(
            "{:<13} {:<32} {:<12} {}",
            one.name, one.value, one.from, one.variable
        ))?;
    }
    match file {
        Some(file) => say(&format!("file: {}", file.display()))?,
        None => say("file: none")?,
    }
    Ok(Exit::Done)
}
