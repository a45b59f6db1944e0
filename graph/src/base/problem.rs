//! Every fault that a workflow can have: a code, a place, what is wrong, and what to do about it.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, OnceLock};

use miette::{Diagnostic, LabeledSpan, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

/// A range of bytes of a source text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

impl Span {
    /// Makes a span from two byte offsets.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The smallest span that covers both.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

struct SourceText {
    name: String,
    text: String,
    /// Whether the command line says it, itself or in a file of `--params`.
    argument: bool,
    index: OnceLock<Index>,
}

/// How many bytes lie between two marks of an [`Index`].
const MARK: usize = 256;

/// What lines and columns are found by, in a time that depends neither on the length of the text nor on that of a line.
struct Index {
    /// The first byte of each line.
    lines: Vec<usize>,
    /// The number of characters that begin before each `MARK`th byte.
    marks: Vec<usize>,
}

impl Index {
    fn of(text: &str) -> Self {
        let mut marks = Vec::with_capacity(text.len() / MARK + 1);
        let mut characters = 0;
        for piece in text.as_bytes().chunks(MARK) {
            marks.push(characters);
            characters += piece.iter().filter(|byte| !is_inside(**byte)).count();
        }
        marks.push(characters);
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            lines: std::iter::once(0).chain(breaks).collect(),
            marks,
        }
    }

    /// The number of characters before a byte.
    fn characters(&self, text: &str, offset: usize) -> usize {
        let piece = offset / MARK;
        let rest = &text.as_bytes()[piece * MARK..offset];
        self.marks[piece] + rest.iter().filter(|byte| !is_inside(**byte)).count()
    }

    /// The line of a byte, from 0.
    fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|&start| start <= offset).max(1) - 1
    }
}

/// Whether a byte of UTF-8 goes on with a character.
fn is_inside(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// A text with a name: a workflow file, or what was given to `--set`. Cloning shares it.
#[derive(Clone)]
pub struct Source(Arc<SourceText>);

impl Source {
    /// Makes a source; `name` is what diagnostics print (a path as the user wrote it).
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self::made(name.into(), text.into(), false)
    }

    /// Makes the source of what was written on the command line.
    pub fn command_line(text: impl Into<String>) -> Self {
        Self::made("command line".to_owned(), text.into(), true)
    }

    /// The same text as something that the command line gives: a file of `--params`, or the path of the workflow.
    #[must_use]
    pub fn as_argument(&self) -> Self {
        Self::made(self.0.name.clone(), self.0.text.clone(), true)
    }

    /// Whether it is an argument of the command, or a file that is one, and not a file of the workflow.
    #[must_use]
    pub fn is_argument(&self) -> bool {
        self.0.argument
    }

    fn made(name: String, text: String, argument: bool) -> Self {
        Self(Arc::new(SourceText {
            name,
            text,
            argument,
            index: OnceLock::new(),
        }))
    }

    /// What diagnostics print as the place.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// The text of a span; empty when the span is not one of this text.
    #[must_use]
    pub fn slice(&self, span: Span) -> &str {
        self.0.text.get(span.start..span.end).unwrap_or("")
    }

    /// Whether both are the same text of the same name.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.name == other.0.name && self.0.text == other.0.text)
    }

    fn index(&self) -> &Index {
        self.0.index.get_or_init(|| Index::of(&self.0.text))
    }

    /// The line and column of a byte, both from 1, the column in characters.
    #[must_use]
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let text = &self.0.text;
        let index = self.index();
        let offset = floor_boundary(text, offset);
        let line = index.line(offset);
        let mut start = index.lines[line];
        // An editor does not show the byte order mark, so it is not a column.
        while text[start..offset].starts_with('\u{feff}') {
            start += '\u{feff}'.len_utf8();
        }
        let column = index.characters(text, offset) - index.characters(text, start);
        (line + 1, column + 1)
    }

    /// How many lines there are; at least one.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.index().lines.len()
    }

    /// The bytes of a line, from 1, without its line break; empty beyond the last.
    #[must_use]
    pub fn line_span(&self, line: usize) -> Span {
        let lines = &self.index().lines;
        let end = self.0.text.len();
        let Some(&start) = line.checked_sub(1).and_then(|line| lines.get(line)) else {
            return Span::new(end, end);
        };
        let end = lines.get(line).map_or(end, |next| next - 1);
        let end = start + self.0.text[start..end].trim_end_matches('\r').len();
        Span { start, end }
    }

    fn clamp(&self, span: Span) -> Span {
        let start = floor_boundary(&self.0.text, span.start);
        let end = floor_boundary(&self.0.text, span.end).max(start);
        Span { start, end }
    }
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.0.name).finish()
    }
}

impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        context_lines_before: usize,
        context_lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, miette::MietteError> {
        let inner = self.0.text.as_str();
        let contents = inner.read_span(span, context_lines_before, context_lines_after)?;
        Ok(Box::new(MietteSpanContents::new_named(
            self.0.name.clone(),
            contents.data(),
            *contents.span(),
            contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}

macro_rules! codes {
    ($( $(#[doc = $docs:literal])+ $variant:ident = $code:literal, $explanation:literal; )*) => {
        /// The kinds of fault, each with a stable code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $( $(#[doc = $docs])+ $variant, )* }

        impl Code {
            /// All codes in order.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The code as it is printed: `R0301`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $code, )* }
            }

            /// What the fault is, in a few words.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $( Self::$variant => concat!($($docs),+).trim_ascii(), )* }
            }

            /// What the fault means and how to mend it, with an example.
            #[must_use]
            pub fn explanation(self) -> &'static str {
                match self { $( Self::$variant => $explanation, )* }
            }
        }
    };
}

codes! {
    /// A file cannot be read.
    FileUnreadable = "R0001", "A workflow or a parameter file is missing, is a folder, or may not be read. Check the path: a path in a workflow is relative to the file that wrote it, a path on the command line to the current folder.";
    /// A file is not UTF-8.
    NotUtf8 = "R0002", "A workflow is text in UTF-8. The place given is the first byte that is not. Save the file as UTF-8 in the editor (a byte order mark does no harm).";
    /// A file is too large.
    TooLarge = "R0003", "A workflow of more than 4 MiB is refused, so that a wrong file (a picture, a checkpoint) is not read as one. Split a large workflow with `use:`.";
    /// The YAML is not well-formed.
    Syntax = "R0101", "The text is not YAML. Frequent causes: a tab as indentation (use spaces), a text with `: ` or ` #` in it (quote it), an unclosed `[`, `{` or quote, and a template that YAML takes for a map:\n\n    prompt: {place} at night      # wrong: `{` opens a map\n    prompt: \"{place} at night\"    # right";
    /// The YAML is nested too deeply.
    TooDeep = "R0102", "Maps and lists may be nested 64 deep, aliases counted in full. No workflow needs more; the limit keeps a hostile file from exhausting the memory.";
    /// Aliases expand to too much.
    TooManyAliases = "R0103", "Aliases (`*name`) may expand to 100,000 values and 4 MiB of text together. Use `params:` for values that are used often.";
    /// The file holds several documents.
    SeveralDocuments = "R0104", "A file is one workflow: remove the second `---` and what follows it, or put it into a file of its own.";
    /// A tag is used.
    Tag = "R0105", "Tags (`!!int`, `!include`) are not part of the language. Write numbers without quotes and texts with quotes, and include another workflow with a node: `part: {use: part.yaml}`.";
    /// A merge key is used.
    MergeKey = "R0106", "Merge keys (`<<: *base`) are not part of the language: write the keys out, or put the common part into a reusable workflow and `use` it.";
    /// A key is given twice.
    DuplicateKey = "R0107", "A map has the same key twice, and only one can count. Remove or rename one of them:\n\n    sampler:\n      op: sample\n      steps: 20\n      steps: 50     # duplicate of `steps` above";
    /// A key is not a text.
    KeyNotText = "R0108", "Keys are texts. YAML reads `1:`, `true:` and `[a]:` as a number, a boolean and a list: put the key in quotes.";
    /// A number is out of range.
    NumberOutOfRange = "R0109", "Integers go up to 9007199254740991 (2^53 - 1), so that every program reads the same number; numbers must be finite. Put quotes around what is a text of digits.";
    /// An alias has no anchor.
    UnknownAlias = "R0110", "`*name` repeats the value that was marked `&name` earlier in the file; that mark is missing, comes later, or is of the value that holds the alias.";
    /// `schema` is missing.
    MissingSchema = "R0201", "A workflow says which version of the language it is written in. Put this at the top:\n\n    schema: retouch/v1";
    /// The schema is not one that this program reads.
    UnknownSchema = "R0202", "This program reads `retouch/v1`. A newer schema needs a newer program; anything else is a typing error.";
    /// A key is not known.
    UnknownKey = "R0203", "The key has no meaning here. Keys that begin with `x-`, and `ui`, are carried and ignored: use those for notes of your own.";
    /// A key is missing.
    MissingKey = "R0204", "A required key is missing: a node needs `op` or `use`, an output `value`, a param and an input `type`.";
    /// A value has the wrong shape.
    WrongShape = "R0205", "A map, a list or a text is expected and something else is there. For example `nodes:` is a map from names to nodes:\n\n    nodes:\n      base: {op: load_model, path: models/world}";
    /// A name has letters that names cannot have.
    BadName = "R0206", "Names are made of ASCII letters, digits, `_` and `-`, so that `$name.port` can be read in one way only.";
    /// A name is reserved.
    ReservedName = "R0207", "`params`, `inputs` and `outputs` cannot name a node: `$params.x` and `$inputs.x` mean something else.";
    /// A sweep cannot be made.
    BadSweep = "R0208", "`sweep:` says which runs `retouch sweep` makes: one for each combination of the values under `matrix`, plus those of `include`, without those of `exclude`:\n\n    sweep:\n      matrix:\n        blend_steps: [10%, 20%, 40%]          # a list\n        seed: 1..5                            # a range without its end: 1, 2, 3, 4\n        guidance: {from: 3, to: 5, step: 0.5} # both ends\n        place: {lines: places.txt}            # the lines of a text\n      exclude: [{blend_steps: 40%, seed: 1}]\n      grid: {rows: blend_steps, columns: seed, save: \"{workflow}/sheet.png\"}";
    /// A type is not known.
    UnknownType = "R0209", "Types of params: string, int, float, bool, steps, seed, path, choice, sites, threshold. Inputs of a reusable workflow take these and the types of ports (model, latent, image, ...; see `retouch nodes`).";
    /// A declaration contradicts itself.
    BadDeclaration = "R0210", "A default, a minimum, a maximum or the values of a choice do not fit the declared type or each other, or an input has the name of a param:\n\n    steps: {type: int, default: 0, min: 1}     # the default is below the minimum";
    /// A reference cannot be read.
    BadReference = "R0211", "A value that begins with `$` is a reference: `$node`, `$node.port`, `$params.name` or, in a reusable workflow, `$inputs.name`. There are no expressions. A text that begins with a dollar is written with two: `\"$$5\"`.";
    /// A template cannot be read.
    BadTemplate = "R0212", "In a template `{name}` is replaced by a param; a brace itself is written twice: `{{` and `}}`.";
    /// A name in a template is not known.
    UnknownTemplateName = "R0213", "`{name}` in a template must be a param of this workflow (or a value among its inputs); in `save` also `{workflow}` and `{output}`. A brace itself is written twice: `{{`.";
    /// A template is not quoted.
    UnquotedTemplate = "R0214", "YAML reads `{place}` without quotes as a map. Quote the template:\n\n    prompt: \"{place}\"";
    /// The file is a sweep, not a workflow.
    SweepOnly = "R0215", "The file declares a sweep of another workflow and has no nodes of its own. `retouch sweep FILE` runs it, and `check`, `plan`, `watch`, `lock` and `bundle` take it; `run` and `view` take the workflow that it names.";
    /// An op is not known.
    UnknownOp = "R0301", "`op` names what a node does; `retouch nodes` lists all ops.";
    /// A node is not known.
    UnknownNode = "R0302", "A reference names a node that this file does not have. Nodes inside an included workflow are reached by its outputs only.";
    /// A port is not known.
    UnknownPort = "R0303", "A reference names an output port that the node does not have; `retouch nodes OP` lists them. `$node` alone is its first.";
    /// A param is not known.
    UnknownParam = "R0304", "`$params.x` needs `x` under `params:` of the same file.";
    /// An input is not known.
    UnknownInput = "R0305", "`$inputs.x` needs `x` under `inputs:` of the same file.";
    /// A node has no such parameter or port.
    UnknownField = "R0306", "The op has neither a parameter nor an input port of that name; `retouch nodes OP` shows what it has.";
    /// A port is not linked.
    MissingLink = "R0307", "The port must be linked to another node's output: `model: $base`.";
    /// A parameter is missing.
    MissingField = "R0308", "The parameter has no default and must be given.";
    /// A link joins two types.
    PortType = "R0309", "What the link brings is not of a type that the port takes. Another output of the same node may fit, or a node in between (`decode` makes a picture of a latent).";
    /// A port has a value in place of a link.
    LinkDue = "R0310", "The key is an input port and takes a reference to a node's output, `model: $base`, not a value.";
    /// A parameter has a link in place of a value.
    ValueDue = "R0311", "The key is a parameter and takes a value or a reference to a param, `steps: 50` or `steps: $params.steps`, not a node's output.";
    /// A value has the wrong type.
    ValueType = "R0312", "The parameter takes another type of value, see `retouch nodes OP`. Numbers are written without quotes and without underscores, text that looks like a number in quotes.";
    /// A number is quoted.
    QuotedNumber = "R0313", "A number is expected, and quotes make it a text. Write `steps: 50`, not `steps: \"50\"`.";
    /// A boolean is not written as one.
    NotABool = "R0314", "Booleans are `true` and `false`, as they are here: `yes`, `on`, `True` and quoted ones are texts.";
    /// A value is out of range.
    OutOfRange = "R0315", "The number is smaller or greater than the parameter allows, or the word is not one of its choices.";
    /// A param's type does not fit where it is used.
    ParamType = "R0316", "The param is declared with a type that the parameter can never take, so no value of it would do. Change the declaration, or use another param.";
    /// Nodes wait for each other.
    Cycle = "R0317", "Each of the nodes named needs another one's output first, so none can begin. Cut one of the links.";
    /// A port has too many links.
    TooManyLinks = "R0318", "The port takes one link. Only ports that take several (`grid`'s images) are given a list.";
    /// A link is to an output that is not made.
    NotMade = "R0319", "The node, as it is set up, will not make this output; the message says what to change.";
    /// A node refuses a parameter's value.
    NodeValue = "R0320", "The value is of the right type, but it does not fit the node or its other parameters.";
    /// What is linked does not fit together.
    NodeMismatch = "R0321", "The values that are linked are of the right types and still do not fit: another model family, another size, another number of steps.";
    /// A file that a node reads is missing.
    NodeFile = "R0322", "A model, a picture or another file that the node reads is missing or cannot be read. Paths are relative to the file that wrote them, with `--set` to the current folder.";
    /// A file that a node reads is not what it should be.
    NodeContent = "R0323", "The file is there, but it is damaged, of another format, or lacks something that the node needs.";
    /// A model on a hub is not on this machine yet.
    NotFetched = "R0324", "The workflow names a model on a hub (`hf://owner/name`), and not all of it is in the cache of the hub's programs. `check`, `plan` and editors fetch nothing; `run`, `watch`, `sweep` and `lock` do, and so does `retouch fetch FILE`. For a bundle or a picture, which somebody else may have made, they ask on a terminal or require `--fetch`, and send your token only with `--token-for OWNER/NAME`. With `--offline` or HF_HUB_OFFLINE nothing is fetched at all.";
    /// A hub cannot be reached.
    HubUnreachable = "R0325", "The hub does not answer: there is no network, a proxy or a firewall blocks it, or the hub itself has a problem. What was fetched so far is kept, and the next run continues from there. With `--offline` only what is in the cache is used. HF_ENDPOINT names another hub.";
    /// There is no such thing on a hub.
    HubMissing = "R0326", "The hub has no such repository, no such revision in it, or no such file; the message says which. A private repository looks missing to those without access.";
    /// A hub refuses to give something.
    HubDenied = "R0327", "The repository is private or gated, and the hub was given no token, or one that may not read it. Accept the conditions on the model's page, create a token there, and set it in HF_TOKEN or in the file that the hub's own `login` writes.";
    /// A hub sent something other than it announced.
    HubContent = "R0328", "What arrived is not what the hub announced: its digest or its size differs, or the answer is not a hub's. Nothing of it is kept. If it happens again, something between this machine and the hub changes it.";
    /// A path to a hub cannot be read.
    HubAddress = "R0329", "A model on a hub is named `hf://owner/name`, followed by `@revision` for a branch, a tag or a commit (a `/` in it is written `%2F`), and then by a path in the repository: `hf://owner/name@main/model.safetensors`.";
    /// An included workflow is missing.
    IncludeMissing = "R0401", "`use` names another workflow by a path relative to this file.";
    /// Workflows include each other.
    IncludeCycle = "R0402", "A workflow includes itself, directly or through others, and would never end. The message prints the path of files.";
    /// `with` sets something that the workflow does not have.
    UnknownWith = "R0403", "`with` gives values to the `inputs:` and `params:` of the included workflow; it has neither of that name.";
    /// `with` lacks an input.
    MissingWith = "R0404", "The included workflow has an input or a param without a default; give it under `with:`.";
    /// A reusable workflow is run by itself.
    NotRunnable = "R0405", "The workflow has inputs without defaults, so it only runs as a part of another one: `part: {use: this.yaml, with: {...}}`.";
    /// Too much is included.
    TooManyNodes = "R0406", "With everything included a workflow may have 200,000 nodes and 64 levels of `use`.";
    /// The values have too much text.
    TooMuchText = "R0407", "With everything filled in (params in templates and under `with:`, the defaults of each workflow that is used) the values of a workflow may have 128 MiB of text, those of all cells of a sweep together. The limit keeps a small file from exhausting the memory.";
    /// `--set` names a param that the workflow does not have.
    UnknownSetting = "R0501", "`--set name=value` and `--params` change what the workflow declares under `params:`.";
    /// `--set` cannot be read.
    BadSetting = "R0502", "`--set` takes `name=value`: `--set steps=20`.";
    /// A param has no value.
    MissingParam = "R0503", "The param has no default: give it a value with `--set name=value`, with `--params FILE`, or a `default`.";
    /// A file would be written outside of the output folder.
    UnsafePath = "R0601", "What a run writes stays below `--out`, under names that every system takes: no absolute path, no `..`, no `\\`, none of `< > : \" | ? *`, no control characters, no name that ends in a point or a space or is a Windows device name (`con`, `nul`, `com1`), no name of more than 240 bytes or path of more than 1000, and no value with a `/` in it in place of a `{name}`. A folder below `--out` that is a link is not written through; `--out` itself may be one.";
    /// An output cannot be saved in that format.
    SaveFormat = "R0602", "The ending of `save` chooses the format, and the value cannot be written as that one. The message names the endings that it can.";
    /// Two outputs are saved to one file.
    SaveTwice = "R0603", "Two outputs of one run have the same path, and one would overwrite the other.";
    /// A target is not known.
    UnknownTarget = "R0604", "What is named on the command line is neither an output nor a node of the workflow. Where an output and a node share a name it means the output; write `nodes.name` for the node.";
    /// There is nothing to run.
    NothingToRun = "R0605", "The workflow has no `outputs:`, and a node runs only when an output needs it. Add an output:\n\n    outputs:\n      final: {value: $picture, save: \"{workflow}.png\"}";
    /// A param is not used.
    UnusedParam = "R0701", "A warning: nothing refers to the param, so changing it changes nothing.";
    /// A node is not used.
    UnusedNode = "R0702", "A warning: no output depends on the node, so it does not run.";
    /// A parameter does not have the effect that it seems to have.
    NodeWarning = "R0703", "A warning: the node runs, but part of the parameter has no effect. For a prompt:\n\n- Tokens beyond those that the text encoder takes (75 without the markers) are left out. Shorten the prompt, or give `long_prompts: chunks` to `load_model` to have all of it read.\n- `<lora:name:0.8>` is text. Apply the file with `op: apply_lora`.\n- `(word:1.4)` is text unless `load_model` has `syntax: a1111`.";
    /// The formatter would have changed the meaning.
    FormatRefused = "R0801", "The formatter checks that the text means the same before and after, comments too. Here it would not, so the text is left as it is. Please report the file.";
    /// A lock file cannot be read.
    LockUnreadable = "R0901", "The file is not a lock file, or it was changed by hand. `retouch lock FILE` writes a new one; a lock is text, so version control shows what it was before.";
    /// A lock file is of another schema.
    LockSchema = "R0902", "This program reads `schema: retouch-lock/1`. A lock of a newer schema was written by a newer Retouch: use that one, or write a new lock with `retouch lock FILE`.";
    /// What is read is not what the lock says.
    LockDiffers = "R0903", "With `--locked` everything that is read must be what `retouch lock` recorded. Bring the files back, or accept what they are now with `retouch lock FILE`.";
    /// There is no lock file.
    LockMissing = "R0904", "`--locked` compares what is read with the lock file beside the workflow (`wf.lock` for `wf.yaml`), and there is none. `retouch lock FILE` writes it.";
    /// A file cannot be recorded in a lock.
    LockName = "R0905", "A lock names files by relative paths with `/`, in Unicode, so that it means the same on every machine. A name with `\\` or a control character, or one that is not Unicode, cannot be stored in it: rename the file.";
    /// A bundle is damaged.
    BundleArchive = "R0911", "A bundle is one zstd frame, with a checksum of its content, around one ustar archive, with nothing before or after it. This file is not one, is truncated, or was damaged in transfer: get it again.";
    /// Something in a bundle is not a plain file.
    BundleEntry = "R0912", "Bundles hold plain files only. Links, devices, pipes, folders of their own, sparse files and the long names of GNU and PAX can be made to write elsewhere, so a bundle with one is refused as a whole.";
    /// A file in a bundle has a name that is not safe.
    BundleName = "R0913", "A path in a bundle is relative, with `/`, at most 255 bytes long and 32 folders deep, without `.`, `..`, `\\`, `< > : \" | ? *`, invisible characters and names of devices (`con`, `nul`, `com1`), so that it stays inside the bundle on every system. When you make a bundle: rename the file.";
    /// Two files in a bundle conflict.
    BundleTwice = "R0914", "Two files of the bundle have the same path, differ only in upper and lower case, or one's path leads through the other.";
    /// A bundle is too large.
    BundleLimit = "R0915", "Unpacked, a bundle may have 10,000 files, 1 GiB (more with `--max-unpacked SIZE`), and a hundred times its own size: more could be meant to fill the disk.";
    /// A bundle's manifest is missing or cannot be read.
    BundleManifest = "R0916", "The first file of a bundle is `retouch-bundle.yaml`, which lists all others. Here it is missing, or is not as `retouch bundle` writes it.";
    /// A bundle is of another schema.
    BundleSchema = "R0917", "This program reads `schema: retouch-bundle/1`. A bundle of a newer schema was made by a newer Retouch: use that one.";
    /// A bundle does not hold what its manifest says.
    BundleContent = "R0918", "Each file of a bundle must have the size and the digest that its manifest says, each one listed must be there, and no other.";
    /// A workflow reaches out of its bundle.
    BundleOutside = "R0919", "A bundle must be self-contained: its workflow reads what is in it, models that are found by their content, and what you give with `--set`. A path that is absolute or leads out of the bundle is refused. When you make a bundle: write the path relative to the workflow.";
    /// A file is too large for a bundle.
    BundleAsset = "R0920", "Assets of more than 64 MiB are not packed unless you say so: `--max-asset 200MiB`. Models are packed only with `--with-models`; without it their digests are in the lock, and whoever receives the bundle needs the models.";
    /// Where an output comes from cannot be recorded.
    NoProvenance = "R0931", "A picture carries the workflow that made it, with every seed as a number and every file by a path that can be shared. A seed drawn inside an included workflow, or an included workflow in a folder that no shareable path leads to, cannot be recorded in it.";
    /// A node failed.
    NodeFailed = "R1001", "A node could not do its work: memory ran out, a file disappeared during the run, or its inputs cannot be computed with. The message says what happened. What was finished before is saved and kept, so the next run continues from there.";
    /// A node panicked.
    NodePanicked = "R1002", "A node reached a state that its author thought impossible. That is a bug in the program: please report it with the workflow. What was finished before is saved and kept.";
    /// A node did not give an output.
    NotGiven = "R1003", "Something needs an output that the node only gives under some settings, and under these it does not. `retouch nodes OP` says when it does.";
    /// An output cannot be encoded.
    OutputNotEncoded = "R1004", "The value is there, but it cannot be made into a file of that kind; the message says why. Another ending in `save` chooses another kind.";
    /// An output's file exists already.
    OutputExists = "R1005", "With `--exists fail` nothing is written where a file with different content already exists. Remove it, save elsewhere, or run with `--exists number`, `replace` or `keep`.";
    /// An output's file cannot be written.
    OutputUnwritable = "R1006", "The file system refuses to write below the output folder: it may be full, be read-only, or belong to somebody else. The outputs that could be written are in place; no half-written file is left.";
    /// The run was interrupted.
    Interrupted = "R1007", "Ctrl-C, or a signal to end, stopped the run at its next step. What was finished is saved and kept; the same command continues from there (`retouch sweep` with `--resume`).";
    /// Several nodes or outputs failed.
    SeveralFailed = "R1008", "With `--keep-going` everything that does not need a failed node is still made. Each failure was reported as it happened, with a code of its own; this one counts them.";
    /// A file changed while the run was using it.
    FileChanged = "R1009", "A cache key identifies what a node reads by the digests that the files had when the plan was made. This file was changed, replaced or removed afterwards, while the node, or a model that it uses, was still reading it: a photo was swapped while its node waited, or a training wrote into the model's folder. The result may come from either content, so nothing that was made since is kept or saved. Run it again, once the file is no longer being written.";
    /// The command's arguments make no sense.
    Usage = "R1101", "An option or an argument is not known, is missing, or has a value that it cannot have; or the command cannot be used with such a file. `retouch COMMAND --help` lists the options.";
    /// The configuration file makes no sense.
    BadConfiguration = "R1102", "The configuration file (`retouch/config.yaml` in the platform's configuration folder, or what RETOUCH_CONFIG names) cannot be read or has a key or value that is not known. Correct it, or set RETOUCH_CONFIG to nothing to continue without it:\n\n    cache: {folder: DIR, device: 2GiB, ram: 2GiB, disk: 10GiB, sources: 6GiB}";
    /// The compute device cannot be used.
    DeviceUnusable = "R1103", "`--device` names a device that is not there, or that this program was built without. `cpu` always works; `cuda` and `metal` need a build with the feature of that name.";
    /// Something cannot be read.
    Unreadable = "R1201", "A file that the command was given is missing, is a folder, may not be read, or does not hold what it should. The message has its path and what the system says.";
    /// Something cannot be written.
    Unwritable = "R1202", "A file or a folder cannot be created or written: it exists already, the disk is full, or permission is missing. No half-written file is left in its place.";
    /// The system refuses something.
    SystemRefused = "R1203", "The system refuses something other than a file that the command needs: threads, the handling of Ctrl-C, the watching of folders. The message has the system's reason; limits of the account or the container are the usual cause.";
    /// The command failed.
    CommandFailed = "R1204", "The command failed for a reason that has no code of its own; the message says it.";
    /// A picture carries no recipe.
    NoRecipe = "R1211", "`show`, `extract`, `replay` and `diff` read what `retouch` writes into every PNG that it saves. Another format carries nothing, `--no-provenance` leaves it out, and many programs drop it when they save a picture again.";
    /// A file that a picture was made from is missing.
    RecipeLost = "R1212", "A picture is made again from exactly the files that it was made from, identified by their content. One of them is missing or has changed. Bring it back, or name the folder that has it with `--models DIR` or RETOUCH_MODELS.";
    /// A picture that was made again differs.
    ReplayDiffers = "R1213", "All inputs of the picture are the same, and the result differs. Another processor, device or version of the program may round differently, but where at most 1 % of the values differ, each by 1 of 255, the picture counts as equal. `retouch show` says what it was made with.";
    /// The run is not known.
    UnknownRun = "R1301", "`retouch runs` lists the recorded runs, the newest first, with their names. A prefix of a name is enough as long as it is unique, and `last` is the newest. The last 1,000 are kept; a run with `--no-cache` is not recorded.";
    /// The run cannot be verified.
    NotVerifiable = "R1302", "`retouch verify` repeats runs that succeeded. One that failed, was cancelled or killed, or is still running has no complete result to compare with: run it again first.";
    /// The inputs of a run have changed.
    RunChanged = "R1303", "`retouch verify` checks that the same inputs give the same results, and here the inputs differ: the workflow, a param, a file that it reads, a model, the device or the program has changed. The message and the lines before it name each difference. `retouch runs show RUN` shows the settings of that run; `retouch run` makes a new run with the present ones.";
    /// A run does not give the same result.
    RunDiffers = "R1304", "All inputs of the run are the same, and the results differ: an entry of the cache or a saved file is not what this program computes on this machine. The first step that differs is where to look; those after it follow from it. Causes are a cache folder that several kinds of machine share, a library or a driver that was replaced, or faulty memory. `retouch cache clear` and a new run make cache and files consistent again.";
    /// The object store does not let us.
    StoreRefused = "R1401", "The object store of a sweep, or of the remote cache, refuses what is asked: there are no credentials, or they have too few rights. Credentials are taken from the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...) and from the files of the services' own tools, never from an address or a workflow.";
    /// The object store does not answer.
    StoreUnreachable = "R1402", "The object store does not answer, or answers with faults of its own, also after several tries. What is in it stays there: the command can be given again, and workers that are told to stop give back what they had.";
    /// The object store cannot be relied on.
    StoreUnusable = "R1403", "Workers claim cells by creating an object that was not there, which only one of them may win. The store was tried before it was used, and it takes such an object twice, loses it, or cannot do it at all. Use a store with conditional puts (`If-None-Match: *`), or a folder that all machines share.";
    /// What a store holds is not what it should.
    StoreContent = "R1404", "An object of a run in the store is missing or is not what this version of the program writes. The message names it. Something else writes to the store, it was cut short, or the run was submitted by another version.";
    /// There is no such run in the store.
    UnknownSweepRun = "R1405", "The store has no run of that name. `--store` names the store; without it the one below the output folder is meant (`--out`). A prefix of a name is enough as long as it is unique, and `last` is the newest.";
    /// A worker would make something else.
    WorkerDiffers = "R1406", "A worker loads the sweep itself, and compares it with what was submitted: the same workflow, params, models and files, and on one run the same device, data type and kernels. Otherwise pictures of two kinds would stand side by side. The message says what differs.";
    /// A scheduler does not do what is asked.
    SchedulerFailed = "R1407", "Slurm's `sbatch` is not there, or did not take the job; the message has its answer. `--dry-run` prints the script. What a site demands (a partition, an account, a time limit) is said by `--sbatch` or in a `--profile`.";
}

impl Code {
    /// The code of that name: `R0301`, in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.as_str().eq_ignore_ascii_case(text.trim()))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl schemars::JsonSchema for Code {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Code".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A stable code; `retouch explain CODE` says more.",
            "type": "string",
            "pattern": "^R[0-9]{4}$",
        })
    }
}

/// What the fault with that code means and how to mend it.
#[must_use]
pub fn explain(code: &str) -> Option<&'static str> {
    Code::parse(code).map(Code::explanation)
}

/// All codes with their titles, in order.
pub fn codes() -> impl Iterator<Item = (&'static str, &'static str)> {
    Code::ALL.iter().map(|code| (code.as_str(), code.title()))
}

/// Whether a problem stops the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

/// A place with a remark.
#[derive(Clone, Debug)]
pub struct Label {
    /// The text that the place is in.
    pub source: Source,
    /// The place.
    pub span: Span,
    /// The remark.
    pub text: String,
}

#[derive(Clone, Debug)]
struct Body {
    code: Code,
    severity: Severity,
    message: String,
    source: Source,
    span: Span,
    label: String,
    others: Vec<Label>,
    related: Vec<Related>,
    help: Option<String>,
}

/// A fault, what is wrong with a workflow, a file or a command line: what, where, and what to do about it.
#[derive(Clone, Debug)]
pub struct Problem(Box<Body>);

impl Problem {
    /// Creates a fault at a place.
    pub fn new(code: Code, source: &Source, span: Span, message: impl Into<String>) -> Self {
        Self(Box::new(Body {
            code,
            severity: Severity::Error,
            message: message.into(),
            source: source.clone(),
            span: source.clamp(span),
            label: String::new(),
            others: Vec::new(),
            related: Vec::new(),
            help: None,
        }))
    }

    /// Makes it a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.0.severity = Severity::Warning;
        self
    }

    /// Sets the remark at the place itself.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.0.label = text.into();
        self
    }

    /// Adds another place, in the same text or in another one.
    #[must_use]
    pub fn also(mut self, source: &Source, span: Span, text: impl Into<String>) -> Self {
        let label = Label {
            source: source.clone(),
            span: source.clamp(span),
            text: text.into(),
        };
        if source.same(&self.0.source) {
            self.0.others.push(label);
        } else {
            self.0.related.push(Related(label));
        }
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.0.help = Some(text.into());
        self
    }

    /// Says what to do, if there is something to say.
    #[must_use]
    pub fn maybe_help(mut self, text: Option<String>) -> Self {
        if text.is_some() {
            self.0.help = text;
        }
        self
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Whether it stops the run.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.0.severity
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The text that the place is in.
    #[must_use]
    pub fn source_text(&self) -> &Source {
        &self.0.source
    }

    /// The place.
    #[must_use]
    pub fn span(&self) -> Span {
        self.0.span
    }

    /// Moves the fault from a file of the workflow to the arguments of the command.
    #[must_use]
    pub(crate) fn of_argument(mut self) -> Self {
        self.0.source = self.0.source.as_argument();
        self
    }

    /// Whether the command line is at fault: the place, or another place that the fault points to, is one of its
    /// arguments. Everything else is a fault of the workflow's files.
    #[must_use]
    pub fn is_of_arguments(&self) -> bool {
        self.0.source.is_argument() || self.others().any(|label| label.source.is_argument())
    }

    /// The line and column of the place, both from 1, the column in characters.
    #[must_use]
    pub fn line_column(&self) -> (usize, usize) {
        self.0.source.line_column(self.0.span.start)
    }

    /// What to do.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// The remark at the place itself.
    #[must_use]
    pub fn remark(&self) -> &str {
        &self.0.label
    }

    /// The other places, in the same text or in others.
    pub fn others(&self) -> impl Iterator<Item = &Label> {
        self.0
            .others
            .iter()
            .chain(self.0.related.iter().map(|note| &note.0))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for Problem {}

fn labelled(span: Span, text: &str, primary: bool) -> LabeledSpan {
    let text = (!text.is_empty()).then(|| text.to_owned());
    let span = SourceSpan::from((span.start, span.end - span.start));
    if primary {
        LabeledSpan::new_primary_with_span(text, span)
    } else {
        LabeledSpan::new_with_span(text, span)
    }
}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.0.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0
            .help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.0.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let first = labelled(self.0.span, &self.0.label, true);
        let others = self
            .0
            .others
            .iter()
            .map(|other| labelled(other.span, &other.text, false));
        Some(Box::new(std::iter::once(first).chain(others)))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.0.related.is_empty() {
            return None;
        }
        Some(Box::new(
            self.0.related.iter().map(|note| note as &dyn Diagnostic),
        ))
    }
}

/// A place in another text than the problem's own; miette's labels cannot leave their text.
#[derive(Clone, Debug)]
struct Related(Label);

impl fmt::Display for Related {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl Error for Related {}

impl Diagnostic for Related {
    fn severity(&self) -> Option<miette::Severity> {
        Some(miette::Severity::Advice)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.0.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(labelled(self.0.span, "", true))))
    }
}

/// All faults of a workflow, by file and place; at least one.
#[derive(Clone, Debug)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts the problems by file (in order of appearance) and place, and drops duplicates.
    #[must_use]
    pub fn new(mut problems: Vec<Problem>) -> Self {
        sort(&mut problems);
        Self(problems)
    }

    /// The problems in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// Whether every error (warnings aside) is one of the command line's arguments.
    #[must_use]
    pub fn are_of_arguments(&self) -> bool {
        (self.0.iter())
            .filter(|problem| problem.severity() == Severity::Error)
            .all(Problem::is_of_arguments)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Sorts by file in order of appearance, then by place; drops repetitions (a file that is included twice).
pub(crate) fn sort(problems: &mut Vec<Problem>) {
    let mut files: indexmap::IndexSet<String> = indexmap::IndexSet::new();
    for problem in problems.iter() {
        files.insert(problem.0.source.name().to_owned());
    }
    let place = |p: &Problem| {
        (
            files.get_index_of(p.0.source.name()),
            p.0.span.start,
            p.0.span.end,
            p.0.code,
        )
    };
    problems.sort_by(|a, b| {
        place(a)
            .cmp(&place(b))
            .then_with(|| a.0.message.cmp(&b.0.message))
    });
    problems.dedup_by(|a, b| {
        a.0.code == b.0.code
            && a.0.span == b.0.span
            && a.0.message == b.0.message
            && a.0.source.same(&b.0.source)
    });
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let (line, column) = problem.line_column();
            write!(
                f,
                "{}:{line}:{column}: {}: {}",
                problem.0.source.name(),
                problem.0.code,
                problem.0.message
            )?;
            if let Some(help) = &problem.0.help {
                write!(f, " ({help})")?;
            }
        }
        Ok(())
    }
}

impl Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_sorted_and_explained() {
        let codes: Vec<&str> = codes().map(|(code, _)| code).collect();
        let mut sorted = codes.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(codes, sorted);
        for code in Code::ALL {
            assert!(explain(code.as_str()).is_some_and(|text| text.len() > 40));
            assert!(code.title().ends_with('.'), "{}", code.title());
        }
        assert_eq!(explain("r0301"), Some(Code::UnknownOp.explanation()));
        assert_eq!(explain("R9999"), None);
    }

    #[test]
    fn columns_count_characters_and_not_the_byte_order_mark() {
        let source = Source::new("a", "\u{feff}é: x\r\nb: y");
        assert_eq!(source.line_column(3), (1, 1));
        assert_eq!(source.line_column(5), (1, 2));
        assert_eq!(source.line_column(10), (2, 1));
        assert_eq!(source.line_column(999), (2, 5));
        assert_eq!(source.lines(), 2);
        assert_eq!(source.slice(source.line_span(1)), "\u{feff}é: x");
        assert_eq!(source.slice(source.line_span(2)), "b: y");
        assert_eq!(source.slice(source.line_span(3)), "");
    }

    #[test]
    fn columns_of_long_lines_are_those_that_counting_gives() {
        let text = "é☃a🐻".repeat(400) + "\n" + &"x".repeat(700);
        let source = Source::new("a", text.as_str());
        let (mut line, mut column) = (1, 1);
        for (at, c) in text.char_indices() {
            assert_eq!(source.line_column(at), (line, column));
            column += 1;
            if c == '\n' {
                (line, column) = (line + 1, 1);
            }
        }
        assert_eq!(source.line_column(text.len()), (2, 701));
    }
}
