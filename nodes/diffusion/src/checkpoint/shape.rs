//! The shape of a single file's U-Net, read off the names and shapes of its tensors: what `config.json` would say where it
//! differs from the published one of the family (an inpainting model, SSD-1B, BK-SDM).

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use crate::checkpoint::weights::Table;

/// A block of the original layout: `input_blocks.N`, `output_blocks.N`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Block {
    /// Channels of the ResNet block that it begins with.
    channels: Option<usize>,
    /// Transformer layers of the stack that follows.
    depth: usize,
    /// Whether the grid is halved or doubled at its end.
    resamples: bool,
}

/// The blocks below a prefix, by their numbers.
fn blocks(table: &Table, prefix: &str) -> BTreeMap<usize, Block> {
    let mut found: BTreeMap<usize, Block> = BTreeMap::new();
    for (name, stored) in &table.tensors {
        let Some((number, rest)) = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.split_once('.'))
        else {
            continue;
        };
        let Ok(number) = number.parse() else { continue };
        let block = found.entry(number).or_default();
        if rest == "0.out_layers.3.weight" {
            block.channels = stored.shape.first().copied();
        } else if let Some(layer) = rest.strip_prefix("1.transformer_blocks.") {
            let layer = layer
                .split('.')
                .next()
                .and_then(|n| n.parse::<usize>().ok());
            block.depth = block
                .depth
                .max(layer.map_or(0, |layer| layer.saturating_add(1)));
        } else if ["0.op.weight", "1.conv.weight", "2.conv.weight"].contains(&rest) {
            block.resamples = true;
        }
    }
    found
}

/// The numbers of a block's stacks, as a configuration has them.
fn depths(stacks: &[usize]) -> Json {
    match stacks {
        [] | [0, ..] => json!(1),
        [first, rest @ ..] if rest.iter().all(|n| n == first) => json!(first),
        stacks => json!(stacks),
    }
}

/// What one level has: its channels, and the depth of each of its stacks.
struct Level {
    channels: usize,
    stacks: Vec<usize>,
}

impl Level {
    fn kind(&self, attends: &'static str, plain: &'static str) -> &'static str {
        if self.stacks.iter().any(|depth| *depth > 0) {
            attends
        } else {
            plain
        }
    }
}

/// The levels of the way down, `conv_in` left out; `None` of what is no such network.
fn down(table: &Table, prefix: &str) -> Option<Vec<Level>> {
    let mut levels: Vec<Level> = Vec::new();
    let mut open = false;
    for (_, block) in blocks(table, prefix).range(1..) {
        match block.channels {
            Some(channels) if open => {
                let level = levels.last_mut()?;
                if level.channels != channels {
                    return None;
                }
                level.stacks.push(block.depth);
            }
            Some(channels) => {
                levels.push(Level {
                    channels,
                    stacks: vec![block.depth],
                });
                open = true;
            }
            None if block.resamples => open = false,
            None => return None,
        }
    }
    (!levels.is_empty()).then_some(levels)
}

/// The levels of the way up, coarsest first.
fn up(table: &Table, prefix: &str) -> Option<Vec<Level>> {
    let mut levels: Vec<Level> = Vec::new();
    let mut open = false;
    for block in blocks(table, prefix).values() {
        let channels = block.channels?;
        if open {
            levels.last_mut()?.stacks.push(block.depth);
        } else {
            levels.push(Level {
                channels,
                stacks: vec![block.depth],
            });
        }
        open = !block.resamples;
    }
    Some(levels)
}

/// The U-Net's configuration: `published`, where that is its shape, else with the changes that the names below `prefix` show.
#[must_use]
pub fn unet(table: &Table, prefix: &str, published: &'static str) -> Cow<'static, str> {
    changed(table, prefix, published).map_or(Cow::Borrowed(published), Cow::Owned)
}

fn changed(table: &Table, prefix: &str, published: &'static str) -> Option<String> {
    let mut config: Map<String, Json> = serde_json::from_str(published).ok()?;
    let own = derived(table, prefix, &config)?;
    let mut differs = false;
    for (key, value) in own {
        let said = match (key, config.get(key)) {
            // What the published ones leave out is diffusers' default.
            ("mid_block_type", None) => Some(json!("UNetMidBlock2DCrossAttn")),
            ("transformer_layers_per_block", None) => Some(json!(1)),
            (_, said) => said.cloned(),
        };
        if said.unwrap_or_default() != value {
            differs = true;
            config.insert(key.to_owned(), value);
        }
    }
    differs.then(|| serde_json::to_string_pretty(&config).ok())?
}

/// What the names say of the keys that they can say something of.
// Long: one reading of the names, level by level, ended by the first that does not fit.
fn derived(
    table: &Table,
    prefix: &str,
    published: &Map<String, Json>,
) -> Option<Vec<(&'static str, Json)>> {
    let shape = |name: &str| Some(&table.tensors.get(&format!("{prefix}{name}"))?.shape);
    let (down, up) = (
        down(table, &format!("{prefix}input_blocks."))?,
        up(table, &format!("{prefix}output_blocks."))?,
    );
    // One ResNet block more on the way up, level by level: else it is another network, and what does not fit is named.
    let mirrored = |(down, up): (&Level, &Level)| {
        down.channels == up.channels && down.stacks.len() + 1 == up.stacks.len()
    };
    if down.len() != up.len() || !down.iter().zip(up.iter().rev()).all(mirrored) {
        return None;
    }
    let middle = format!("{prefix}middle_block.");
    let middle = blocks(table, &middle);
    let has_middle = table.contains(&format!("{prefix}middle_block.0.in_layers.0.weight"));
    // `middle_block.1` is the stack itself.
    let mid_depth = (0..64)
        .take_while(|layer| {
            table.contains(&format!(
                "{prefix}middle_block.1.transformer_blocks.{layer}.norm1.weight"
            ))
        })
        .count();
    let middle = match (has_middle, mid_depth) {
        (true, 0) if middle.len() <= 1 => json!("UNetMidBlock2D"),
        (true, _) => json!("UNetMidBlock2DCrossAttn"),
        (false, _) => Json::Null,
    };
    let channels: Vec<usize> = down.iter().map(|level| level.channels).collect();
    let layers: Vec<usize> = down.iter().map(|level| level.stacks.len()).collect();
    let layers = match layers.as_slice() {
        [first, rest @ ..] if rest.iter().all(|n| n == first) => json!(first),
        all => json!(all),
    };
    let mut down_depths: Vec<Json> = down.iter().map(|level| depths(&level.stacks)).collect();
    let mut up_depths: Vec<Json> = up.iter().map(|level| depths(&level.stacks)).collect();
    // The middle has the depth of the coarsest level.
    if mid_depth > 0
        && let Some(last) = down_depths.last_mut()
    {
        let attends = down.last()?.stacks.iter().any(|depth| *depth > 0);
        match (attends, &*last) {
            (false, _) => *last = json!(mid_depth),
            (true, Json::Number(n)) if n.as_u64() == Some(mid_depth as u64) => {}
            (true, _) => return None,
        }
    }
    // Levels without attention have no depth: what is said of them is as the other way has it.
    for (index, level) in up.iter().enumerate() {
        let other = down_depths.len() - 1 - index;
        if level.stacks.iter().all(|depth| *depth == 0) {
            up_depths[index] = down_depths[other].clone();
        }
    }
    let attends = |level: &Level| level.kind("CrossAttnDownBlock2D", "DownBlock2D");
    let attends_up = |level: &Level| level.kind("CrossAttnUpBlock2D", "UpBlock2D");
    let same = up_depths.iter().rev().eq(down_depths.iter());
    // A list of one number for each layer says nothing of the way up.
    let reversed = if same && down_depths.iter().all(Json::is_number) {
        Json::Null
    } else {
        json!(up_depths)
    };
    let depths = match down_depths.as_slice() {
        [first, rest @ ..] if rest.iter().all(|n| n == first) && first.is_number() => first.clone(),
        all => json!(all),
    };
    // The published depth of a level without attention may be any.
    let depths = match published.get("transformer_layers_per_block") {
        Some(Json::Array(said)) if like(said, &down_depths, &down) => json!(said),
        _ => depths,
    };
    let mut own = vec![
        (
            "in_channels",
            json!(shape("input_blocks.0.0.weight")?.get(1)?),
        ),
        ("out_channels", json!(shape("out.2.weight")?.first()?)),
        ("block_out_channels", json!(channels)),
        ("layers_per_block", layers),
        (
            "down_block_types",
            json!(down.iter().map(attends).collect::<Vec<_>>()),
        ),
        (
            "up_block_types",
            json!(up.iter().map(attends_up).collect::<Vec<_>>()),
        ),
        ("mid_block_type", middle),
        ("transformer_layers_per_block", depths),
        ("reverse_transformer_layers_per_block", reversed),
    ];
    // Heads of 64 channels, where the family has a number for each level; Stable Diffusion 1 has 8 heads everywhere.
    if let Some(Json::Array(heads)) = published.get("attention_head_dim")
        && heads.len() != channels.len()
    {
        let heads: Vec<usize> = channels.iter().map(|channels| channels / 64).collect();
        own.push(("attention_head_dim", json!(heads)));
    }
    Some(own)
}

/// Whether published depths are those that were found, at the levels that have attention.
fn like(published: &[Json], found: &[Json], levels: &[Level]) -> bool {
    published.len() == found.len()
        && published
            .iter()
            .zip(found)
            .zip(levels)
            .all(|((said, found), level)| said == found || level.stacks.iter().all(|n| *n == 0))
}
