//! The view as a picture, without a window: the same frames, drawn offscreen by wgpu.

use std::time::{Duration, Instant};

use eframe::egui::{self, Context, FullOutput, Rect, TextureId, Vec2, ViewportId};
use eframe::egui_wgpu::{
    RenderState, RendererOptions, ScreenDescriptor, WgpuConfiguration, WgpuError, WgpuSetup,
    WgpuSetupCreateNew,
};
use retouch_common::Failure;
use retouch_graph::Code;

use crate::app::App;

/// Largest number of frames drawn while values are fetched or something moves.
const FRAMES: usize = 400;
/// Smallest number of frames: what is laid out in one frame is drawn in the next.
const FIRST: usize = 4;
/// So long is waited for what is fetched.
const PATIENCE: Duration = Duration::from_secs(30);
/// So long is waited for the adapter.
const DRAWING: Duration = Duration::from_secs(60);

/// What to do where there is no adapter.
pub const INSTALL: &str = "install a driver; one that needs no GPU is in the package mesa-vulkan-drivers (Debian, Ubuntu, Fedora) or vulkan-swrast (Arch)";

/// What wgpu draws with.
pub struct Canvas {
    state: RenderState,
}

/// There is nothing to draw with.
#[must_use]
pub fn no_adapter(error: &WgpuError) -> Failure {
    let why = match error {
        // What each of the ways to an adapter has to say fills lines, and helps little.
        WgpuError::RequestAdapterError(_) => "there is no graphics adapter".to_owned(),
        error => one_line(&error.to_string()),
    };
    Failure::failed(format!("the view cannot be drawn: {why}"))
        .code(Code::SystemRefused)
        .help(INSTALL)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Keeps Mesa's layer that chooses between GPUs, and GL on its way to a driver, from asking Wayland where there is neither a
/// screen nor its runtime folder: its client library prints an error each time.
pub fn ask_no_screen() {
    let set = |name: &str| std::env::var_os(name).is_some();
    if cfg!(target_os = "linux") && !set("XDG_RUNTIME_DIR") && !set("WAYLAND_DISPLAY") {
        // SAFETY: the command has begun no threads yet, so the environment is not read meanwhile.
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
            // No socket can be below it, so the library finds none, silently.
            std::env::set_var("XDG_RUNTIME_DIR", "/dev/null");
        }
    }
}

impl Canvas {
    /// Finds something to draw with: a GPU, or software that stands for one.
    ///
    /// # Errors
    /// When there is none.
    pub fn new() -> Result<Self, Failure> {
        // GL looks for screens on its way, and says so where there are none: it is asked only when nothing else is there.
        let first = Self::over(wgpu::Backends::PRIMARY);
        let made = first.or_else(|_| Self::over(wgpu::Backends::all()));
        let state = made.map_err(|error| no_adapter(&error))?;
        Ok(Self { state })
    }

    fn over(backends: wgpu::Backends) -> Result<RenderState, WgpuError> {
        let mut setup = WgpuSetupCreateNew::default();
        setup.instance_descriptor.backends = backends;
        let configuration = WgpuConfiguration {
            wgpu_setup: WgpuSetup::CreateNew(setup),
            ..WgpuConfiguration::default()
        };
        pollster::block_on(async {
            let instance = configuration.wgpu_setup.new_instance().await;
            let options = RendererOptions {
                dithering: false,
                ..RendererOptions::default()
            };
            RenderState::create(&configuration, &instance, None, options).await
        })
    }

    /// The adapter, for people.
    #[must_use]
    pub fn name(&self) -> String {
        self.state.adapter.get_info().name
    }

    /// Draws the view of `size` points; gives a PNG.
    ///
    /// # Errors
    /// When the picture is too large for the adapter, or it fails.
    pub fn draw(
        &self,
        app: &mut App,
        ctx: &Context,
        size: Vec2,
        scale: f32,
    ) -> Result<Vec<u8>, Failure> {
        ctx.all_styles_mut(|style| style.animation_time = 0.0);
        let begun = Instant::now();
        let mut output = FullOutput::default();
        for frame in 0..FRAMES {
            let mut input = egui::RawInput {
                screen_rect: Some(Rect::from_min_size(egui::Pos2::ZERO, size)),
                time: Some(frame as f64 * 0.1),
                focused: false,
                ..egui::RawInput::default()
            };
            if let Some(viewport) = input.viewports.get_mut(&ViewportId::ROOT) {
                viewport.native_pixels_per_point = Some(scale);
            }
            let idle = app.idle();
            output = ctx.run(input, |ctx| app.ui(ctx));
            let mut renderer = self.state.renderer.write();
            for (id, delta) in &output.textures_delta.set {
                renderer.update_texture(&self.state.device, &self.state.queue, *id, delta);
            }
            drop(renderer);
            let again = (output.viewport_output.get(&ViewportId::ROOT))
                .is_some_and(|viewport| viewport.repaint_delay.is_zero());
            if frame >= FIRST && idle && app.idle() && !again || begun.elapsed() > PATIENCE {
                break;
            }
            if !app.idle() {
                std::thread::sleep(PATIENCE / FRAMES as u32);
            }
        }
        let pixels = self.render(ctx, output, size, scale)?;
        let (width, height) = pixels_of(size, scale);
        png(width, height, &pixels)
    }

    /// Four bytes a pixel, row by row.
    // Long: one frame on the GPU: each step needs the objects of those before it.
    fn render(
        &self,
        ctx: &Context,
        output: FullOutput,
        size: Vec2,
        scale: f32,
    ) -> Result<Vec<u8>, Failure> {
        let failed = |what: String| Failure::failed(format!("the view cannot be drawn: {what}"));
        let (width, height) = pixels_of(size, scale);
        let (device, queue) = (&self.state.device, &self.state.queue);
        let most = device.limits().max_texture_dimension_2d;
        if width > most || height > most {
            return Err(failed(format!(
                "{} draws no more than {most} pixels a side",
                self.name()
            )));
        }
        let screen = ScreenDescriptor {
            size_in_pixels: [width, height],
            pixels_per_point: scale,
        };
        let shapes = ctx.tessellate(output.shapes, scale);
        let extent = wgpu::Extent3d {
            width,
            height,
            depth_or_array_layers: 1,
        };
        let texture = device.create_texture(&wgpu::TextureDescriptor {
            label: Some("view"),
            size: extent,
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: self.state.target_format,
            usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        });
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut renderer = self.state.renderer.write();
        let mut commands = renderer.update_buffers(device, queue, &mut encoder, &shapes, &screen);
        let attachment = wgpu::RenderPassColorAttachment {
            view: &view,
            resolve_target: None,
            ops: wgpu::Operations {
                load: wgpu::LoadOp::Clear(wgpu::Color::BLACK),
                store: wgpu::StoreOp::Store,
            },
            depth_slice: None,
        };
        let pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            label: Some("view"),
            color_attachments: &[Some(attachment)],
            ..wgpu::RenderPassDescriptor::default()
        });
        let mut pass = pass.forget_lifetime();
        renderer.render(&mut pass, &shapes, &screen);
        drop(pass);
        // Rows of a buffer begin at multiples of 256 bytes.
        let row = (4 * width).next_multiple_of(wgpu::COPY_BYTES_PER_ROW_ALIGNMENT);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("pixels"),
            size: u64::from(row) * u64::from(height),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let target = wgpu::TexelCopyBufferInfo {
            buffer: &buffer,
            layout: wgpu::TexelCopyBufferLayout {
                offset: 0,
                bytes_per_row: Some(row),
                rows_per_image: None,
            },
        };
        encoder.copy_texture_to_buffer(texture.as_image_copy(), target, extent);
        commands.push(encoder.finish());
        queue.submit(commands);
        for id in &output.textures_delta.free {
            if matches!(id, TextureId::Managed(_)) {
                renderer.free_texture(id);
            }
        }
        let slice = buffer.slice(..);
        let (sender, mapped) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |result| {
            let _ = sender.send(result);
        });
        let wait = wgpu::PollType::Wait {
            submission_index: None,
            timeout: Some(DRAWING),
        };
        device.poll(wait).map_err(|e| failed(e.to_string()))?;
        match mapped.recv_timeout(DRAWING) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("the adapter does not answer".to_owned())),
        }
        let swapped = matches!(
            self.state.target_format,
            wgpu::TextureFormat::Bgra8Unorm | wgpu::TextureFormat::Bgra8UnormSrgb
        );
        let bytes = slice.get_mapped_range();
        let mut pixels = Vec::with_capacity((4 * width * height) as usize);
        for row in bytes.chunks_exact(row as usize) {
            pixels.extend_from_slice(&row[..4 * width as usize]);
        }
        if swapped {
            for pixel in pixels.as_chunks_mut::<4>().0 {
                pixel.swap(0, 2);
            }
        }
        Ok(pixels)
    }
}

/// The size in pixels of a size in points.
fn pixels_of(size: Vec2, scale: f32) -> (u32, u32) {
    let side = |points: f32| (points * scale).round().clamp(1.0, 1e6) as u32;
    (side(size.x), side(size.y))
}

fn png(width: u32, height: u32, pixels: &[u8]) -> Result<Vec<u8>, Failure> {
    let failed =
        |e: png::EncodingError| Failure::failed(format!("the picture cannot be written: {e}"));
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().map_err(failed)?;
    let colours: Vec<u8> = pixels
        .as_chunks::<4>()
        .0
        .iter()
        .flat_map(|[r, g, b, _]| [*r, *g, *b])
        .collect();
    writer.write_image_data(&colours).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use eframe::egui::{Theme, vec2};
    use egui_kittest::{Harness, SnapshotOptions};

    use super::*;
    use crate::app::{Start, Tab};
    use crate::feed::Desk;
    use crate::memory::{Colours, Memory};
    use crate::model::{Mark, News, State};
    use crate::tests::graph;
    use crate::theme::palette;

    /// Something to draw with. Without it there is nothing to test; where all tests have to run (`CI` is set, as
    /// `.ci/run` does) that is a failure, elsewhere it is said.
    fn canvas() -> Option<Canvas> {
        match Canvas::new() {
            Ok(canvas) => Some(canvas),
            Err(failure) => {
                let ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
                assert!(!ci, "{}; {INSTALL}", failure.message());
                retouch_common::output::tell(&format!(
                    "not tested: {}; {INSTALL}",
                    failure.message()
                ));
                None
            }
        }
    }

    fn app(colours: Colours, tab: Tab, select: Option<&str>) -> App {
        let desk = Arc::new(Desk::default());
        let mut graph = graph();
        graph.forecast[1] = State::Running {
            progress: (30, 50),
            resumed: Some(10),
        };
        graph.forecast[2] = State::Failed {
            message: "no such site: 99".to_owned(),
            help: None,
        };
        desk.model().apply(News::Planned(Arc::new(graph)));
        App::new(Start {
            desk,
            request: Box::new(|_| {}),
            engine: None,
            memory: Memory {
                colours,
                ..Memory::default()
            },
            memory_file: None,
            select: select.map(str::to_owned),
            step: None,
            tab: Some(tab),
            ends: false,
        })
    }

    fn drawn(canvas: &Canvas, app: &mut App, size: Vec2, scale: f32) -> image::RgbImage {
        let png = canvas.draw(app, &Context::default(), size, scale).unwrap();
        image::load_from_memory(&png).unwrap().to_rgb8()
    }

    /// How many pixels have nearly this colour.
    fn of_colour(picture: &image::RgbImage, colour: egui::Color32) -> usize {
        let near = |pixel: &image::Rgb<u8>| {
            let channels = pixel.0.iter().zip([colour.r(), colour.g(), colour.b()]);
            channels.into_iter().all(|(a, b)| a.abs_diff(b) <= 3)
        };
        picture.pixels().filter(|pixel| near(pixel)).count()
    }

    #[test]
    fn the_states_have_their_colours_in_the_picture() {
        let Some(canvas) = canvas() else { return };
        for (colours, dark) in [(Colours::Dark, true), (Colours::Light, false)] {
            let mut app = app(colours, Tab::Pictures, Some("retouch/swap"));
            let picture = drawn(&canvas, &mut app, vec2(1280.0, 800.0), 1.0);
            assert_eq!(picture.dimensions(), (1280, 800));
            for mark in [Mark::Failed, Mark::Running, Mark::Disk] {
                let found = of_colour(&picture, palette(dark).mark(mark));
                assert!(found > 20, "{mark:?} {dark}: {found}");
            }
            let other = of_colour(&picture, palette(!dark).canvas);
            assert!(other < 2000, "{dark}: {other}");
        }
    }

    #[test]
    fn a_scale_makes_more_pixels_of_the_same_view() {
        let Some(canvas) = canvas() else { return };
        let mut small = app(Colours::Dark, Tab::Problems, None);
        let picture = drawn(&canvas, &mut small, vec2(400.0, 300.0), 2.0);
        assert_eq!(picture.dimensions(), (800, 600));
    }

    #[test]
    fn a_picture_that_is_too_large_is_an_error() {
        let Some(canvas) = canvas() else { return };
        let mut app = app(Colours::Dark, Tab::Problems, None);
        let failure = canvas
            .draw(&mut app, &Context::default(), vec2(8000.0, 8000.0), 4.0)
            .unwrap_err();
        assert!(
            failure.message().contains("pixels a side"),
            "{}",
            failure.message()
        );
    }

    /// The window as it was drawn before: `UPDATE_SNAPSHOTS=1` draws what it is compared with anew.
    fn looks_as_it_did(name: &str, colours: Colours) {
        if canvas().is_none() {
            return;
        }
        // Another version of the driver puts edges a little elsewhere; what moves or goes is more than this.
        let options = SnapshotOptions::new()
            .threshold(1.2)
            .failed_pixel_count_threshold(1500)
            .output_path("src/snapshots");
        let app = app(colours, Tab::Pictures, Some("retouch/inner/draw"));
        let mut window = Harness::builder()
            .with_size(vec2(1000.0, 640.0))
            .with_theme(Theme::Dark)
            .with_max_steps(12)
            .wgpu()
            .build_state(|ctx, app: &mut App| app.ui(ctx), app);
        window.run();
        window.snapshot_options(name, &options);
    }

    #[test]
    fn the_window_looks_as_it_did_in_the_dark() {
        looks_as_it_did("dark", Colours::Dark);
    }

    #[test]
    fn the_window_looks_as_it_did_in_the_light() {
        looks_as_it_did("light", Colours::Light);
    }
}
