//! No circle of more than two files in any crate: whoever reads one file need not have read ten others first.
//!
//! A file uses another when something outside its tests names what the other defines. A name counts for the file of its
//! definition, whichever modules re-export it: a `mod.rs` that declares and re-exports its children uses nothing and is used
//! by nobody. Of methods those are followed that are called on `self` or by their type's name, and those of imported traits;
//! which type another value is of is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A `use` of one name, or of all.
struct Import {
    /// None: of all.
    name: Option<String>,
    path: Vec<String>,
    is_reexport: bool,
}

/// What a module has by its names.
#[derive(Default)]
struct Module {
    parent: Option<usize>,
    file: usize,
    modules: BTreeMap<String, usize>,
    /// The methods, if it is a trait.
    items: BTreeMap<String, Vec<String>>,
    /// The methods that are implemented in it, each behind its type.
    methods: Vec<Vec<String>>,
    imports: Vec<Import>,
    /// What its items name.
    paths: BTreeSet<Vec<String>>,
    calls: BTreeSet<String>,
}

/// An item: its module and name, none of a module itself and of what another crate has; and what of it is named, such as a method.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    module: usize,
    name: String,
    member: Option<String>,
}

#[derive(Default)]
struct Crate {
    files: Vec<PathBuf>,
    modules: Vec<Module>,
}

impl Crate {
    /// Reads a crate from its `lib.rs` or `main.rs`.
    fn read(root: &Path) -> Self {
        let mut all = Self::default();
        all.file(root, None, root.parent().unwrap());
        all
    }

    /// Reads a file with the modules that it declares, which lie below `folder`.
    fn file(&mut self, path: &Path, parent: Option<usize>, folder: &Path) -> usize {
        let text = std::fs::read_to_string(path).unwrap();
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.files.push(path.to_owned());
        let module = Module {
            parent,
            file: self.files.len() - 1,
            ..Module::default()
        };
        self.modules.push(module);
        let at = self.modules.len() - 1;
        self.items(at, &parsed.items, folder);
        at
    }

    fn items(&mut self, at: usize, items: &[syn::Item], folder: &Path) {
        for item in items {
            if let syn::Item::Mod(child) = item {
                if !is_of_tests(&child.attrs) {
                    let module = self.child(at, child, folder);
                    let name = child.ident.to_string();
                    self.modules[at].modules.insert(name, module);
                }
                continue;
            }
            let mut names = Names {
                module: &mut self.modules[at],
                of: Vec::new(),
            };
            names.define(item);
            names.visit_item(item);
        }
    }

    fn child(&mut self, at: usize, child: &syn::ItemMod, folder: &Path) -> usize {
        let name = child.ident.to_string();
        let inside = folder.join(&name);
        if let Some((_, items)) = &child.content {
            let module = Module {
                parent: Some(at),
                file: self.modules[at].file,
                ..Module::default()
            };
            self.modules.push(module);
            let module = self.modules.len() - 1;
            self.items(module, items, &inside);
            return module;
        }
        let beside = folder.join(format!("{name}.rs"));
        let path = match beside.is_file() {
            true => beside,
            false => inside.join("mod.rs"),
        };
        self.file(&path, Some(at), &inside)
    }

    fn root(&self, mut at: usize) -> usize {
        while let Some(parent) = self.modules[at].parent {
            at = parent;
        }
        at
    }

    /// The items that a path may mean in a module.
    fn resolve(&self, at: usize, path: &[String]) -> BTreeSet<Item> {
        let mut found = BTreeSet::new();
        self.follow(at, path, &mut Vec::new(), &mut found);
        found
    }

    /// `under_way`: the imports that are being followed, by their module, none of which leads to itself.
    fn follow(
        &self,
        at: usize,
        path: &[String],
        under_way: &mut Vec<(usize, usize)>,
        found: &mut BTreeSet<Item>,
    ) {
        let Some((first, rest)) = path.split_first() else {
            found.insert(Item {
                module: at,
                name: String::new(),
                member: None,
            });
            return;
        };
        let module = &self.modules[at];
        match first.as_str() {
            "crate" => return self.follow(self.root(at), rest, under_way, found),
            "self" => return self.follow(at, rest, under_way, found),
            "super" => return self.follow(module.parent.unwrap_or(at), rest, under_way, found),
            _ => {}
        }
        if module.items.contains_key(first) {
            found.insert(Item {
                module: at,
                name: first.clone(),
                member: rest.first().cloned(),
            });
        }
        if let Some(child) = module.modules.get(first) {
            self.follow(*child, rest, under_way, found);
        }
        for (number, import) in module.imports.iter().enumerate() {
            let more = match &import.name {
                Some(name) if name == first => rest,
                Some(_) => continue,
                None => path,
            };
            let begins = &import.path[0];
            let is_own = ["crate", "self", "super"].contains(&begins.as_str())
                || module.modules.contains_key(begins)
                || module
                    .imports
                    .iter()
                    .any(|one| one.name.as_ref() == Some(begins));
            if !is_own {
                // What another crate has is not looked at.
                found.insert(Item {
                    module: at,
                    name: String::new(),
                    member: None,
                });
                continue;
            }
            if under_way.contains(&(at, number)) {
                continue;
            }
            under_way.push((at, number));
            self.follow(at, &[&import.path[..], more].concat(), under_way, found);
            under_way.pop();
        }
    }

    /// The traits among the names that a module imports.
    fn traits(&self, at: usize) -> BTreeSet<Item> {
        let mut found = BTreeSet::new();
        for import in &self.modules[at].imports {
            if import.is_reexport {
                continue;
            }
            if import.name.is_some() {
                found.extend(self.resolve(at, &import.path));
                continue;
            }
            for module in &self.modules {
                for (name, methods) in &module.items {
                    if methods
                        .iter()
                        .any(|one| self.modules[at].calls.contains(one))
                    {
                        let path = [&import.path[..], std::slice::from_ref(name)].concat();
                        found.extend(self.resolve(at, &path));
                    }
                }
            }
        }
        found.retain(|item| {
            let methods = self.modules[item.module].items.get(&item.name);
            methods.is_some_and(|methods| !methods.is_empty())
        });
        found
    }

    /// Imports of this crate's own names that lead nowhere: what the reading above does not understand.
    fn lost(&self) -> Vec<String> {
        let mut lost = Vec::new();
        for (at, module) in self.modules.iter().enumerate() {
            for import in &module.imports {
                let is_own = ["crate", "self", "super"].contains(&import.path[0].as_str());
                if is_own && self.resolve(at, &import.path).is_empty() {
                    let file = self.files[module.file].display();
                    lost.push(format!("{file}: use {}", import.path.join("::")));
                }
            }
        }
        lost
    }

    /// Which file uses which, with one of the names.
    fn uses(&self) -> BTreeMap<(usize, usize), String> {
        let mut implemented: BTreeMap<Item, usize> = BTreeMap::new();
        for (at, module) in self.modules.iter().enumerate() {
            for path in &module.methods {
                let methods = self.resolve(at, path).into_iter();
                implemented.extend(methods.map(|method| (method, module.file)));
            }
        }
        let mut uses = BTreeMap::new();
        for (at, module) in self.modules.iter().enumerate() {
            let mut items = self.traits(at);
            for path in &module.paths {
                items.extend(self.resolve(at, path));
            }
            items.retain(|item| !item.name.is_empty());
            for item in items {
                let files = [
                    Some(self.modules[item.module].file),
                    implemented.get(&item).copied(),
                ];
                let member = item.member.iter().map(|member| format!("::{member}"));
                let name = item.name + &member.collect::<String>();
                for to in files.into_iter().flatten().filter(|to| *to != module.file) {
                    uses.entry((module.file, to))
                        .or_insert_with(|| name.clone());
                }
            }
        }
        uses
    }
}

fn is_of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let text = list.tokens.to_string();
        let words = || text.split(|c: char| !c.is_alphanumeric() && c != '_');
        list.path.is_ident("cfg")
            && words().any(|word| word == "test")
            && words().all(|word| word != "not")
    })
}

/// Collects what a module defines and names.
struct Names<'a> {
    module: &'a mut Module,
    /// The type whose methods these are.
    of: Vec<String>,
}

impl Names<'_> {
    fn define(&mut self, item: &syn::Item) {
        let (name, attributes, methods) = match item {
            syn::Item::Const(item) => (&item.ident, &item.attrs, Vec::new()),
            syn::Item::Enum(item) => (&item.ident, &item.attrs, Vec::new()),
            syn::Item::Fn(item) => (&item.sig.ident, &item.attrs, Vec::new()),
            syn::Item::Static(item) => (&item.ident, &item.attrs, Vec::new()),
            syn::Item::Struct(item) => (&item.ident, &item.attrs, Vec::new()),
            syn::Item::Type(item) => (&item.ident, &item.attrs, Vec::new()),
            syn::Item::Union(item) => (&item.ident, &item.attrs, Vec::new()),
            syn::Item::Trait(item) => {
                let methods = item.items.iter().filter_map(|item| match item {
                    syn::TraitItem::Fn(method) => Some(method.sig.ident.to_string()),
                    _ => None,
                });
                (&item.ident, &item.attrs, methods.collect())
            }
            syn::Item::Macro(item) => {
                // Where a macro makes a type, its name is the first word.
                let first = item
                    .mac
                    .tokens
                    .clone()
                    .into_iter()
                    .find_map(|token| match token {
                        TokenTree::Ident(word) => Some(word),
                        _ => None,
                    });
                for name in item.ident.iter().chain(&first) {
                    self.module.items.insert(name.to_string(), Vec::new());
                }
                self.made(item.mac.tokens.clone());
                return;
            }
            _ => return,
        };
        if !is_of_tests(attributes) {
            self.module.items.insert(name.to_string(), methods);
        }
    }

    /// The items that a macro is given.
    fn made(&mut self, tokens: TokenStream) {
        let words = ["struct", "enum", "fn", "const", "static", "type", "trait"];
        let mut is_next = false;
        for token in tokens {
            match token {
                TokenTree::Ident(word) if is_next => {
                    self.module.items.insert(word.to_string(), Vec::new());
                    is_next = false;
                }
                TokenTree::Ident(word) => is_next = words.contains(&word.to_string().as_str()),
                TokenTree::Group(group) => self.made(group.stream()),
                _ => is_next = false,
            }
        }
    }

    fn import(&mut self, tree: &syn::UseTree, before: &[String], is_reexport: bool) {
        let mut path = before.to_vec();
        let name = match tree {
            syn::UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                return self.import(&tree.tree, &path, is_reexport);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, before, is_reexport);
                }
                return;
            }
            syn::UseTree::Glob(_) => None,
            syn::UseTree::Name(tree) => {
                if tree.ident != "self" {
                    path.push(tree.ident.to_string());
                }
                path.last().cloned()
            }
            syn::UseTree::Rename(tree) => {
                if tree.ident != "self" {
                    path.push(tree.ident.to_string());
                }
                Some(tree.rename.to_string())
            }
        };
        self.module.imports.push(Import {
            name,
            path,
            is_reexport,
        });
    }

    /// The paths among the tokens of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut marks, mut last) = (String::new(), String::new());
        for token in tokens {
            match token {
                TokenTree::Ident(word) => {
                    if marks != "::" {
                        self.path(std::mem::take(&mut path));
                    }
                    let is_member = marks.ends_with('.') && !marks.ends_with("..");
                    if is_member {
                        self.module.calls.insert(word.to_string());
                    }
                    if is_member && last != "self" {
                        path.clear();
                    } else if is_member {
                        path = [&self.of[..], &[word.to_string()]].concat();
                    } else {
                        path.push(word.to_string());
                    }
                    last = word.to_string();
                    marks.clear();
                }
                TokenTree::Punct(mark) => marks.push(mark.as_char()),
                TokenTree::Group(group) => {
                    self.path(std::mem::take(&mut path));
                    self.tokens(group.stream());
                    marks.clear();
                }
                TokenTree::Literal(_) => marks.clear(),
            }
        }
        self.path(path);
    }

    fn path(&mut self, mut path: Vec<String>) {
        if path.first().is_some_and(|first| first == "Self") {
            path.splice(..1, self.of.clone());
        }
        if !path.is_empty() {
            self.module.paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Enum(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Macro(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            syn::Item::Type(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return,
        };
        if !is_of_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_reexport = !matches!(item.vis, syn::Visibility::Inherited);
        self.import(&item.tree, &[], is_reexport);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|one| one.ident.to_string());
        self.path(segments.collect());
        visit::visit_path(self, path);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let syn::Type::Path(of) = &*item.self_ty {
            let segments = of.path.segments.iter().map(|one| one.ident.to_string());
            self.of = segments.collect();
            for item in item.items.iter().filter(|_| item.trait_.is_none()) {
                if let syn::ImplItem::Fn(method) = item {
                    let method = [&self.of[..], &[method.sig.ident.to_string()]].concat();
                    self.module.methods.push(method);
                }
            }
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let method = call.method.to_string();
        if matches!(&*call.receiver, syn::Expr::Path(of) if of.path.is_ident("self")) {
            self.path([&self.of[..], std::slice::from_ref(&method)].concat());
        }
        self.module.calls.insert(method);
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }

    /// The functions that serde and schemars are told as texts.
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let syn::Meta::List(list) = &attribute.meta else {
            return;
        };
        for token in list.tokens.clone() {
            if let TokenTree::Literal(text) = token
                && let Ok(text) = syn::parse_str::<syn::LitStr>(&text.to_string())
                && let Ok(path) = text.parse::<syn::Path>()
            {
                self.visit_path(&path);
            }
        }
    }
}

/// Circles of more than two files, each with who uses whom; and the number of files.
fn circles(root: &Path) -> (Vec<String>, usize) {
    let all = Crate::read(root);
    let lost = all.lost();
    assert!(lost.is_empty(), "{}", lost.join("\n"));
    let uses = all.uses();
    let number = |file: usize| u32::try_from(file).unwrap();
    let edges = uses.keys().map(|(from, to)| (number(*from), number(*to)));
    let graph = DiGraph::<(), ()>::from_edges(edges);
    let folder = root.parent().unwrap();
    let name = |file: usize| all.files[file].strip_prefix(folder).unwrap().display();
    let mut found = Vec::new();
    for circle in tarjan_scc(&graph) {
        if circle.len() <= 2 {
            continue;
        }
        let circle: BTreeSet<usize> = circle.into_iter().map(|one| one.index()).collect();
        let mut lines: Vec<String> = (uses.iter())
            .filter(|((from, to), _)| circle.contains(from) && circle.contains(to))
            .map(|((from, to), item)| format!("  {} uses {} ({item})", name(*from), name(*to)))
            .collect();
        lines.sort();
        found.push(format!("{} files:\n{}", circle.len(), lines.join("\n")));
    }
    (found, all.files.len())
}

#[test]
fn no_circle_has_more_than_two_files() {
    let metadata = crate::workspace::metadata();
    let (mut wrong, mut read) = (Vec::new(), 0);
    for package in metadata.workspace_packages() {
        let targets = package.targets.iter();
        for target in targets.filter(|target| target.is_lib() || target.is_bin()) {
            let (circles, files) = circles(target.src_path.as_std_path());
            let named = circles.iter();
            wrong.extend(named.map(|circle| format!("{}: {circle}", package.name)));
            read += files;
        }
    }
    assert!(read > 300, "{read}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn circles_are_seen_behind_reexports_methods_and_traits_and_tests_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let write = |files: &[(&str, &str)]| {
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        circles(&folder.path().join("lib.rs")).0
    };
    let sound = [
        ("lib.rs", "mod room; mod user; pub use room::*;"),
        (
            "room/mod.rs",
            "mod base; mod more; pub use base::Base; pub use more::Able;",
        ),
        (
            "room/base.rs",
            "pub struct Base; #[cfg(test)] mod tests { use crate::user::use_it; }",
        ),
        (
            "room/more.rs",
            "use super::Base; pub trait Able { fn able(&self) {} } impl Able for Base {} \
            impl Base { pub fn more(&self) {} }",
        ),
        (
            "user.rs",
            "use crate::room::{Able, Base}; pub fn use_it(base: &Base) { base.able() }",
        ),
    ];
    assert!(write(&sound).is_empty());
    for base in [
        // By its path behind two re-exports, in a macro, as a method, by a trait's name.
        "pub struct Base; fn base() { crate::room::Base.hash(); crate::user::use_it(&Base) }",
        "pub struct Base; fn base() { vec![crate::user::use_it(&Base)]; }",
        "use crate::user; pub struct Base; impl Base { fn base(&self) { user::use_it(self) } }",
    ] {
        let found = write(&[("room/base.rs", base)]);
        assert_eq!(found.len(), 1, "{base}: {found:?}");
        assert!(found[0].starts_with("3 files:"), "{found:?}");
    }
    let user = "use crate::Base; pub fn use_it(base: &Base) {}";
    let method = "pub struct Base; impl Base { fn base(&self) { self.more() } }";
    let more = "use super::Base; impl Base { pub fn more(&self) { crate::user::use_it(self) } } pub trait Able {}";
    let found = write(&[
        ("user.rs", user),
        ("room/base.rs", method),
        ("room/more.rs", more),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
}
