//! Trivial nodes to test the engine with: numbers and texts.
#![allow(
    dead_code,
    missing_docs,
    reason = "every test binary uses a part of it"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use retouch_graph::fields::{AssetPath, Seed, Steps, Template};
use retouch_graph::{
    Context, Engine, Fault, Files, MemoryFiles, Node, NodeError, Payload, Problem, ReadFile,
    Registry, Settings, Types, ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub struct Number(pub f64);

impl Payload for Number {
    const TYPE: &'static str = "number";
    const FORMATS: &'static [&'static str] = &["txt", "json"];
    fn bytes(&self) -> usize {
        8
    }
    fn summary(&self) -> String {
        format!("number {}", self.0)
    }
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        if !Self::FORMATS.contains(&format) {
            return Err(NodeError::failed("a number is no picture"));
        }
        Ok(vec![self.0.to_string().into_bytes()])
    }
}

pub struct Text(pub String);

impl Payload for Text {
    const TYPE: &'static str = "text";
    const FORMATS: &'static [&'static str] = &["txt"];
    fn bytes(&self) -> usize {
        self.0.len()
    }
    fn summary(&self) -> String {
        format!("text {}", self.0)
    }
    fn encode(&self, _: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        Ok(self
            .0
            .split('|')
            .map(|part| part.as_bytes().to_vec())
            .collect())
    }
}

pub struct Secret;

impl Payload for Secret {
    const TYPE: &'static str = "secret";
    fn bytes(&self) -> usize {
        0
    }
    fn summary(&self) -> String {
        "secret".to_owned()
    }
}

ports! { pub struct Nothing {} }
ports! {
    pub struct OneNumber {
        /// The number.
        pub out: Arc<Number>,
    }
}
ports! {
    pub struct OneText {
        /// The text.
        pub text: Arc<Text>,
    }
}
ports! {
    pub struct OneSecret {
        /// The secret.
        pub secret: Arc<Secret>,
    }
}

/// Gives a number.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Constant {
    /// The number.
    #[schemars(range(min = -1000, max = 1000))]
    pub value: f64,
}

impl Node for Constant {
    const OP: &'static str = "number";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = OneNumber;
    fn check(&self, _: &Types<Nothing>, _: &dyn Files) -> Result<Types<OneNumber>, Vec<Fault>> {
        Ok(Types::unknown().with("out", &self.value))
    }
    fn run(&self, _: Nothing, _: &Context<'_>) -> Result<OneNumber, NodeError> {
        Ok(OneNumber {
            out: Arc::new(Number(self.value)),
        })
    }
}

ports! {
    pub struct AddInputs {
        /// The first number.
        pub a: Arc<Number>,
        /// The second number.
        pub b: Option<Arc<Number>>,
    }
}
ports! {
    pub struct AddOutputs {
        /// The sum.
        pub sum: Arc<Number>,
        /// What was done, with `explain: true`.
        pub report: Option<Arc<Text>>,
    }
}

/// Adds numbers. It can say what it did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Add {
    /// What is added to both.
    #[serde(default)]
    pub amount: f64,
    /// Whether to give a report.
    #[serde(default)]
    pub explain: bool,
}

impl Node for Add {
    const OP: &'static str = "add";
    const VERSION: u32 = 2;
    type Inputs = AddInputs;
    type Outputs = AddOutputs;
    fn check(
        &self,
        inputs: &Types<AddInputs>,
        _: &dyn Files,
    ) -> Result<Types<AddOutputs>, Vec<Fault>> {
        let mut faults = Vec::new();
        let (a, b) = (inputs.facts::<f64>("a"), inputs.facts::<f64>("b"));
        if let (Some(a), Some(b)) = (a, b)
            && a == 13.0
            && b == 13.0
        {
            faults.push(
                Fault::mismatch("b", "two times 13 brings bad luck").help("link another number"),
            );
        }
        if self.amount == 13.0 {
            faults.push(Fault::value("amount", "13 brings bad luck").help("try 12"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut types = Types::unknown();
        if let Some(a) = a {
            types = types.with("sum", &(a + b.unwrap_or(0.0) + self.amount));
        }
        if !self.explain {
            types = types.without("report", "`add` gives a report with `explain: true`");
        }
        Ok(types)
    }
    fn run(&self, inputs: AddInputs, context: &Context<'_>) -> Result<AddOutputs, NodeError> {
        context.count("additions", 1);
        let sum = inputs.a.0 + inputs.b.map_or(0.0, |b| b.0) + self.amount;
        Ok(AddOutputs {
            sum: Arc::new(Number(sum)),
            report: self
                .explain
                .then(|| Arc::new(Text(format!("the sum is {sum}")))),
        })
    }
}

/// What stands between.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Separator {
    #[default]
    Comma,
    Pipe,
    Space,
}

ports! {
    pub struct JoinInputs {
        /// The numbers.
        pub items: Vec<Arc<Number>>,
    }
}

/// Writes numbers as a text.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Join {
    /// What stands before them.
    #[serde(default)]
    pub prefix: Template,
    /// What stands between them.
    #[serde(default)]
    pub separator: Separator,
    /// How often.
    #[schemars(range(min = 1, max = 10))]
    #[serde(default = "one")]
    pub times: u32,
    /// A text as it is.
    #[serde(default)]
    pub literal: Option<String>,
    /// Texts that are filled in.
    #[serde(default)]
    pub more: Vec<Template>,
}

fn one() -> u32 {
    1
}

impl Node for Join {
    const OP: &'static str = "join";
    const VERSION: u32 = 1;
    type Inputs = JoinInputs;
    type Outputs = OneText;
    fn run(&self, inputs: JoinInputs, _: &Context<'_>) -> Result<OneText, NodeError> {
        let separator = match self.separator {
            Separator::Comma => ", ",
            Separator::Pipe => "|",
            Separator::Space => " ",
        };
        let items: Vec<String> = inputs.items.iter().map(|item| item.0.to_string()).collect();
        let more: String = self.more.iter().map(|text| text.as_str()).collect();
        let text = format!(
            "{}{more}{}{}",
            self.prefix,
            self.literal.as_deref().unwrap_or(""),
            items.join(separator)
        );
        Ok(OneText {
            text: Arc::new(Text(text.repeat(self.times as usize))),
        })
    }
}

/// Reads a number from a file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReadNumber {
    /// The file.
    pub path: AssetPath,
    /// Other files.
    #[serde(default)]
    pub more: Vec<AssetPath>,
}

impl Node for ReadNumber {
    const OP: &'static str = "read";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = OneNumber;
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        if let Ok(content) = files.read(&self.path)
            && content.starts_with(b"bad")
        {
            return Err(vec![
                Fault::content("path", "the file holds no number").help("put a number into it"),
            ]);
        }
        let all = std::iter::once(&self.path).chain(&self.more);
        Ok(all
            .enumerate()
            .map(|(index, path)| ReadFile {
                role: format!("number {index}"),
                path: path.to_path_buf(),
            })
            .collect())
    }
    fn run(&self, _: Nothing, context: &Context<'_>) -> Result<OneNumber, NodeError> {
        let content = context
            .files()
            .read(&self.path)
            .map_err(|error| NodeError::failed(error.to_string()))?;
        let number = String::from_utf8_lossy(&content)
            .trim()
            .parse()
            .unwrap_or(0.0);
        Ok(OneNumber {
            out: Arc::new(Number(number)),
        })
    }
}

ports! {
    pub struct SampleInputs {
        /// Where it starts.
        pub start: Option<Arc<Number>>,
    }
}

/// Has a parameter of every kind, and runs on the device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// The number of steps.
    #[schemars(range(min = 1, max = 1000))]
    pub steps: u32,
    /// The steps of the other model.
    #[serde(default)]
    pub blend: Steps,
    /// The seed.
    #[serde(default)]
    pub seed: Seed,
    /// Whether to lock.
    #[serde(default)]
    pub lock: bool,
    /// A word or a number.
    #[serde(default)]
    pub threshold: Option<Threshold>,
    /// Two numbers.
    #[serde(default)]
    pub size: Option<(u32, u32)>,
    /// A word that must begin with `w`.
    #[serde(default)]
    pub word: Word,
}

/// A word or a number.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Threshold {
    Number(f64),
    Word(Rule),
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    Otsu,
    Soft,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Word(String);

impl Default for Word {
    fn default() -> Self {
        Self("word".to_owned())
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.starts_with('w') {
            Ok(Self(text))
        } else {
            Err(serde::de::Error::custom("it must begin with `w`"))
        }
    }
}

impl Node for Sample {
    const OP: &'static str = "sample";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = SampleInputs;
    type Outputs = OneNumber;
    fn run(&self, inputs: SampleInputs, context: &Context<'_>) -> Result<OneNumber, NodeError> {
        let devices = context.environment::<Devices>();
        if let Some(devices) = devices {
            let now = devices.busy.fetch_add(1, Ordering::SeqCst) + 1;
            devices.most.fetch_max(now, Ordering::SeqCst);
        }
        let start = inputs.start.map_or(0.0, |start| start.0);
        let blend = self.blend.resolve(self.steps as usize);
        for step in 0..self.steps as usize {
            context.check_cancelled()?;
            context.progress(step, self.steps as usize);
            if devices.is_some() && step < 20 {
                // Whoever may run beside this one gets the chance to.
                std::thread::yield_now();
            }
        }
        if let Some(devices) = devices {
            devices.busy.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(OneNumber {
            out: Arc::new(Number(start + blend as f64 + self.seed.get() as f64)),
        })
    }
}

/// Counts how many samplers run at a time.
#[derive(Default)]
pub struct Devices {
    pub busy: AtomicUsize,
    pub most: AtomicUsize,
}

/// Fails in the way that it is told.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Trouble {
    /// `fail`, `panic`, `wait`, `layers`, `ok`, `nothing`.
    pub how: String,
}

ports! {
    pub struct TroubleInputs {
        /// Something to wait for.
        pub after: Option<Arc<Number>>,
    }
}
ports! {
    pub struct MaybeNumber {
        /// The number, if there is one.
        pub out: Option<Arc<Number>>,
    }
}

impl Node for Trouble {
    const OP: &'static str = "trouble";
    const VERSION: u32 = 1;
    type Inputs = TroubleInputs;
    type Outputs = MaybeNumber;
    fn run(&self, _: TroubleInputs, context: &Context<'_>) -> Result<MaybeNumber, NodeError> {
        match self.how.as_str() {
            "fail" => Err(NodeError::failed("it had to").help("ask for less")),
            "panic" => panic!("out of cheese"),
            "wait" => loop {
                context.progress(0, 1);
                context.check_cancelled()?;
                std::thread::yield_now();
            },
            // As a network does, which knows no run.
            "layers" => {
                context.progress(0, 1);
                while !retouch_graph::interrupt::is_requested() {
                    std::thread::yield_now();
                }
                Err(NodeError::Cancelled)
            }
            "ok" => Ok(MaybeNumber {
                out: Some(Arc::new(Number(1.0))),
            }),
            _ => Ok(MaybeNumber { out: None }),
        }
    }
}

/// Gives what cannot be saved.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Hide {}

impl Node for Hide {
    const OP: &'static str = "hide";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = OneSecret;
    fn run(&self, _: Nothing, _: &Context<'_>) -> Result<OneSecret, NodeError> {
        Ok(OneSecret {
            secret: Arc::new(Secret),
        })
    }
}

pub fn registry() -> Registry {
    Registry::new()
        .with::<Constant>()
        .with::<Add>()
        .with::<Join>()
        .with::<ReadNumber>()
        .with::<Sample>()
        .with::<Trouble>()
        .with::<Hide>()
}

pub fn files() -> MemoryFiles {
    MemoryFiles::new()
        .with("flows/one.txt", "1")
        .with("flows/bad.txt", "bad")
        .with("two.txt", "2")
        .with(
            "flows/part.yaml",
            "schema: retouch/v1\nparams:\n  twice: {type: bool, default: false}\n  seed: {type: seed, default: random}\ninputs:\n  first: {type: number}\n  second: {type: number, optional: true}\n  word: {type: string}\n  file: {type: path, default: one.txt}\nnodes:\n  sum: {op: add, a: $inputs.first, b: $inputs.second}\n  text: {op: join, items: [$sum, $inputs.first], prefix: \"{word}: \"}\n  there: {op: read, path: $inputs.file}\noutputs:\n  text: {value: $text}\n  sum: {value: $sum}\n  there: {value: $there}\n",
        )
}

pub fn engine() -> Engine {
    Engine::new(registry()).with_files(Arc::new(files()))
}

pub fn with_files(files: MemoryFiles) -> Engine {
    Engine::new(registry()).with_files(Arc::new(files))
}

/// `R0301 3:5 message (hint)` for each fault.
pub fn show(problem: &Problem) -> String {
    let (line, column) = problem.line_column();
    let name = Path::new(problem.source_text().name());
    let place = if name == Path::new("flows/main.yaml") {
        String::new()
    } else {
        format!("{}:", name.display())
    };
    format!(
        "{} {place}{line}:{column} {} ({})",
        problem.code(),
        problem.message(),
        problem.hint().unwrap_or("-")
    )
}

pub fn faults_of(engine: &Engine, text: &str, settings: &Settings) -> Vec<String> {
    match engine.load_str("flows/main.yaml", text, settings) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(show).collect(),
    }
}

pub fn faults(text: &str) -> Vec<String> {
    faults_of(&engine(), text, &Settings::default())
}
