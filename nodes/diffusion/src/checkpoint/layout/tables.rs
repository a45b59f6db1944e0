//! The tensors of a single file by the names that the networks ask for.

use super::*;

/// A table by other names: for each that `asked` lists, the tensor that `find` finds for it. What else the file has
/// below `prefix` is kept under its own name, so that it is reported as unused, unless `spare` says so.
pub(super) fn renamed(
    table: &Table,
    prefix: &str,
    asked: &[(String, Vec<usize>)],
    find: impl Fn(&str) -> Option<(String, ldm::Cut)>,
    spare: impl Fn(&str) -> bool,
) -> Table {
    let mut used = BTreeSet::new();
    let mut tensors = BTreeMap::new();
    for (name, _) in asked {
        let Some((theirs, cut)) = find(name) else {
            continue;
        };
        let theirs = format!("{prefix}{theirs}");
        if let Some(whole) = table.tensors.get(&theirs)
            && let Some(stored) = cut.of(whole)
        {
            used.insert(theirs);
            tensors.insert(name.clone(), stored);
        }
    }
    for (name, stored) in &table.tensors {
        if let Some(rest) = name.strip_prefix(prefix)
            && !used.contains(name)
            && !spare(rest)
        {
            tensors.insert(name.clone(), stored.clone());
        }
    }
    Table {
        file: table.file.clone(),
        tensors,
        metadata: table.metadata.clone(),
    }
}

/// The U-Net's tensors by diffusers' names, whichever the file has.
///
/// # Errors
/// When the configuration describes no network.
pub fn unet_table(table: &Arc<Table>, config: &UnetConfig) -> Result<Arc<Table>> {
    for prefix in [ldm::UNET, "diffusion_model.", ""] {
        if table.contains(&format!("{prefix}input_blocks.0.0.weight")) {
            let asked = Weights::asked(|w| Unet::load(config, w).map(drop))?;
            let find = |name: &str| Some((ldm::unet(name, config)?, ldm::Cut::Whole));
            let spare = |rest: &str| prefix.is_empty() && !is_unet(rest);
            return Ok(Arc::new(renamed(table, prefix, &asked, find, spare)));
        }
    }
    Ok(table.clone())
}

/// Whether a name without prefix is one of an LDM U-Net.
pub(super) fn is_unet(name: &str) -> bool {
    [
        "input_blocks.",
        "middle_block.",
        "output_blocks.",
        "time_embed.",
        "label_emb.",
        "out.",
    ]
    .iter()
    .any(|first| name.starts_with(first))
}

/// The VAE's tensors by diffusers' names, whichever the file has.
///
/// # Errors
/// When the configuration describes no network.
pub fn vae_table(table: &Arc<Table>, config: &VaeConfig) -> Result<Arc<Table>> {
    for prefix in [ldm::VAE, ""] {
        if table.contains(&format!("{prefix}encoder.down.0.block.0.norm1.weight")) {
            let asked = Weights::asked(|w| Vae::load(config, w).map(drop))?;
            let find = |name: &str| Some((ldm::vae(name, config)?, ldm::Cut::Whole));
            // A VAE that is published alone has the parts of its training beside it.
            let spare = |rest: &str| {
                !["encoder.", "decoder.", "quant_conv.", "post_quant_conv."]
                    .iter()
                    .any(|first| rest.starts_with(first))
            };
            return Ok(Arc::new(renamed(table, prefix, &asked, find, spare)));
        }
    }
    Ok(table.clone())
}

/// The tensors of text encoder `index` by transformers' names, whichever the file has; `asked` are the network's.
#[must_use]
pub fn text_table(table: &Arc<Table>, index: usize, asked: &[(String, Vec<usize>)]) -> Arc<Table> {
    let of_text = |role| matches!(role, Role::Text { index: own, .. } if own == index);
    for (prefix, role) in dialects::prefixes(of_text) {
        let spare = |_: &str| true;
        let names = match role {
            Role::Text { names, .. } => names,
            _ => continue,
        };
        match names {
            Names::Clip if table.tensors.keys().any(|name| name.starts_with(prefix)) => {
                let bare = !table.contains(&format!(
                    "{prefix}text_model.embeddings.token_embedding.weight"
                ));
                let find = |name: &str| {
                    let name = if bare {
                        crate::checkpoint::weights::bare(name)
                    } else {
                        name
                    };
                    // OpenCLIP's projection, as it was: its two dimensions are the other way round.
                    let projection = "text_model.text_projection";
                    let has = |name: &str| table.contains(&format!("{prefix}{name}"));
                    if name == "text_projection.weight" && !has(name) && has(projection) {
                        return Some((projection.to_owned(), ldm::Cut::Transposed));
                    }
                    if let Some((whole, cut)) = ldm::fused(name).filter(|(whole, _)| has(whole)) {
                        return Some((whole, cut));
                    }
                    Some((name.to_owned(), ldm::Cut::Whole))
                };
                return Arc::new(renamed(table, prefix, asked, find, spare));
            }
            // The layers above those that the configuration has are Stable Diffusion 2's last one.
            Names::OpenClip if table.contains(&format!("{prefix}token_embedding.weight")) => {
                return Arc::new(renamed(table, prefix, asked, ldm::open_clip, spare));
            }
            Names::Clip | Names::OpenClip => {}
        }
    }
    table.clone()
}
