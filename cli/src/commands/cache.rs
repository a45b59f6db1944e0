//! `retouch cache`.

use serde_json::json;

use crate::args::{CacheCommand, CacheToolArgs};
use crate::output::{say, say_json};
use crate::store::{Store, ago, size, unix};
use crate::{Exit, Failure};

/// Looks at the disk cache, or empties it.
///
/// # Errors
/// When the folder cannot be read or written.
// Long: one match over the subcommands, none of which shares code with another.
pub fn cache(args: &CacheToolArgs) -> Result<Exit, Failure> {
    let store = Store::of(&args.cache)?;
    let Some(folder) = store.folder.clone() else {
        return Err(Failure::usage("there is no disk cache")
            .help("`--no-cache`, a disk budget of 0 or a platform without a cache folder; name one with `--cache-dir`"));
    };
    let failed = |e: std::io::Error| {
        Failure::failed(format!(
            "the cache {} cannot be used: {e}",
            folder.display()
        ))
    };
    if !folder.exists() {
        // Looking makes nothing.
        say(&format!("{}: no cache there yet", folder.display()))?;
        return Ok(Exit::Done);
    }
    let Some(disk) = store.open_disk().map_err(failed)? else {
        return Ok(Exit::Done);
    };
    match args.command {
        CacheCommand::Ls { json } => {
            let mut entries = disk.entries().map_err(failed)?;
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
            for entry in entries {
                if json {
                    say_json(&json!({"key": entry.key.to_string(), "bytes": entry.bytes, "seconds": entry.seconds,
                                "types": entry.types, "used": unix(entry.used)})
                        .to_string())?;
                } else {
                    say(&format!(
                        "{}  {:>10}  {:>8.3} s  used {:>7} ago  {}",
                        entry.key.short(),
                        size(entry.bytes),
                        entry.seconds,
                        ago(entry.used),
                        entry.types.join(", ")
                    ))?;
                }
            }
        }
        CacheCommand::Stats { json } => {
            let entries = disk.entries().map_err(failed)?;
            let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
            let seconds: f64 = entries.iter().map(|entry| entry.seconds).sum::<f64>() + 0.0;
            let mut types = std::collections::BTreeMap::<String, (u64, u64)>::new();
            for entry in &entries {
                let of = types.entry(entry.types.join(", ")).or_default();
                of.0 += 1;
                of.1 += entry.bytes;
            }
            if json {
                let types: Vec<_> = types
                    .iter()
                    .map(|(name, (count, bytes))| json!({"types": name, "entries": count, "bytes": bytes}))
                    .collect();
                say_json(&json!({"folder": folder, "entries": entries.len(), "bytes": bytes, "budget": disk.budget(),
                            "seconds": seconds, "by_type": types})
                    .to_string())?;
            } else {
                say(&format!("{}", folder.display()))?;
                say(&format!(
                    "{} entries, {} of {}, {seconds:.1} s to make again",
                    entries.len(),
                    size(bytes),
                    size(disk.budget())
                ))?;
                for (name, (count, bytes)) in types {
                    say(&format!("  {name:12} {count:>6}  {:>10}", size(bytes)))?;
                }
            }
        }
        CacheCommand::Clear => {
            let (entries, bytes) = disk.clear().map_err(failed)?;
            for name in ["plans", "bundles", "journal.jsonl", "digests.json"] {
                let path = folder.join(name);
                let removed = match path.is_dir() {
                    true => std::fs::remove_dir_all(&path),
                    false => std::fs::remove_file(&path),
                };
                match removed {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
                    _ => {}
                }
            }
            say(&format!("{entries} entries, {} removed", size(bytes)))?;
        }
        CacheCommand::Verify => {
            let verified = disk.verify().map_err(failed)?;
            for key in &verified.damaged {
                say(&format!("damaged, removed: {key}"))?;
            }
            say(&format!(
                "{} sound, {} damaged",
                verified.sound,
                verified.damaged.len()
            ))?;
            if !verified.damaged.is_empty() {
                return Ok(Exit::Failed);
            }
        }
    }
    Ok(Exit::Done)
}
