//! A checkpoint whose parts are loaded when they are first needed.

use super::*;

/// A part of a model that is loaded when it is first used, once for each device.
#[derive(Debug)]
pub(super) struct Lazy<T>(OnDevices<Mutex<Option<Arc<T>>>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self(OnDevices::default())
    }
}

impl<T> Lazy<T> {
    /// The part on the device, made by `load` where it is not there.
    pub(super) fn get(&self, device: &Device, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        self.get_shared(device, || load().map(Arc::new))
    }

    /// The same of a part that others may have too.
    pub(super) fn get_shared(
        &self,
        device: &Device,
        load: impl FnOnce() -> Result<Arc<T>>,
    ) -> Result<Arc<T>> {
        // Others load on their devices in the meantime.
        let slot = self.0.on(device);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = &*slot {
            return Ok(part.clone());
        }
        let part = load()?;
        *slot = Some(part.clone());
        Ok(part)
    }

    /// Releases the part on all devices; users that hold it keep it.
    pub(super) fn clear(&self) {
        for slot in self.0.all() {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Parts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The U-Net.
    pub unet: bool,
    /// The text encoders.
    pub texts: bool,
    /// The VAE.
    pub vae: bool,
}

impl Parts {
    /// All of them.
    pub const ALL: Self = Self {
        unet: true,
        texts: true,
        vae: true,
    };
    /// None of them.
    pub const NONE: Self = Self {
        unet: false,
        texts: false,
        vae: false,
    };

    /// Those of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            unet: self.unet || other.unet,
            texts: self.texts || other.texts,
            vae: self.vae || other.vae,
        }
    }
}

/// Drops a network that no other model shares.
pub(super) fn drop_part<T>(slot: &Network<T>) {
    if Arc::strong_count(slot) == 1 {
        slot.clear();
    }
}

/// A network and what keeps its tensors in common with others.
#[derive(Debug)]
pub(super) struct Loaded<T> {
    pub(super) network: Arc<T>,
    pub(super) _tensors: Arc<Tensors>,
    /// The room of tensors that are this model's own.
    pub(super) _own: Option<Claim>,
}

/// A network that is loaded when it is first used.
pub(super) type Network<T> = Arc<Lazy<Loaded<T>>>;

/// The VAE in float32, for what one in half precision gave numbers for that are not finite.
#[derive(Debug, Default)]
pub(super) struct Widened {
    /// It was used, which was not reported yet.
    pub(super) used: AtomicBool,
    pub(super) vae: Network<Vae>,
    pub(super) pool: Shared,
}

/// The loaded tensors of a base, which the models that adapters make of it share.
#[derive(Debug)]
pub(super) struct Pools {
    pub(super) unet: Shared,
    pub(super) texts: Vec<Shared>,
}

/// A model: what it says of itself, and its parts once they are used.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) description: Arc<Description>,
    pub(super) id: String,
    pub(super) device: Device,
    pub(super) dtype: DType,
    pub(super) memory: Arc<Memory>,
    /// Whether parts are dropped as soon as what they were used for is done.
    pub(super) offload: bool,
    pub(super) kernel: Arc<dyn Kernel>,
    /// Another for the U-Net, whose weights may be of a type of their own.
    pub(super) unet_kernel: Option<Arc<dyn Kernel>>,
    pub(super) pools: Arc<Pools>,
    pub(super) vae_pool: Arc<Shared>,
    /// Whether the VAE is of the other networks' type though its configuration does not say that it may be.
    pub(super) half_vae: bool,
    pub(super) widened: Arc<Widened>,
    pub(super) unet_changes: Arc<Changes>,
    pub(super) text_changes: Vec<Arc<Changes>>,
    pub(super) unet: Network<Unet>,
    pub(super) texts: Vec<Network<ClipText>>,
    pub(super) vae: Network<Vae>,
    pub(super) tokenizers: Vec<Arc<Lazy<Tokenizer>>>,
    pub(super) vae_id: Option<String>,
    pub(super) reading: Reading,
    /// What textual inversion added, in order.
    pub(super) added: Vec<LearnedToken>,
    pub(super) linear_map: Arc<Lazy<LinearMap>>,
}

impl Checkpoint {
    /// Wraps a checked description. `id` stands for the content of U-Net, text encoders and tokenizers: models of equal
    /// id draw the same.
    #[must_use]
    pub fn new(
        description: Description,
        id: String,
        device: Device,
        kernel: Arc<dyn Kernel>,
    ) -> Self {
        let texts = description.texts.len();
        Self {
            description: Arc::new(description),
            id,
            device,
            dtype: DType::F32,
            memory: Arc::default(),
            offload: false,
            kernel,
            unet_kernel: None,
            pools: Arc::new(Pools {
                unet: Shared::default(),
                texts: (0..texts).map(|_| Shared::default()).collect(),
            }),
            vae_pool: Arc::default(),
            half_vae: false,
            widened: Arc::default(),
            unet_changes: Arc::default(),
            text_changes: vec![Arc::default(); texts],
            unet: Arc::default(),
            texts: (0..texts).map(|_| Arc::default()).collect(),
            vae: Arc::default(),
            tokenizers: (0..texts).map(|_| Arc::default()).collect(),
            vae_id: None,
            reading: Reading::default(),
            added: Vec::new(),
            linear_map: Arc::default(),
        }
    }

    /// The same model on another device, counted there. Each network is loaded once for each device, whoever uses it there.
    #[must_use]
    pub fn on(&self, device: &Device, kernel: Arc<dyn Kernel>, memory: Arc<Memory>) -> Self {
        let mut model = self.derived(self.id.clone());
        model.device = device.clone();
        model.kernel = kernel;
        model.held(self.dtype, memory, self.offload)
    }

    /// Says how weights are held: in which type, counted by whom, and whether parts are dropped as soon as what they were
    /// used for is done.
    #[must_use]
    pub fn held(mut self, dtype: DType, memory: Arc<Memory>, offload: bool) -> Self {
        self.dtype = dtype;
        self.unet_kernel = self.kernel.for_weights(dtype);
        self.memory = memory;
        self.offload = offload;
        self
    }

    /// Drops the parts that are not in `kept`, unless another model has a share in them. They are loaded again when they
    /// are used again.
    pub fn keep_only(&self, kept: Parts) {
        if !kept.unet {
            drop_part(&self.unet);
        }
        if !kept.texts {
            self.texts.iter().for_each(drop_part);
        }
        if !kept.vae {
            drop_part(&self.vae);
            drop_part(&self.widened.vae);
        }
    }

    /// Says whether the VAE is held in the type of the other networks though its configuration does not say
    /// `force_upcast: false`.
    #[must_use]
    pub fn with_half_vae(mut self, half: bool) -> Self {
        self.half_vae = half;
        self
    }

    /// The type that the VAE is held in.
    pub(super) fn vae_dtype(&self) -> DType {
        // As in diffusers: a VAE whose activations leave float16's range says that it is to be computed in float32.
        let upcast = self.description.vae.force_upcast() && !self.half_vae;
        if upcast { DType::F32 } else { self.dtype }
    }

    /// The VAE in float32, for what [`Checkpoint::vae`] gave numbers for that are not finite; `None` when that is float32
    /// itself. Which of the two computes a picture depends on that picture alone, not on what was computed before.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn wide_vae(&self) -> Result<Option<Arc<Vae>>> {
        if self.vae_dtype() == DType::F32 {
            return Ok(None);
        }
        self.widened.used.store(true, Ordering::Relaxed);
        let (slot, pool) = (&self.widened.vae, &self.widened.pool);
        self.load_vae(DType::F32, slot, pool).map(Some)
    }

    /// Whether the VAE in float32 was used since this was asked last.
    #[must_use]
    pub fn vae_was_widened(&self) -> bool {
        self.widened.used.swap(false, Ordering::Relaxed)
    }

    /// Says that prompts are encoded: with offloading the text encoders go.
    pub fn prompts_are_encoded(&self) {
        if self.offload {
            self.keep_only(Parts {
                texts: false,
                ..Parts::ALL
            });
        }
    }

    /// The same model under another id, to be changed by an adapter: all that is loaded is shared.
    pub(super) fn derived(&self, id: String) -> Self {
        Self {
            description: self.description.clone(),
            id,
            device: self.device.clone(),
            dtype: self.dtype,
            memory: self.memory.clone(),
            offload: self.offload,
            kernel: self.kernel.clone(),
            unet_kernel: self.unet_kernel.clone(),
            pools: self.pools.clone(),
            vae_pool: self.vae_pool.clone(),
            half_vae: self.half_vae,
            widened: self.widened.clone(),
            unet_changes: self.unet_changes.clone(),
            text_changes: self.text_changes.clone(),
            unet: self.unet.clone(),
            texts: self.texts.clone(),
            vae: self.vae.clone(),
            tokenizers: self.tokenizers.clone(),
            vae_id: self.vae_id.clone(),
            reading: self.reading,
            added: self.added.clone(),
            linear_map: self.linear_map.clone(),
        }
    }

    /// The same model with edits of tensors of its U-Net and of its text encoders, by name. The base's tensors are shared;
    /// low-rank factors are applied beside them, other edits merged into copies. `id` stands for both.
    #[must_use]
    pub fn with_edits(
        &self,
        id: String,
        unet: BTreeMap<String, Edit>,
        texts: Vec<BTreeMap<String, Edit>>,
    ) -> Self {
        let added = |changes: &Arc<Changes>, edits: BTreeMap<String, Edit>| {
            let mut changes = Changes::clone(changes);
            for (tensor, edit) in edits {
                changes.edits.entry(tensor).or_default().push(edit);
            }
            Arc::new(changes)
        };
        let mut model = self.derived(id);
        if !unet.is_empty() {
            model.unet_changes = added(&model.unet_changes, unet);
            model.unet = Arc::default();
        }
        for (i, edits) in texts.into_iter().enumerate() {
            if !edits.is_empty() && i < model.texts.len() {
                model.text_changes[i] = added(&model.text_changes[i], edits);
                model.texts[i] = Arc::default();
            }
        }
        model
    }

    /// The same model with tensors in place of the U-Net's own, by name. `id` stands for both.
    #[must_use]
    pub fn with_replaced(&self, id: String, replaced: BTreeMap<String, Stored>) -> Self {
        let mut model = self.derived(id);
        let mut changes = Changes::clone(&model.unet_changes);
        changes.replaced.extend(replaced);
        model.unet_changes = Arc::new(changes);
        model.unet = Arc::default();
        model
    }

    /// The same model with new tokens, which must fit its text encoders. `id` stands for both.
    #[must_use]
    pub fn with_tokens(&self, id: String, tokens: Vec<LearnedToken>) -> Self {
        let mut model = self.derived(id);
        model.added.extend(tokens);
        model.texts = self.texts.iter().map(|_| Arc::default()).collect();
        model.tokenizers = self.tokenizers.iter().map(|_| Arc::default()).collect();
        model
    }

    /// The same model with another VAE, whose content `id` stands for.
    #[must_use]
    pub fn with_vae(&self, id: String, vae: VaeDescription) -> Self {
        let mut model = self.derived(self.id.clone());
        let mut description = Description::clone(&self.description);
        description.vae = vae.config;
        description.vae_table = vae.table;
        model.description = Arc::new(description);
        model.vae_id = Some(id + if self.half_vae { "+half" } else { "" });
        model.vae = Arc::default();
        model.vae_pool = Arc::default();
        model.widened = Arc::default();
        model.linear_map = Arc::default();
        model
    }

    /// Says what stands for the content of the VAE: equal ones have equal maps from latents to colours.
    #[must_use]
    pub fn with_vae_id(mut self, id: String) -> Self {
        self.vae_id = Some(id);
        self
    }

    /// Says how prompts are read, which is part of the id.
    #[must_use]
    pub fn with_reading(mut self, reading: Reading) -> Self {
        self.reading = reading;
        self
    }

    /// Stands for the content of the VAE, if that was said.
    #[must_use]
    pub fn vae_id(&self) -> Option<&str> {
        self.vae_id.as_deref()
    }

    /// The map from latents to colours: `known` when there is one, else fitted from the VAE, once.
    ///
    /// # Errors
    /// When the VAE's weights cannot be read or it fails.
    pub fn linear_map(&self, known: impl FnOnce() -> Option<LinearMap>) -> Result<Arc<LinearMap>> {
        // Numbers on the host, whatever they were fitted on.
        self.linear_map.get(&Device::Cpu, || match known() {
            Some(map) => Ok(map),
            None => {
                let fit = |vae: &Vae| LinearMap::of_vae(vae, &self.device, self.kernel());
                let map = fit(&*self.vae()?).or_else(|error| match self.wide_vae()? {
                    // Numbers that half precision does not hold.
                    Some(wide) => fit(&wide),
                    None => Err(error),
                })?;
                tracing::debug!(
                    explained = map.explained(),
                    "fitted the map from latents to colours"
                );
                Ok(map)
            }
        })
    }

    /// What the checkpoint says of itself.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Stands for the content of U-Net, text encoders and tokenizers.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its tensors are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How its arithmetic is done.
    #[must_use]
    pub fn kernel(&self) -> &dyn Kernel {
        self.kernel.as_ref()
    }

    /// Those that the U-Net is to be computed with.
    #[must_use]
    pub fn unet_kernel(&self) -> &dyn Kernel {
        self.unet_kernel.as_ref().unwrap_or(&self.kernel).as_ref()
    }

    /// Loads a network from its table, sharing what others of the same base have loaded.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn load<T>(
        &self,
        what: &str,
        dtype: DType,
        slot: &Network<T>,
        table: &Arc<Table>,
        shared: &Shared,
        changes: &Arc<Changes>,
        build: impl FnOnce(&Weights) -> Result<T>,
        variables: Option<Arc<Variables>>,
    ) -> Result<Arc<T>> {
        let loaded = slot.get(&self.device, || {
            tracing::debug!(file = %table.file.display(), tensors = table.tensors.len(), "reads weights");
            let host = self.device.is_cpu();
            // Weights that are quantised stay so on the CPU.
            let size = dtype.size_in_bytes();
            let bytes = if host {
                table.bytes_as_stored(size)
            } else {
                table.bytes(size)
            } as u64;
            let whose = table.file.display();
            let tensors = shared.tensors(&self.device, || {
                self.memory
                    .claim(&format!("{what} of {whose} ({dtype:?})"), bytes, host)
            })?;
            let weights = Weights::open(
                table.clone(),
                &self.device,
                dtype,
                tensors.clone(),
                self.kernel.clone(),
            )
                .with(changes.clone());
            let weights = match variables {
                Some(variables) => weights.with_variables(variables),
                None => weights,
            };
            // What adapters are merged into is held beside the base's.
            let merged = changes.merged_bytes(dtype.size_in_bytes()) as u64;
            let own = (merged > 0)
                .then(|| self.memory.claim(&format!("adapted {what} of {whose} ({dtype:?})"), merged, host))
                .transpose()?;
            Ok(Loaded {
                network: Arc::new(build(&weights)?),
                _tensors: tensors,
                _own: own,
            })
        })?;
        Ok(loaded.network.clone())
    }

    /// The U-Net.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn unet(&self) -> Result<Arc<Unet>> {
        let d = &self.description;
        let build = |w: &Weights| Unet::load(&d.unet, w);
        self.load(
            "U-Net",
            self.dtype,
            &self.unet,
            &d.unet_table,
            &self.pools.unet,
            &self.unet_changes,
            build,
            None,
        )
    }

    /// Text encoder `index`, counted from 0.
    ///
    /// # Errors
    /// When its weights cannot be read, or there is no such encoder.
    pub fn text_encoder(&self, index: usize) -> Result<Arc<ClipText>> {
        let text = self.text(index)?;
        self.load(
            "text encoder",
            self.dtype,
            &self.texts[index],
            &text.table,
            &self.pools.texts[index],
            &self.text_changes[index],
            |w| {
                let mut encoder = load_text(&text.config, index, w)?;
                for token in &self.added {
                    encoder = encoder.with_rows(&self.rows_of(token, index)?)?;
                }
                Ok(encoder)
            },
            None,
        )
    }

    /// The embeddings `[n, C]` of an added token in a text encoder.
    pub(super) fn rows_of(&self, token: &LearnedToken, index: usize) -> Result<Tensor> {
        let rows = token.rows.get(index).ok_or_else(|| {
            Error::request(format!(
                "the token {:?} was not learned for text encoder {index}",
                token.token
            ))
        })?;
        Maps::default().load(rows, DType::F32, &Device::Cpu)
    }

    /// The VAE.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn vae(&self) -> Result<Arc<Vae>> {
        if self.offload {
            self.keep_only(Parts {
                vae: true,
                ..Parts::NONE
            });
        }
        self.load_vae(self.vae_dtype(), &self.vae, &self.vae_pool)
    }

    fn load_vae(&self, dtype: DType, slot: &Network<Vae>, pool: &Shared) -> Result<Arc<Vae>> {
        let d = &self.description;
        let load = |w: &Weights| Vae::load(&d.vae, w);
        self.load(
            "VAE",
            dtype,
            slot,
            &d.vae_table,
            pool,
            &Arc::default(),
            load,
            None,
        )
    }

    /// The tokenizer of text encoder `index`, counted from 0.
    ///
    /// # Errors
    /// When its files are not what they should be, or there is no such encoder.
    pub fn tokenizer(&self, index: usize) -> Result<Arc<Tokenizer>> {
        let text = self.text(index)?;
        self.tokenizers[index].get_shared(&Device::Cpu, || {
            let config = &text.config;
            let added: Vec<Added> = self
                .added
                .iter()
                .map(|token| Added {
                    token: token.token.clone(),
                    vectors: token.vectors(),
                })
                .collect();
            let recipe = recipe(text.tokenizer.digest(), config, added)?;
            tokenizer::shared(recipe, || Ok(text.tokenizer.clone()), &text.folder)
        })
    }

    pub(super) fn text(&self, index: usize) -> Result<&TextDescription> {
        self.description.texts.get(index).ok_or_else(|| {
            Error::request(format!("the model has no text encoder of number {index}"))
        })
    }

    /// Reads prompts as the model does; where it has two text encoders, as the first of them.
    ///
    /// # Errors
    /// When the tokenizer's files are not what they should be.
    pub fn reader(&self) -> Result<Reader> {
        self.reader_of(0)
    }

    pub(super) fn reader_of(&self, index: usize) -> Result<Reader> {
        Ok(Reader::new(self.tokenizer(index)?, self.reading))
    }

    /// What the text encoders give for a prompt.
    ///
    /// # Errors
    /// When a part cannot be loaded, or the prompt has a weight that is not a number.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Encoded> {
        self.encode_with(|reader| reader.read(prompt))
    }

    /// What the text encoders give for a negative prompt. An empty one is one that was not given: zeros where the model says
    /// `force_zeros_for_empty_prompt`, as diffusers has it. The prompt itself is encoded even when it is empty.
    ///
    /// # Errors
    /// As [`Checkpoint::encode_prompt`].
    pub fn encode_negative(&self, negative: &str) -> Result<Encoded> {
        let encoded = self.encode_prompt(negative)?;
        if negative.is_empty() && self.description.blank_is_zero {
            return encoded.zeros();
        }
        Ok(encoded)
    }

    /// The states of an empty chunk `[1, N, C]`, which prompts of unequal length are padded with.
    ///
    /// # Errors
    /// When a part cannot be loaded.
    pub fn encode_empty(&self) -> Result<Tensor> {
        let encoded = self.encode_with(|reader| {
            Ok(Prompt {
                chunks: vec![reader.empty()],
                cut: 0,
            })
        })?;
        Ok(encoded.states)
    }

    pub(super) fn encode_with(&self, read: impl Fn(&Reader) -> Result<Prompt>) -> Result<Encoded> {
        let layer = self.description.layer(self.reading.clip_skip);
        let mut all: Option<Encoded> = None;
        for index in 0..self.description.texts.len() {
            let prompt = read(&self.reader_of(index)?)?;
            let clip = self.text_encoder(index)?;
            let own = encode(&clip, &prompt, layer, self.kernel())?;
            all = Some(match all {
                Some(before) => before.beside(&own, self.kernel())?,
                None => own,
            });
        }
        all.ok_or_else(|| Error::request("the model has no text encoder"))
    }

    /// Bytes that all parts hold once they are loaded, by the sizes in the headers, and what adapters add. What a model
    /// shares with its base is counted for both: it stays as long as either is kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let size = self.dtype.size_in_bytes();
        let changes = self.text_changes.iter().chain([&self.unet_changes]);
        let changes = changes.map(|changes| changes.bytes(size));
        let d = &self.description;
        let texts = d.texts.iter().map(|text| &text.table);
        [&d.unet_table, &d.vae_table]
            .into_iter()
            .chain(texts)
            .map(|table| {
                if self.device.is_cpu() {
                    table.bytes_as_stored(size)
                } else {
                    table.bytes(size)
                }
            })
            .chain(changes)
            .sum()
    }

    /// How many text encoders it has.
    #[must_use]
    pub fn texts(&self) -> usize {
        self.description.texts.len()
    }

    /// How it reads prompts.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// Reads prompts for text encoder `index`, counted from 0.
    ///
    /// # Errors
    /// When the tokenizer's files are not what they should be.
    pub fn reader_at(&self, index: usize) -> Result<Reader> {
        self.reader_of(index)
    }

    /// The kernels, to be shared.
    #[must_use]
    pub fn shared_kernel(&self) -> Arc<dyn Kernel> {
        self.kernel.clone()
    }
}

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
            Arc::new(retouch_kernels::Plain),
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
