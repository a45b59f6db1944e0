//! Colours, sizes and symbols.

use eframe::egui::{
    self, Color32, Context, CornerRadius, FontFamily, FontId, Margin, Painter, Pos2, Rect, Shape,
    Stroke, StrokeKind, TextStyle, Theme, Vec2, pos2, vec2,
};

use crate::model::Mark;

/// The colours of one theme.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Behind panels.
    pub panel: Color32,
    /// Behind the graph.
    pub canvas: Color32,
    /// The dots behind the graph.
    pub dots: Color32,
    /// A box, or a card.
    pub card: Color32,
    /// The line around a box.
    pub line: Color32,
    /// What is selected.
    pub accent: Color32,
    /// Texts that stand out.
    pub strong: Color32,
    /// Texts.
    pub text: Color32,
    /// Texts that stand back.
    pub muted: Color32,
    /// Inside the frame of an open group.
    pub group: Color32,
    dark: bool,
}

const fn rgb(hex: u32) -> Color32 {
    Color32::from_rgb((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

const DARK: Palette = Palette {
    panel: rgb(0x1a_1d_23),
    canvas: rgb(0x13_15_1a),
    dots: rgb(0x24_28_30),
    card: rgb(0x23_27_2f),
    line: rgb(0x37_3d_49),
    accent: rgb(0x7a_b0_ff),
    strong: rgb(0xee_f0_f5),
    text: rgb(0xc9_ce_d8),
    muted: rgb(0x8d_96_a7),
    group: rgb(0x18_1b_21),
    dark: true,
};

const LIGHT: Palette = Palette {
    panel: rgb(0xfa_fb_fc),
    canvas: rgb(0xee_f0_f4),
    dots: rgb(0xda_de_e6),
    card: rgb(0xff_ff_ff),
    line: rgb(0xcd_d3_de),
    accent: rgb(0x1f_6f_eb),
    strong: rgb(0x15_1a_23),
    text: rgb(0x33_3b_49),
    muted: rgb(0x5d_67_78),
    group: rgb(0xf5_f6_f9),
    dark: false,
};

/// The colours of the theme that is on.
#[must_use]
pub fn palette(dark: bool) -> Palette {
    if dark { DARK } else { LIGHT }
}

impl Palette {
    /// The colours that widgets are drawn in.
    #[must_use]
    pub fn of(ui: &egui::Ui) -> Self {
        palette(ui.visuals().dark_mode)
    }

    /// The colour of a state.
    #[must_use]
    pub fn mark(&self, mark: Mark) -> Color32 {
        let (dark, light) = match mark {
            Mark::Idle => (0x6b_74_85, 0x8a_93_a3),
            Mark::Memory => (0x45_c0_ae, 0x0b_85_73),
            Mark::Disk => (0x62_b0_f2, 0x1a_6f_b8),
            Mark::Queued => (0xa9_b2_c1, 0x5d_67_78),
            Mark::Resumes => (0xb9_a3_f5, 0x6b_4f_c4),
            Mark::Running => (0xf6_bd_55, 0x9a_62_00),
            Mark::Done => (0x63_d2_87, 0x1a_7f_3c),
            Mark::Failed => (0xff_78_7f, 0xc2_25_30),
            Mark::Stopped => (0xdb_9f_7d, 0x95_52_2a),
        };
        rgb(if self.dark { dark } else { light })
    }

    /// The colour of a port's type.
    #[must_use]
    pub fn kind(&self, kind: &str) -> Color32 {
        let (dark, light) = match kind {
            "model" => (0xa9_8b_e8, 0x76_4f_cf),
            "image" | "photos" => (0x5f_b0_f5, 0x1c_75_c4),
            "latent" => (0xf0_8a_b2, 0xc0_3c_77),
            "trajectory" => (0xf0_a3_5c, 0xb0_60_10),
            "mask" | "masks" | "photo_masks" => (0x9a_cd_67, 0x4d_86_12),
            "control" => (0xec_7f_72, 0xc0_41_31),
            "animation" => (0x56_cc_d8, 0x0b_80_8c),
            "table" | "text" => (0xc9_b9_8a, 0x80_6a_22),
            _ => (0x9a_a5_b5, 0x67_71_82),
        };
        rgb(if self.dark { dark } else { light })
    }
}

/// Sets the fonts, sizes and colours of both themes.
pub fn install(ctx: &Context) {
    for theme in [Theme::Dark, Theme::Light] {
        let colours = palette(theme == Theme::Dark);
        ctx.style_mut_of(theme, |style| {
            style.text_styles = [
                (
                    TextStyle::Heading,
                    FontId::new(18.0, FontFamily::Proportional),
                ),
                (TextStyle::Body, FontId::new(14.0, FontFamily::Proportional)),
                (
                    TextStyle::Button,
                    FontId::new(13.5, FontFamily::Proportional),
                ),
                (
                    TextStyle::Small,
                    FontId::new(11.5, FontFamily::Proportional),
                ),
                (
                    TextStyle::Monospace,
                    FontId::new(12.5, FontFamily::Monospace),
                ),
            ]
            .into();
            let spacing = &mut style.spacing;
            spacing.item_spacing = vec2(8.0, 6.0);
            spacing.button_padding = vec2(9.0, 4.0);
            spacing.interact_size = vec2(36.0, 24.0);
            spacing.menu_margin = Margin::same(8);
            let visuals = &mut style.visuals;
            visuals.panel_fill = colours.panel;
            visuals.window_fill = colours.panel;
            visuals.extreme_bg_color = colours.canvas;
            visuals.faint_bg_color = colours.group;
            visuals.code_bg_color = colours.canvas;
            visuals.hyperlink_color = colours.accent;
            visuals.warn_fg_color = colours.mark(Mark::Running);
            visuals.error_fg_color = colours.mark(Mark::Failed);
            visuals.window_stroke = Stroke::new(1.0, colours.line);
            visuals.window_corner_radius = CornerRadius::same(10);
            visuals.selection.bg_fill = colours.accent.gamma_multiply(0.35);
            visuals.selection.stroke = Stroke::new(1.0, colours.accent);
            let widgets = &mut visuals.widgets;
            widgets.noninteractive.bg_stroke = Stroke::new(1.0, colours.line.gamma_multiply(0.7));
            widgets.noninteractive.fg_stroke = Stroke::new(1.0, colours.text);
            for (widget, fill, text) in [
                (&mut widgets.inactive, colours.card, colours.text),
                (&mut widgets.hovered, colours.line, colours.strong),
                (&mut widgets.active, colours.line, colours.strong),
                (&mut widgets.open, colours.card, colours.strong),
            ] {
                widget.bg_fill = fill;
                widget.weak_bg_fill = fill;
                widget.fg_stroke = Stroke::new(1.0, text);
                widget.bg_stroke = Stroke::new(1.0, colours.line);
                // Small enough that a box to tick is a square.
                widget.corner_radius = CornerRadius::same(4);
                widget.expansion = 0.0;
            }
        });
    }
}

/// Draws the symbol of a state, so that it is not the colour alone that tells.
pub fn symbol(painter: &Painter, at: Pos2, radius: f32, mark: Mark, colour: Color32) {
    let stroke = Stroke::new((radius * 0.36).max(1.0), colour);
    let square = Rect::from_center_size(at, Vec2::splat(radius * 1.6));
    let corner = CornerRadius::same((radius * 0.35) as u8);
    match mark {
        Mark::Idle => {
            let half = vec2(radius * 0.8, 0.0);
            painter.line_segment([at - half, at + half], stroke);
        }
        Mark::Memory => {
            painter.circle_filled(at, radius * 0.85, colour);
        }
        Mark::Disk => {
            painter.rect_filled(square, corner, colour);
        }
        Mark::Queued => {
            painter.circle_stroke(at, radius * 0.8, stroke);
        }
        Mark::Resumes => {
            painter.circle_stroke(at, radius * 0.95, Stroke::new(stroke.width * 0.8, colour));
            painter.add(triangle(
                at + vec2(radius * 0.08, 0.0),
                radius * 0.5,
                colour,
            ));
        }
        Mark::Running => {
            painter.add(triangle(at + vec2(radius * 0.1, 0.0), radius, colour));
        }
        Mark::Done => {
            let points = vec![
                at + vec2(-radius * 0.85, radius * 0.05),
                at + vec2(-radius * 0.2, radius * 0.7),
                at + vec2(radius * 0.9, -radius * 0.65),
            ];
            painter.add(Shape::line(points, stroke));
        }
        Mark::Failed => {
            let half = radius * 0.72;
            painter.line_segment([at - Vec2::splat(half), at + Vec2::splat(half)], stroke);
            painter.line_segment([at + vec2(-half, half), at + vec2(half, -half)], stroke);
        }
        Mark::Stopped => {
            painter.rect_stroke(square, corner, stroke, StrokeKind::Middle);
        }
    }
}

fn triangle(at: Pos2, radius: f32, colour: Color32) -> Shape {
    let points = vec![
        at + vec2(-radius * 0.7, -radius * 0.9),
        at + vec2(radius * 0.9, 0.0),
        at + vec2(-radius * 0.7, radius * 0.9),
    ];
    Shape::convex_polygon(points, colour, Stroke::NONE)
}

/// Draws what opens and closes a group.
pub fn chevron(painter: &Painter, at: Pos2, radius: f32, open: bool, colour: Color32) {
    let turned = |x: f32, y: f32| if open { vec2(-y, x) } else { vec2(x, y) };
    let points = [(-0.35, -0.75), (0.45, 0.0), (-0.35, 0.75)];
    let points = points.map(|(x, y)| at + turned(x, y) * radius).to_vec();
    painter.add(Shape::line(
        points,
        Stroke::new((radius * 0.4).max(1.0), colour),
    ));
}

/// A symbol in a line of widgets.
pub fn symbol_in(ui: &mut egui::Ui, mark: Mark) {
    let (rect, _) = ui.allocate_exact_size(vec2(14.0, 16.0), egui::Sense::hover());
    let colour = Palette::of(ui).mark(mark);
    symbol(
        ui.painter(),
        pos2(rect.center().x, rect.center().y),
        5.0,
        mark,
        colour,
    );
}
