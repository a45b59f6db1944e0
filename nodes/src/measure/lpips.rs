//! `lpips`.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use retouch_diffusion::Error;
use retouch_diffusion::checkpoint::weights::{NO_SUCH_FILE, Table as WeightTable, Weights};
use retouch_diffusion::networks::lpips::{Backbone, Lpips};
use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use retouch_kernels::for_device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::AssetPath;
use crate::measure::backbone::{Place, opened};
use crate::measure::picture_error::misfit;
use crate::measure::similarity::check_name;
use crate::measure::{IMAGE, number};
use crate::payload::Table;
use crate::payload::image::{Image, ImageFacts};
use crate::runtime::Runtime;

/// The most bytes of features that are held, of all pictures of a batch, to compare each with each.
const MAX_BYTES: usize = 4 << 30;

/// Measures how different pictures look: LPIPS (Zhang et al. 2018), version 0.1, by AlexNet or VGG16.
///
/// With `to` each picture is compared with the one beside it (or with the only one), as an error of reconstruction. Without `to` each
/// picture of a batch is compared with all others and gets the mean; the mean of these, over all pairs, is the diversity DIV of DreamBooth (Ruiz et
/// al. 2023). 0 is of equal pictures. The numbers depend on the size of the pictures: none is resized here.
///
/// Neither network is in the box. `path` is torchvision's file (`alexnet-owt-7be5be79.pth`, `vgg16-397923af.pth`), `linear` that of the package
/// `lpips` (`lpips/weights/v0.1/alex.pth`, `vgg.pth`); both may be `.safetensors` with the same names.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasureLpips {
    /// The weights of AlexNet or VGG16, as torchvision names them.
    pub path: AssetPath,
    /// The weights of its linear layers, as the package `lpips` names them.
    pub linear: AssetPath,
    /// The name of the column.
    #[serde(default = "default_name")]
    pub name: String,
}

fn default_name() -> String {
    "lpips".to_owned()
}

ports! {
    /// What `lpips` takes.
    pub struct Inputs {
        /// The pictures.
        pub image: Arc<Image>,
        /// What they are compared with: as many, or one for all, of the same size; each other, if nothing is linked.
        pub to: Option<Arc<Image>>,
    }
}

ports! {
    /// What `lpips` gives.
    pub struct Outputs {
        /// A row for each picture: `image`, and its distance.
        pub table: Arc<Table>,
    }
}

/// The files, checked.
struct Described {
    place: Place,
    backbone: Backbone,
    weights: Arc<WeightTable>,
    linear: Arc<WeightTable>,
}

impl MeasureLpips {
    fn files(&self) -> [(&'static str, PathBuf); 2] {
        [("path", &self.path), ("linear", &self.linear)]
            .map(|(field, path)| (field, path.as_path().to_owned()))
    }

    /// Looks at the files; the field that is at fault, and why.
    fn described(&self, files: &dyn Files) -> Result<Described, (&'static str, Error)> {
        let read = |(field, path): (&'static str, PathBuf)| {
            files.find_model(&path);
            match WeightTable::read(&path, files) {
                Ok(table) => Ok(Arc::new(table)),
                Err(error) => Err((field, error)),
            }
        };
        let [path, linear_path] = self.files();
        let bad = |path: &PathBuf, message: String| Error::Weights {
            file: path.clone(),
            message,
        };
        let weights = read(path.clone())?;
        let backbone = Backbone::of(|name| weights.contains(name)).ok_or_else(|| {
            let message = "it is neither AlexNet nor VGG16 as torchvision has them".to_owned();
            ("path", bad(&path.1, message))
        })?;
        let linear = read(linear_path.clone())?;
        let (own, its) = (
            Weights::checking(Arc::clone(&weights)),
            Weights::checking(Arc::clone(&linear)),
        );
        Lpips::load(backbone, &own, &its).map_err(|error| ("path", error))?;
        if let Some(fault) = own.faults().first() {
            return Err(("path", bad(&path.1, fault.clone())));
        }
        if let Some(fault) = its.faults().first() {
            let message = format!("as the layers of {}: {fault}", backbone.name());
            return Err(("linear", bad(&linear_path.1, message)));
        }
        Ok(Described {
            place: Place::of(&path.1, files),
            backbone,
            weights,
            linear,
        })
    }
}

impl Node for MeasureLpips {
    const OP: &'static str = "lpips";
    const VERSION: u32 = 2;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        // A missing file is `check`'s to report.
        Ok((self.files().into_iter())
            .filter(|(_, path)| {
                files.find_model(path);
                files.is_file(path)
            })
            .map(|(role, path)| ReadFile {
                role: role.to_owned(),
                path,
            })
            .collect())
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        check_name(&self.name).map_err(|fault| vec![fault])?;
        let described = self
            .described(files)
            .map_err(|(field, error)| vec![self.fault(field, &error, files)])?;
        if let Some(own) = inputs.facts::<ImageFacts>("image") {
            let to = inputs.facts::<ImageFacts>("to");
            let refused = refused(own, to, inputs.is_linked("to"), described.backbone);
            if let Some((port, message, help)) = refused {
                return Err(vec![Fault::mismatch(port, message).help(help)]);
            }
        }
        Ok(Types::unknown())
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let image = &inputs.image;
        let described = self
            .described(context.files())
            .map_err(|(_, error)| error)?;
        let to_facts = inputs.to.as_ref().map(|to| to.facts());
        let refused = refused(
            image.facts(),
            to_facts,
            inputs.to.is_some(),
            described.backbone,
        );
        if let Some((_, message, help)) = refused {
            return Err(NodeError::failed(message).help(help));
        }
        let (kernel, device) = match context.environment::<Runtime>() {
            Some(runtime) => (Arc::clone(&runtime.kernel), runtime.device.clone()),
            None => (for_device(&Device::Cpu), Device::Cpu),
        };
        let network = Lpips::load(
            described.backbone,
            &opened(&described.weights, &device, &kernel),
            &opened(&described.linear, &device, &kernel),
        )?;
        let features = |image: &Image, index: usize| -> Result<_, NodeError> {
            context.check_cancelled()?;
            let one = image.select(index)?;
            let features = one.rgb.to_device(&device).map_err(Error::from);
            Ok(network.features(&features?, &*kernel)?)
        };
        let mut table = Table::new([IMAGE, &self.name]);
        let count = image.batch();
        let how = if let Some(to) = &inputs.to {
            let mut other = features(to, 0)?;
            for index in 0..count {
                context.progress(index, count);
                if index > 0 && to.batch() > 1 {
                    other = features(to, index)?;
                }
                let distance = network.distance(&features(image, index)?, &other)?;
                table.push(vec![index.into(), number(distance)])?;
            }
            "with the picture beside it"
        } else {
            let mut all = Vec::with_capacity(count);
            for index in 0..count {
                context.progress(index, count);
                all.push(features(image, index)?);
            }
            let mut sums = vec![0.0; count];
            for i in 0..count {
                context.check_cancelled()?;
                for j in 0..i {
                    let distance = network.distance(&all[i], &all[j])?;
                    sums[i] += distance;
                    sums[j] += distance;
                }
            }
            for (index, sum) in sums.into_iter().enumerate() {
                // There is more than one picture, or it would have been refused.
                table.push(vec![index.into(), number(sum / (count - 1) as f64)])?;
            }
            "the mean over the batch's other pictures"
        };
        let (width, height) = image.size();
        table.define(
            &self.name,
            &format!(
                "LPIPS 0.1 of {} (weights {}, linear layers {}) at {width}x{height} pixels; {how}",
                described.backbone.name(),
                described.place.digest(context.files())?,
                Place::of(self.linear.as_path(), context.files()).digest(context.files())?
            ),
        );
        Ok(Outputs {
            table: Arc::new(table),
        })
    }
}

/// Why pictures cannot be compared: the port at fault, what is wrong, and what mends it.
fn refused(
    own: ImageFacts,
    to: Option<ImageFacts>,
    is_linked: bool,
    backbone: Backbone,
) -> Option<(&'static str, String, &'static str)> {
    let least = backbone.least_side();
    if own.width.min(own.height) < least {
        let message = format!(
            "{} takes pictures of at least {least} pixels a side, not {}x{}",
            backbone.name(),
            own.width,
            own.height
        );
        return Some(("image", message, "enlarge them with `resize_image`"));
    }
    if let Some(message) = to.and_then(|to| misfit(own, to)) {
        return Some((
            "to",
            message,
            "bring one to the other's size with `resize_image`",
        ));
    }
    match own.batch {
        _ if is_linked => None,
        0 | 1 => Some((
            "image",
            format!("{} picture has no pairs", own.batch),
            "draw a batch of several seeds, `batch: 8`, or link other pictures to `to`",
        )),
        batch => {
            let one = backbone
                .features((own.width, own.height))
                .saturating_mul(size_of::<f32>());
            let most = MAX_BYTES / one.max(1);
            (batch > most).then(|| {
                let message = format!(
                    "{batch} pictures of {}x{} pixels are too many to compare each with each by {}; at most {most} are",
                    own.width,
                    own.height,
                    backbone.name()
                );
                ("image", message, "draw fewer seeds at a time, or make them smaller with `resize_image`")
            })
        }
    }
}

impl MeasureLpips {
    /// What is wrong with a file.
    fn fault(&self, field: &'static str, error: &Error, files: &dyn Files) -> Fault {
        let path = match field {
            "linear" => self.linear.as_path(),
            _ => self.path.as_path(),
        };
        if let Some(withheld) = files.withheld(path) {
            return Fault::file(field, withheld.message).help(withheld.help);
        }
        let where_from = match field {
            "linear" => {
                "it is `lpips/weights/v0.1/alex.pth` or `vgg.pth` of the package `lpips`, the one of the network in `path`"
            }
            _ => "it is torchvision's `alexnet-owt-7be5be79.pth` or `vgg16-397923af.pth`",
        };
        match error {
            Error::Weights { file, message } if message == NO_SUCH_FILE => {
                Fault::file(field, format!("there is no file {}", file.display()))
                    .help(format!("{where_from}; {}", files.find_model(path).help()))
            }
            other => Fault::content(field, other.to_string()).help(where_from),
        }
    }
}
