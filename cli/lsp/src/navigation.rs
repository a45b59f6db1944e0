//! Where things are declared, what refers to them, and new names for them.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use lsp_types::{
    DocumentHighlight, DocumentHighlightKind, DocumentSymbol, Location, Position,
    PrepareRenameResponse, Range, SymbolKind, TextEdit, Uri, WorkspaceEdit,
};
use retouch_graph::params::is_carried;
use retouch_graph::template::is_name;

use super::index::{Decl, Index, Item};
use super::workspace::Workspace;

/// A place in a file, with the file's reading.
struct Place {
    path: PathBuf,
    index: Rc<Index>,
    span: retouch_graph::Span,
    declares: bool,
}

impl Workspace {
    fn location(&self, place: &Place) -> Option<Location> {
        Some(Location::new(
            self.uri(&place.path)?,
            self.range(&place.index, &place.path, place.span),
        ))
    }

    /// Where what stands at a position is declared.
    #[must_use]
    pub fn definition(&self, uri: &Uri, position: Position) -> Option<Location> {
        let (path, offset) = self.workflow_at(uri, position)?;
        let index = self.index(&path)?;
        let one = index.at(offset)?;
        if !self.is_real(&path, &index, one) {
            return None;
        }
        if let Item::Use(uses) = &one.item {
            let file = self.beside(&path, uses);
            let there = self.index(&file)?;
            return self.location(&Place {
                path: file,
                index: there,
                span: retouch_graph::Span::default(),
                declares: true,
            });
        }
        let (file, there, item) = self.meaning(&path, &index, &one.item);
        // The port of an op is declared by the node that has it.
        let item = match item {
            Item::Port { node, .. } => Item::Node(node),
            other => other,
        };
        let declaration = there.all(&item).find(|one| one.declares)?;
        self.location(&Place {
            path: file,
            span: declaration.span,
            index: Rc::clone(&there),
            declares: true,
        })
    }

    /// All places that name an item, in its own file and in those that use it.
    fn places(&self, file: &Path, index: &Rc<Index>, item: &Item) -> Vec<Place> {
        let mut places = Vec::new();
        let mut take = |path: &Path, index: &Rc<Index>, item: &Item| {
            for one in index.all(item).filter(|one| self.is_real(path, index, one)) {
                places.push(Place {
                    path: path.to_owned(),
                    index: Rc::clone(index),
                    span: one.span,
                    declares: one.declares,
                });
            }
        };
        take(file, index, item);
        let name = match item {
            Item::Param(name) | Item::Input(name) | Item::Output(name) => name,
            _ => return places,
        };
        for (path, user) in self.users(file) {
            for node in &user.nodes {
                let uses = node.uses.as_ref().map(|uses| self.beside(&path, uses));
                if uses.as_deref() != Some(file) {
                    continue;
                }
                let node = node.name.clone();
                let there = if matches!(item, Item::Output(_)) {
                    Item::Port {
                        node,
                        port: name.clone(),
                    }
                } else {
                    Item::With {
                        node,
                        key: name.clone(),
                    }
                };
                take(&path, &user, &there);
            }
        }
        places
    }

    /// All places that name what stands at a position.
    #[must_use]
    pub fn references(
        &self,
        uri: &Uri,
        position: Position,
        declaration: bool,
    ) -> Option<Vec<Location>> {
        let (path, offset) = self.workflow_at(uri, position)?;
        let index = self.index(&path)?;
        let one = index.at(offset)?;
        if matches!(one.item, Item::Key(_)) || !self.is_real(&path, &index, one) {
            return None;
        }
        let (file, there, item) = self.meaning(&path, &index, &one.item);
        let places = self.places(&file, &there, &item);
        Some(
            places
                .iter()
                .filter(|place| declaration || !place.declares)
                .filter_map(|place| self.location(place))
                .collect(),
        )
    }

    /// The places of the file that name what stands at a position.
    #[must_use]
    pub fn highlights(&self, uri: &Uri, position: Position) -> Option<Vec<DocumentHighlight>> {
        let (path, offset) = self.workflow_at(uri, position)?;
        let index = self.index(&path)?;
        let one = index.at(offset)?;
        if matches!(one.item, Item::Key(_)) || !self.is_real(&path, &index, one) {
            return None;
        }
        let same = index
            .all(&one.item)
            .filter(|other| self.is_real(&path, &index, other));
        Some(
            same.map(|other| DocumentHighlight {
                range: self.range(&index, &path, other.span),
                kind: Some(if other.declares {
                    DocumentHighlightKind::WRITE
                } else {
                    DocumentHighlightKind::READ
                }),
            })
            .collect(),
        )
    }

    /// The params, inputs, nodes and outputs of a file.
    #[must_use]
    pub fn symbols(&self, uri: &Uri) -> Option<Vec<DocumentSymbol>> {
        let path = self.path(uri);
        if !self.documents.get(&path)?.workflow {
            return None;
        }
        let index = self.index(&path)?;
        let symbol = |name: &str, detail: String, kind, whole, span| {
            #[expect(deprecated, reason = "the field must be given")]
            DocumentSymbol {
                name: name.to_owned(),
                detail: (!detail.is_empty()).then_some(detail),
                kind,
                tags: None,
                deprecated: None,
                range: self.range(&index, &path, whole),
                selection_range: self.range(&index, &path, span),
                children: None,
            }
        };
        let decls = |list: &[Decl], kind| -> Vec<DocumentSymbol> {
            list.iter()
                .map(|decl| symbol(&decl.name, decl.kind.clone(), kind, decl.whole, decl.span))
                .collect()
        };
        let nodes = index
            .nodes
            .iter()
            .map(|node| {
                let detail = node.op.clone().or_else(|| node.uses.clone());
                let detail = detail.unwrap_or_default();
                symbol(
                    &node.name,
                    detail,
                    SymbolKind::FUNCTION,
                    node.whole,
                    node.span,
                )
            })
            .collect();
        let outputs = index
            .outputs
            .iter()
            .map(|output| {
                let detail = output.value.clone().unwrap_or_default();
                symbol(
                    &output.name,
                    detail,
                    SymbolKind::EVENT,
                    output.whole,
                    output.span,
                )
            })
            .collect();
        let sections = [
            ("params", decls(&index.params, SymbolKind::VARIABLE)),
            ("inputs", decls(&index.inputs, SymbolKind::INTERFACE)),
            ("nodes", nodes),
            ("outputs", outputs),
        ];
        let mut symbols = Vec::new();
        for (name, children) in sections {
            let key = index
                .occurrences
                .iter()
                .find(|one| matches!(one.item, Item::Key(key) if key == name));
            let (Some(key), Some(last)) = (key, children.last()) else {
                continue;
            };
            let mut section = symbol(
                name,
                String::new(),
                SymbolKind::NAMESPACE,
                key.span,
                key.span,
            );
            section.range = Range::new(section.range.start, last.range.end.max(section.range.end));
            section.children = Some(children);
            symbols.push(section);
        }
        // In the order of the file.
        symbols.sort_by_key(|symbol| symbol.range.start);
        Some(symbols)
    }

    /// What would be renamed at a position.
    ///
    /// # Errors
    /// Why nothing there can be.
    pub fn prepare_rename(
        &self,
        uri: &Uri,
        position: Position,
    ) -> Result<Option<PrepareRenameResponse>, String> {
        let Some((path, offset)) = self.workflow_at(uri, position) else {
            return Ok(None);
        };
        let Some(index) = self.index(&path) else {
            return Ok(None);
        };
        let Some(one) = index
            .at(offset)
            .filter(|one| self.is_real(&path, &index, one))
        else {
            return Ok(None);
        };
        let (_, there, item) = self.meaning(&path, &index, &one.item);
        let name = renamed(&there, &item)?;
        sound(&index)?;
        Ok(Some(PrepareRenameResponse::RangeWithPlaceholder {
            range: self.range(&index, &path, one.span),
            placeholder: name.to_owned(),
        }))
    }

    /// The edits that give what stands at a position a new name, in its file and in those that use it.
    ///
    /// # Errors
    /// When the name cannot be, is taken, or a file of which it is part is no YAML at the moment.
    pub fn rename(
        &self,
        uri: &Uri,
        position: Position,
        new: &str,
    ) -> Result<WorkspaceEdit, String> {
        let nothing = || "there is nothing here to rename".to_owned();
        let (path, offset) = self.workflow_at(uri, position).ok_or_else(nothing)?;
        let index = self.index(&path).ok_or_else(nothing)?;
        let one = index
            .at(offset)
            .filter(|one| self.is_real(&path, &index, one))
            .ok_or_else(nothing)?;
        let (file, there, item) = self.meaning(&path, &index, &one.item);
        let old = renamed(&there, &item)?;
        if old != new {
            allowed(&there, &item, new)?;
        }
        #[expect(clippy::mutable_key_type, reason = "the type of the protocol")]
        let mut changes = std::collections::HashMap::new();
        for place in self.places(&file, &there, &item) {
            sound(&place.index)?;
            let uri = self
                .uri(&place.path)
                .ok_or_else(|| format!("{} has no URI", place.path.display()))?;
            let edits: &mut Vec<TextEdit> = changes.entry(uri).or_default();
            edits.push(TextEdit::new(
                self.range(&place.index, &place.path, place.span),
                new.to_owned(),
            ));
        }
        Ok(WorkspaceEdit::new(changes))
    }
}

/// The name of what can be renamed.
fn renamed<'a>(index: &Index, item: &'a Item) -> Result<&'a str, String> {
    let (name, there, what) = match item {
        Item::Param(name) => (name, index.param(name).is_some(), "param"),
        Item::Input(name) => (name, index.input(name).is_some(), "input"),
        Item::Node(name) => (name, index.node(name).is_some(), "node"),
        Item::Output(name) => (name, index.output(name).is_some(), "output"),
        Item::Op(name) | Item::Field { field: name, .. } | Item::Port { port: name, .. } => {
            return Err(format!(
                "`{name}` is a name of the program and cannot be changed"
            ));
        }
        Item::With { key, .. } => {
            return Err(format!("the used workflow has no input or param `{key}`"));
        }
        Item::Use(path) => return Err(format!("`{path}` is a file: rename it on the disk")),
        Item::Key(key) => {
            return Err(format!(
                "`{key}` is a key of the language and cannot be changed"
            ));
        }
    };
    if there {
        Ok(name)
    } else {
        Err(format!("there is no {what} `{name}` in this file"))
    }
}

fn sound(index: &Index) -> Result<(), String> {
    if index.sound {
        Ok(())
    } else {
        Err(format!(
            "{} is not valid YAML at the moment: fix that first, so that no occurrence of the name is missed",
            index.source.name()
        ))
    }
}

/// Whether an item may be called so.
fn allowed(index: &Index, item: &Item, new: &str) -> Result<(), String> {
    if !is_name(new) {
        return Err(format!(
            "`{}` cannot be a name: names are made of letters (a-z, A-Z), digits, `_` and `-`",
            new.escape_debug()
        ));
    }
    if is_carried(new) {
        return Err(format!(
            "`{new}` cannot be a name: `ui`, and what begins with `x-`, is carried and ignored"
        ));
    }
    let taken = |what: &str| {
        Err(format!(
            "there is {what} `{new}` already: choose another name"
        ))
    };
    match item {
        Item::Node(_) if matches!(new, "params" | "inputs" | "outputs") => Err(format!(
            "`{new}` is reserved and cannot name a node: choose another name"
        )),
        Item::Node(_) if index.node(new).is_some() => taken("a node"),
        Item::Output(_) if index.output(new).is_some() => taken("an output"),
        // `with:` and templates could mean either.
        Item::Param(_) | Item::Input(_) if index.param(new).is_some() => taken("a param"),
        Item::Param(_) | Item::Input(_) if index.input(new).is_some() => taken("an input"),
        Item::Param(_) | Item::Input(_) if matches!(new, "workflow" | "output") => Err(format!(
            "`{{{new}}}` means something else in `save`: choose another name"
        )),
        _ => Ok(()),
    }
}
