//! The pictures of the workflow's outputs.

use eframe::egui::{RichText, ScrollArea, Ui};

use crate::view::model::Model;
use crate::view::panel::{Act, is_picture, thumbnail};
use crate::view::shelf::{Look, Shelf, Wanted};
use crate::view::theme::Palette;

/// The picture that is looked at, if one is.
#[derive(Debug, Default)]
pub struct Gallery {
    front: Option<(Wanted, String)>,
}

impl Gallery {
    /// Brings a picture to the front.
    pub fn look(&mut self, wanted: Wanted, title: String) {
        self.front = Some((wanted, title));
    }

    /// Draws the pictures.
    pub fn show(&mut self, ui: &mut Ui, model: &Model, shelf: Option<&Shelf>) -> Option<Act> {
        let colours = Palette::of(ui);
        let mut act = None;
        let side = (ui.available_height() - 40.0).clamp(60.0, 480.0);
        ScrollArea::both().auto_shrink(false).show(ui, |ui| {
            ui.horizontal(|ui| {
                for output in model.graph.outputs.iter().filter(|output| is_picture(output.kind)) {
                    let wanted = Wanted {
                        key: output.key,
                        port: output.port.to_owned(),
                        index: 0,
                    };
                    let look = shelf.map(|shelf| shelf.look(&wanted, model.values));
                    ui.vertical(|ui| {
                        ui.label(RichText::new(&output.name).color(colours.text));
                        match look {
                            Some(Look::Picture(picture)) => {
                                if thumbnail(ui, &picture, side, &output.name)
                                    && let Some(node) = model.graph.nodes.get(output.node)
                                {
                                    act = Some(Act::Select(node.name().to_owned()));
                                }
                            }
                            _ => {
                                ui.label(RichText::new("not made yet").small().color(colours.muted));
                            }
                        }
                    });
                }
            });
        });
        act
    }
}
