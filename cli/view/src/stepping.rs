//! The area of steps: the sampler that is looked at, and the thread that looks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eframe::egui::{ComboBox, RichText, Ui};
use retouch_graph::Engine;

use crate::looks::{EngineLooks, Looks};
use crate::model::{Graph, Model, Phase};
use crate::steps::Steps;
use crate::theme::Palette;

/// While a run goes on, what is kept is looked at again so often.
const REFRESH: Duration = Duration::from_millis(300);

/// The sampler that is looked at.
struct Looked {
    node: String,
    /// The plan that it is in.
    plan: u64,
    looks: Option<EngineLooks>,
    steps: Steps,
    /// Whether the area was drawn since the frame before.
    seen: bool,
    /// Whether the thread knows that a run goes on.
    busy: bool,
    /// What of the model was last looked at, and when.
    version: u64,
    refreshed: Instant,
}

/// The area.
#[derive(Default)]
pub struct Stepping {
    looked: Option<Looked>,
    /// The sampler that was chosen last.
    chosen: Option<String>,
    /// The step that is gone to as soon as there are steps.
    to: Option<usize>,
}

/// The nodes that have steps.
fn samplers(graph: &Graph) -> Vec<&str> {
    let nodes = graph.nodes.iter().filter(|node| node.steps.is_some());
    nodes.map(|node| node.name()).collect()
}

impl Stepping {
    /// Goes to a step as soon as there is one.
    pub fn go_to(&mut self, step: usize) {
        self.to = Some(step);
    }

    /// Whether nothing is being looked at.
    #[must_use]
    pub fn idle(&self) -> bool {
        let looks = self
            .looked
            .as_ref()
            .and_then(|looked| looked.looks.as_ref());
        looks.is_none_or(EngineLooks::idle)
    }

    /// Tells the thread that a run began or ended. Called in every frame, whether the area is seen or not: what it holds
    /// is let go for a run.
    pub fn keep_up(&mut self, model: &Model) {
        let Some(looked) = &mut self.looked else {
            return;
        };
        let seen = std::mem::take(&mut looked.seen);
        let Some(looks) = &mut looked.looks else {
            return;
        };
        if !seen {
            looks.frame(); // what is not shown is not requested
        }
        let busy = model.phase == Phase::Running;
        if busy != looked.busy {
            looked.busy = busy;
            if busy {
                looks.run_begins();
            } else {
                looks.run_ends();
            }
        } else if busy && model.version != looked.version && looked.refreshed.elapsed() >= REFRESH {
            looked.version = model.version;
            looked.refreshed = Instant::now();
            looks.refresh();
        }
    }

    /// Draws the area for the sampler that is selected, else the one that was chosen, else the last one.
    pub fn show(
        &mut self,
        ui: &mut Ui,
        model: &Model,
        engine: Option<&Engine>,
        selected: Option<&str>,
    ) {
        let graph = &model.graph;
        let names = samplers(graph);
        let known = |name: &str| names.contains(&name);
        if let Some(name) = selected.filter(|name| known(name)) {
            self.chosen = Some(name.to_owned());
        }
        let chosen = self.chosen.clone().filter(|name| known(name));
        let Some(name) = chosen.or_else(|| names.last().map(|name| (*name).to_owned())) else {
            let colours = Palette::of(ui);
            ui.label(RichText::new("No node of this workflow has steps.").color(colours.muted));
            return;
        };
        if names.len() > 1 {
            let mut now = name.clone();
            let choice = ComboBox::from_label("sampler").selected_text(&now);
            choice.show_ui(ui, |ui| {
                for name in &names {
                    ui.selectable_value(&mut now, (*name).to_owned(), *name);
                }
            });
            if now != name {
                self.chosen = Some(now);
            }
        }
        let stale = (self.looked.as_ref())
            .is_none_or(|looked| looked.node != name || looked.plan != model.plans);
        if stale {
            self.begin(ui, model, engine, &name);
        }
        let Some(looked) = &mut self.looked else {
            return;
        };
        if let Some(step) = self.to.take() {
            looked.steps.go_to(step);
            // Who asks for a step wants to see what it looked at.
            looked.steps.set_layers(true, true, false);
        }
        looked.seen = true;
        match &mut looked.looks {
            Some(looks) => looked.steps.show(ui, looks),
            None => {
                let colours = Palette::of(ui);
                ui.label(
                    RichText::new("The steps of this node cannot be looked at.")
                        .color(colours.muted),
                );
            }
        }
    }

    fn begin(&mut self, ui: &Ui, model: &Model, engine: Option<&Engine>, name: &str) {
        // Where the person is stays for another plan of the same sampler.
        let before = self.looked.take().filter(|looked| looked.node == name);
        let steps = before.map(|looked| looked.steps).unwrap_or_default();
        let busy = model.phase == Phase::Running;
        let ctx = ui.ctx().clone();
        let looks = engine
            .zip(model.graph.plan.as_ref())
            .and_then(|(engine, plan)| {
                let wake = Box::new(move || ctx.request_repaint());
                EngineLooks::new(engine.clone(), Arc::clone(plan), name, busy, wake)
            });
        self.looked = Some(Looked {
            node: name.to_owned(),
            plan: model.plans,
            looks,
            steps,
            seen: true,
            busy,
            version: model.version,
            refreshed: Instant::now(),
        });
    }
}
