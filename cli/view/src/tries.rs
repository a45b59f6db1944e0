//! The area of params: those of the workflow and of what is selected, and the actions of its panel.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use eframe::egui::Ui;
use retouch_graph::Registry;
use retouch_graph::workflow::Workflow;
use retouch_nodes::look::Reader;

use crate::edit::{self, Change};
use crate::feed::Desk;
use crate::model::{Graph, Model};
use crate::params::{self, Action, Kind, Panel, Proposal, Section, Told};

/// The panel and what it shows.
#[derive(Debug)]
pub struct Tries {
    panel: Panel,
    /// What the sections were made for: the plan, and what was selected.
    made: Option<(u64, Option<String>)>,
    sections: Vec<Section>,
}

/// The workflow that is written in a file.
fn written<'a>(graph: &'a Graph, file: &Path) -> Option<&'a (PathBuf, Arc<Workflow>)> {
    graph.workflows.iter().find(|(other, _)| other == file)
}

/// The file that the nodes of a group, or of none, are written in.
fn file_of(graph: &Graph, group: Option<usize>) -> Option<PathBuf> {
    let Some(group) = group else {
        return Some(graph.file.clone());
    };
    let mut nodes = graph.groups.get(group)?.nodes.iter();
    nodes.find_map(|node| {
        let node = graph.nodes.get(*node)?;
        let (source, _) = node.place.as_ref().filter(|_| node.group == Some(group))?;
        Some(PathBuf::from(source.name()))
    })
}

/// What is selected: its name within its file, the group around it, and the group that it is.
fn selection(graph: &Graph, name: &str) -> Option<(String, Option<usize>, Option<usize>)> {
    if let Some(node) = graph.node(name) {
        let node = graph.nodes.get(node)?;
        return Some((node.label.clone(), node.group, None));
    }
    let at = graph.group(name)?;
    let group = graph.groups.get(at)?;
    Some((group.label.clone(), group.parent, Some(at)))
}

/// The params of the workflow, and those of what is selected.
#[must_use]
pub fn sections(graph: &Graph, selected: Option<&str>, registry: &Registry) -> Vec<Section> {
    let mut sections = Vec::new();
    if let Some((file, workflow)) = written(graph, &graph.file) {
        sections.push(Section {
            title: graph.workflow.clone(),
            entries: params::of_workflow(file, workflow),
        });
    }
    if let Some(name) = selected
        && let Some((label, around, own)) = selection(graph, name)
        && let Some(file) = file_of(graph, around)
        && let Some((file, workflow)) = written(graph, &file)
    {
        let inner = own.and_then(|group| written(graph, &file_of(graph, Some(group))?));
        let inner = inner.map(|(_, workflow)| &**workflow);
        let entries = params::of_node(file, workflow, &label, registry, inner);
        let title = match around {
            // A node of a reusable graph is written in another file, and others may use it too.
            Some(_) => format!("{name} ({})", file.display()),
            None => name.to_owned(),
        };
        sections.push(Section { title, entries });
    }
    let known = graph.plan.as_ref().and_then(|plan| Reader::sites(plan));
    for entry in sections.iter_mut().flat_map(|section| &mut section.entries) {
        if let Kind::Sites { count } = &mut entry.kind {
            *count = known;
        }
    }
    sections
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            panel: Panel::new(retouch_common::fresh_draw()),
            made: None,
            sections: Vec::new(),
        }
    }
}

impl Tries {
    /// Draws the panel; whether what is tried changed.
    pub fn show(
        &mut self,
        ui: &mut Ui,
        model: &Model,
        desk: &Desk,
        registry: &Registry,
        selected: Option<&str>,
    ) -> bool {
        let made = (model.plans, selected.map(str::to_owned));
        if self.made.as_ref() != Some(&made) {
            self.sections = sections(&model.graph, selected, registry);
            self.made = Some(made);
        }
        let trying = desk.trying().clone();
        let mut told: Vec<Told> = model.refused.to_vec();
        if let Some(fault) = model.faults.first() {
            // The loop says no more than that the whole is not sound: it is reported at what is tried.
            told.extend(trying.files().flat_map(|(file, changes)| {
                changes.iter().map(|change| Told {
                    file: file.to_owned(),
                    place: change.place.clone(),
                    message: fault.message().to_owned(),
                })
            }));
        }
        let actions = self.panel.show(ui, &self.sections, &trying, &told);
        let mut changed = false;
        for action in actions {
            changed |= self.grant(ui, desk, action);
        }
        changed
    }

    /// Performs an action; whether what is tried changed.
    fn grant(&mut self, ui: &Ui, desk: &Desk, action: Action) -> bool {
        let all = |desk: &Desk| -> Vec<(PathBuf, Vec<Change>)> {
            let trying = desk.trying();
            let files = trying.files();
            files
                .map(|(file, changes)| (file.to_owned(), changes.to_vec()))
                .collect()
        };
        match action {
            Action::Try { file, place, value } => {
                desk.trying().set(&file, place, value);
                true
            }
            Action::Reset { file, place } => {
                desk.trying().reset(&file, &place);
                true
            }
            Action::ResetAll => {
                desk.trying().reset_all();
                true
            }
            Action::CopyAsYaml => {
                let changes: Vec<Change> = all(desk)
                    .into_iter()
                    .flat_map(|(_, changes)| changes)
                    .collect();
                ui.ctx().copy_text(edit::snippet(&changes));
                self.panel.tell("copied as YAML");
                false
            }
            Action::AskToWrite => {
                let proposals: Result<Vec<Proposal>, _> = (all(desk).iter())
                    .map(|(file, changes)| Proposal::of(file, changes))
                    .collect();
                match proposals {
                    Ok(proposals) => self.panel.ask(proposals),
                    Err(refused) => self.panel.tell(told(&refused)),
                }
                false
            }
            Action::Write(proposals) => {
                let mut files = Vec::new();
                for proposal in &proposals {
                    if let Err(refused) = proposal.write() {
                        self.panel.tell(told(&refused));
                        return false;
                    }
                    files.push(proposal.file.display().to_string());
                }
                // The loop sees the change, and no longer tries what the files say.
                self.panel.tell(format!("written to {}", files.join(", ")));
                false
            }
        }
    }
}

fn told(refused: &edit::Refused) -> String {
    match &refused.help {
        Some(help) => format!("{refused}; {help}"),
        None => refused.to_string(),
    }
}
