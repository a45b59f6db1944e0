//! What S3's own tools know: the environment, then the profile in `~/.aws`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3Builder;

use super::Environment;

/// A longer file of settings is none.
const MOST: u64 = 1 << 20;

/// A client as the environment says; what it does not say is taken from the profile (`AWS_PROFILE`, else `default`) in the files
/// of AWS's tools.
pub(super) fn builder(environment: &Environment) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in &environment.0 {
        if name.starts_with("AWS_")
            && let Ok(key) = name.to_ascii_lowercase().parse()
        {
            builder = builder.with_config(key, value);
        }
    }
    let set = |names: &[&str]| names.iter().any(|name| environment.0.contains_key(*name));
    let profile = environment.get("AWS_PROFILE").unwrap_or("default");
    let section = match profile {
        "default" => profile.to_owned(),
        named => format!("profile {named}"),
    };
    let keys = read(
        environment,
        "AWS_SHARED_CREDENTIALS_FILE",
        "credentials",
        profile,
    );
    let config = read(environment, "AWS_CONFIG_FILE", "config", &section);
    let from_role = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    if !set(&from_role)
        && let (Some(id), Some(secret)) = (
            keys.get("aws_access_key_id"),
            keys.get("aws_secret_access_key"),
        )
    {
        builder = builder
            .with_access_key_id(id)
            .with_secret_access_key(secret);
        if let Some(token) = keys.get("aws_session_token") {
            builder = builder.with_token(token);
        }
    }
    if !set(&["AWS_REGION", "AWS_DEFAULT_REGION"])
        && let Some(region) = config.get("region").or_else(|| keys.get("region"))
    {
        builder = builder.with_region(region);
    }
    if !set(&["AWS_ENDPOINT", "AWS_ENDPOINT_URL"])
        && let Some(endpoint) = environment
            .get("AWS_ENDPOINT_URL_S3")
            .or_else(|| config.get("endpoint_url").map(String::as_str))
    {
        builder = builder.with_endpoint(endpoint);
    }
    builder
}

/// The settings of a section of one of AWS's files: the one that the variable names, else that of this name in `~/.aws`.
fn read(
    environment: &Environment,
    variable: &str,
    name: &str,
    section: &str,
) -> BTreeMap<String, String> {
    let path = match environment.get(variable) {
        Some(path) => Some(PathBuf::from(path)),
        None => (environment
            .get("HOME")
            .or_else(|| environment.get("USERPROFILE")))
        .map(|home| Path::new(home).join(".aws").join(name)),
    };
    let text = path.and_then(|path| {
        let small = fs::metadata(&path).is_ok_and(|there| there.is_file() && there.len() <= MOST);
        small.then(|| fs::read_to_string(&path).ok()).flatten()
    });
    text.map_or_else(BTreeMap::new, |text| settings(&text, section))
}

/// The settings of one section of a file in AWS's form.
fn settings(text: &str, section: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut within = false;
    for line in text.lines() {
        // An indented line belongs to the setting before it.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.trim();
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            within = name.trim() == section;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| within) {
            found.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::settings;

    #[test]
    fn a_profile_is_read_from_its_section_alone() {
        let text = "# keys\n[default]\naws_access_key_id = A\nAWS_SECRET_ACCESS_KEY=S=\ns3 =\n  region = nested\n\n[profile lab]\nregion = eu\n";
        let default = settings(text, "default");
        assert_eq!(default["aws_access_key_id"], "A");
        assert_eq!(default["aws_secret_access_key"], "S=");
        assert!(!default.contains_key("region"));
        assert_eq!(settings(text, "profile lab")["region"], "eu");
        assert!(settings(text, "other").is_empty());
    }
}
