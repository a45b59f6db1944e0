//! Nodes and outputs.

use crate::base::problem::{Code, Problem};
use crate::base::suggest;
use crate::syntax::params::is_carried;
use crate::syntax::workflow::decl::{NodeBody, OutputDecl, Spanned};
use crate::syntax::workflow::reader::WorkflowReader;
use crate::syntax::yaml::{MapKey, Node, Tree};

impl WorkflowReader<'_> {
    pub(super) fn node(&mut self, name: &MapKey, tree: Tree, tainted: bool) -> NodeBody {
        let Some(entries) = self.map(
            tree,
            &format!("the node `{}`", name.text),
            &format!("write `{}: {{op: load_model, path: ...}}`", name.text),
        ) else {
            return NodeBody::Broken;
        };
        let mut op = None;
        let mut path = None;
        let mut with = None;
        let mut fields = Vec::new();
        let mut broken = false;
        for (key, tree) in entries {
            match key.text.as_str() {
                "op" | "use" => match self.text(&key, &tree) {
                    Some(value) => {
                        let value = Spanned {
                            value,
                            span: tree.span,
                        };
                        if key.text == "op" {
                            op = Some((key, value));
                        } else {
                            path = Some((key, value));
                        }
                    }
                    None => broken = true,
                },
                other if is_carried(other) => {}
                "with" => with = Some((key, tree)),
                _ => fields.push((key, tree)),
            }
        }
        match (op, path) {
            _ if broken => NodeBody::Broken,
            (None, None) if tainted => NodeBody::Broken,
            (None, None) => {
                self.neither_op_nor_use(name, &fields);
                NodeBody::Broken
            }
            (Some((op, _)), Some((path, _))) => {
                let problem = Problem::new(
                    Code::UnknownKey,
                    self.source,
                    path.span,
                    format!("the node `{}` has both `op` and `use`", name.text),
                )
                .also(self.source, op.span, "the op")
                .help("a node is either; make two of it");
                self.problems.push(problem);
                NodeBody::Broken
            }
            (Some((_, op)), None) => {
                if let Some((key, tree)) = with {
                    // An op may have a parameter `with`, so it is told by its registry entry.
                    fields.push((key, tree));
                }
                NodeBody::Op { op, fields }
            }
            (None, Some((_, path))) => {
                for (key, _) in &fields {
                    let message = format!(
                        "`{}`: a node that uses a workflow has no key `{}`",
                        name.text, key.text
                    );
                    self.fault(
                        Code::UnknownKey,
                        key.span,
                        message,
                        format!(
                            "what the workflow is given stands under `with:`: `with: {{{}: ...}}`",
                            key.text
                        ),
                    );
                }
                let with = match with {
                    None => Vec::new(),
                    Some((_, tree)) => self.section(tree, "with", "image: $photo"),
                };
                NodeBody::Use { path, with }
            }
        }
    }

    fn neither_op_nor_use(&mut self, name: &MapKey, fields: &[(MapKey, Tree)]) {
        let help = fields
            .iter()
            .find(|(key, _)| {
                suggest::nearest(&key.text, ["op", "use"]).is_some() && key.text.len() <= 4
            })
            .map_or_else(
                || "add `op: ...` (see `retouch nodes`), or `use: other.yaml`".to_owned(),
                |(key, _)| format!("did you mean `op` by `{}`?", key.text),
            );
        self.fault(
            Code::MissingKey,
            name.span,
            format!("the node `{}` has neither `op` nor `use`", name.text),
            help,
        );
    }

    pub(super) fn output(&mut self, name: &MapKey, tree: Tree) -> OutputDecl {
        const KEYS: &[&str] = &["value", "save"];
        let mut decl = OutputDecl {
            name_span: name.span,
            value: None,
            save: None,
        };
        let Some(entries) = self.map(
            tree,
            &format!("the output `{}`", name.text),
            &format!("write `{}: {{value: $picture}}`", name.text),
        ) else {
            return decl;
        };
        let mut given = false;
        for (key, tree) in entries {
            match key.text.as_str() {
                "value" => {
                    given = true;
                    decl.value = match &tree.node {
                        Node::String { text, .. } => Some(Spanned {
                            value: text.clone(),
                            span: tree.span,
                        }),
                        _ => {
                            self.fault(
                                Code::LinkDue,
                                tree.span,
                                format!(
                                    "`value` is a reference to a node, not {}",
                                    tree.describe()
                                ),
                                "write `value: $picture`",
                            );
                            None
                        }
                    };
                }
                "save" => {
                    decl.save = self.text(&key, &tree).map(|value| Spanned {
                        value,
                        span: tree.span,
                    });
                }
                "help" | "description" => {
                    let _ = self.text(&key, &tree);
                }
                other if is_carried(other) => {}
                _ => {
                    let place = format!("the output `{}`", name.text);
                    self.unknown_key(&key, &place, KEYS);
                }
            }
        }
        if !given {
            self.fault(
                Code::MissingKey,
                name.span,
                format!("the output `{}` has no `value`", name.text),
                "add `value: $node`",
            );
        }
        decl
    }
}
