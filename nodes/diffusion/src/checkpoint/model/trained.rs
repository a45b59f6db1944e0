//! A checkpoint while parts of it are trained, and with what came of it.

use retouch_kernels::Plain;

use super::checkpoint::{Lazy, Loaded};
use super::*;

/// What was trained of a network: tensors in place of its own, by name.
pub type Replaced = BTreeMap<String, Stored>;

impl Checkpoint {
    fn parts_of(&self, text: Option<usize>) -> Result<(&Arc<Table>, &Arc<Changes>)> {
        Ok(match text {
            None => (&self.description.unet_table, &self.unet_changes),
            Some(i) => (&self.text(i)?.table, &self.text_changes[i]),
        })
    }

    /// Tensors of the U-Net, or of a text encoder, in float32 and on the CPU, with what adapters made of them; the names without
    /// `text_model.`, each with its shape.
    ///
    /// # Errors
    /// When one is missing, of another shape, or cannot be read.
    pub fn tensors_of(
        &self,
        text: Option<usize>,
        names: &[(String, Vec<usize>)],
    ) -> Result<Vec<Tensor>> {
        let (table, changes) = self.parts_of(text)?;
        let weights = Weights::open(
            table.clone(),
            &Device::Cpu,
            DType::F32,
            Arc::new(Tensors::new(None)),
            Arc::new(Plain),
        )
        .with(changes.clone());
        let root = weights.root();
        names
            .iter()
            .map(|(name, shape)| {
                let prefixed = format!("text_model.{name}");
                let name = if text.is_some() && root.contains(&prefixed) {
                    &prefixed
                } else {
                    name
                };
                root.get(name, shape.as_slice())
            })
            .collect()
    }

    /// The U-Net with variables in place of some tensors, or beside them. What is not trained is shared with
    /// [`Checkpoint::unet`].
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn unet_with(&self, variables: Arc<Variables>) -> Result<Arc<Unet>> {
        if variables.is_empty() {
            return self.unet();
        }
        let d = &self.description;
        let slot: Lazy<Loaded<Unet>> = Lazy::default();
        self.load(
            "U-Net",
            self.dtype,
            &Arc::new(slot),
            &d.unet_table,
            &self.pools.unet,
            &self.unet_changes,
            |w| Unet::load(&d.unet, w),
            Some(variables),
        )
    }

    /// A text encoder with variables in place of some tensors, or beside them, and with the embeddings of its last added
    /// tokens replaced by `rows`.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn text_encoder_with(
        &self,
        index: usize,
        variables: Arc<Variables>,
        rows: &[Tensor],
    ) -> Result<Arc<ClipText>> {
        if variables.is_empty() && rows.is_empty() {
            return self.text_encoder(index);
        }
        let text = self.text(index)?;
        let slot: Lazy<Loaded<ClipText>> = Lazy::default();
        let kept = self.added.len().saturating_sub(rows.len());
        self.load(
            "text encoder",
            self.dtype,
            &Arc::new(slot),
            &text.table,
            &self.pools.texts[index],
            &self.text_changes[index],
            |w| {
                let mut encoder = load_text(&text.config, index, w)?;
                for token in &self.added[..kept] {
                    encoder = encoder.with_rows(&self.rows_of(token, index)?)?;
                }
                for rows in rows {
                    encoder = encoder.with_rows(rows)?;
                }
                Ok(encoder)
            },
            Some(variables),
        )
    }

    /// The same model with trained tensors in place of its own; what adapters changed of them is in them. `id` stands for both.
    #[must_use]
    pub fn with_trained(&self, id: String, unet: Replaced, texts: Vec<Replaced>) -> Self {
        let put = |changes: &Arc<Changes>, replaced: Replaced| {
            let mut changes = Changes::clone(changes);
            for name in replaced.keys() {
                changes.edits.remove(name);
            }
            changes.replaced.extend(replaced);
            Arc::new(changes)
        };
        let mut model = self.derived(id);
        if !unet.is_empty() {
            model.unet_changes = put(&model.unet_changes, unet);
            model.unet = Arc::default();
        }
        for (i, replaced) in texts.into_iter().enumerate() {
            if !replaced.is_empty() && i < model.texts.len() {
                model.text_changes[i] = put(&model.text_changes[i], replaced);
                model.texts[i] = Arc::default();
            }
        }
        model
    }
}
