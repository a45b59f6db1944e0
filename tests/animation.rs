//! Animations of what a run drew.

use std::process::Command;

use retouch_graph::Settings;

use crate::support::{Bench, root};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An animated PNG, read by the png crate.
struct Read {
    size: (u32, u32),
    plays: u32,
    /// Milliseconds and pixels of each frame.
    frames: Vec<(u32, Vec<u8>)>,
}

fn read(bytes: &[u8]) -> Read {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes))
        .read_info()
        .unwrap();
    let info = reader.info();
    let size = (info.width, info.height);
    let control = info.animation_control.unwrap();
    let mut frames = Vec::new();
    for _ in 0..control.num_frames {
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let frame = reader.info().frame_control.unwrap();
        assert_eq!((frame.width, frame.height), size);
        let delay = 1000 * u32::from(frame.delay_num) / u32::from(frame.delay_den);
        frames.push((delay, pixels));
    }
    assert!(
        reader.next_frame(&mut vec![0; 1 << 20]).is_err(),
        "more frames than are announced"
    );
    Read {
        size,
        plays: control.num_plays,
        frames,
    }
}

fn animate(params: &str, batch: usize) -> String {
    let models = root().join("models").display().to_string();
    format!(
        "schema: retouch/v1
nodes:
  base: {{op: load_model, path: '{models}/world'}}
  draw: {{op: sample, model: $base, prompt: a teddy bear, steps: 7, guidance: 1, seed: 4, batch: {batch}}}
  movie: {{op: animate, model: $base, trajectory: $draw.trajectory, {params}}}
  picture: {{op: decode, model: $base, latent: $draw}}
outputs:
  movie: {{value: $movie}}
  picture: {{value: $picture}}
"
    )
}

#[test]
fn an_animation_has_every_nth_state_and_ends_with_the_decoded_picture() {
    let bench = Bench::new();
    let run = |params: &str, batch| {
        let outputs = bench.run(&animate(params, batch));
        let movie = &outputs["movie"];
        assert_eq!(movie.formats(), ["png", "apng"]);
        let (png, apng) = (movie.encode("png").unwrap(), movie.encode("apng").unwrap());
        assert_eq!(png, apng);
        (png, outputs["picture"].encode("png").unwrap())
    };
    let (movie, picture) = run(
        "by: vae, every: 3, frame_seconds: 0.25, hold: 2, loops: 4",
        1,
    );
    let movie = read(&movie[0]);
    assert_eq!((movie.size, movie.plays), ((64, 64), 4));
    let delays: Vec<u32> = movie.frames.iter().map(|frame| frame.0).collect();
    assert_eq!(delays, [250, 250, 250, 2000], "z_0, z_3, z_6 and z_7");
    let picture = image::load_from_memory(&picture[0]).unwrap().to_rgb8();
    assert_eq!(movie.frames[3].1, picture.into_raw());
    assert_ne!(movie.frames[0].1, movie.frames[1].1);

    // A file for each picture of a batch, and each as if it was drawn alone.
    let (two, _) = run("scale: 2", 2);
    let (one, _) = run("scale: 2", 1);
    assert_eq!(two.len(), 2);
    assert_eq!(two[0], one[0]);
    let second = read(&two[1]);
    assert_eq!((second.size, second.plays), ((128, 128), 0));
    let delays: Vec<u32> = second.frames.iter().map(|frame| frame.0).collect();
    assert_eq!(delays, [80, 80, 80, 80, 80, 80, 80, 1500]);
    // Each pixel is a square of 2x2.
    let pixels = &second.frames[7].1;
    let at = |x: usize, y: usize| &pixels[3 * (128 * y + x)..][..3];
    assert!((0..128).all(|i| at(i, 77) == at(i / 2 * 2, 76)));
}

#[test]
fn the_first_frame_is_what_a_program_sees_that_knows_no_animations() {
    let outputs = Bench::new().run(&animate("every: 7", 1));
    let file = &outputs["movie"].encode("png").unwrap()[0];
    let animation = read(file);
    assert_eq!(animation.frames.len(), 2);
    let still = image::load_from_memory(file).unwrap().to_rgb8();
    assert_eq!(still.into_raw(), animation.frames[0].1);
}

#[test]
fn an_animation_is_kept_on_disk_and_is_the_same_bytes_when_it_is_made_anew() {
    let out = tempfile::tempdir().unwrap();
    let yaml =
        animate("every: 2", 2).replace("{value: $movie}", "{value: $movie, save: movie.apng}");
    std::fs::write(out.path().join("job.yaml"), yaml).unwrap();
    let run = |to: &str, cache: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args([
                "run",
                "job.yaml",
                "movie",
                "--out",
                to,
                "--cache-dir",
                cache,
            ])
            .current_dir(out.path())
            .env_remove("RETOUCH_NO_CACHE")
            .env("RETOUCH_CONFIG", "")
            .output()
            .unwrap();
        let told = text(&output.stderr);
        assert!(output.status.success(), "{told}");
        let files = ["movie_0.apng", "movie_1.apng"];
        (
            files.map(|name| std::fs::read(out.path().join(to).join(name)).unwrap()),
            told,
        )
    };
    let (first, _) = run("a", "cache");
    let (again, told) = run("b", "cache");
    assert!(
        told.contains("movie: reused (disk)") && told.contains("0 nodes ran"),
        "{told}"
    );
    let (anew, _) = run("c", "other");
    assert_eq!(first, again);
    assert_eq!(first, anew);
    assert_ne!(first[0], first[1]);
}

#[test]
fn animations_that_make_no_sense_are_faults_before_anything_runs() {
    let bench = Bench::new();
    let data = root().join("tests/oracle/data").display().to_string();
    let other = animate("every: 1", 1).replace(
        "  draw:",
        &format!("  other: {{op: load_model, path: '{data}/tiny-sd1'}}\n  draw:"),
    );
    let other = other.replace("animate, model: $base", "animate, model: $other");
    let long = |params: &str| animate(params, 64).replace("steps: 7", "steps: 900");
    for (yaml, says, help) in [
        (animate("every: 0", 1), "`every` is 0", "nearest is 1"),
        (
            animate("frame_seconds: 0", 1),
            "`frame_seconds` is 0",
            "nearest is 0.01",
        ),
        (animate("hold: 61", 1), "`hold` is 61", "nearest is 60"),
        (animate("loops: 65536", 1), "`loops` is 65536", "nearest is"),
        (animate("scale: 0", 1), "`scale` is 0", "nearest is"),
        (animate("scale: 33", 1), "`scale` is 33", "nearest is"),
        (animate("by: eyes", 1), "eyes", ""),
        (
            long("scale: 4"),
            "901 frames of 64 pictures of 256x256",
            "`every: 16`",
        ),
        (
            long("scale: 32"),
            "901 frames of 64 pictures of 2048x2048",
            "fewer pictures",
        ),
        (
            animate("scale: 32", 1).replace("seed: 4", "seed: 4, width: 512"),
            "16384x2048",
            "smaller `scale`",
        ),
        (
            other,
            "latents of 8 channels for a model that works on 4",
            "family",
        ),
    ] {
        let problems = bench
            .engine
            .load_str("test.yaml", &yaml, &Settings::default())
            .unwrap_err();
        let told: Vec<String> = problems
            .iter()
            .map(|p| format!("{} | {}", p.message(), p.hint().unwrap_or_default()))
            .collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains(says) && told[0].contains(help),
            "{says}: {told:?}"
        );
    }
    // What is said to fit does.
    let settings = Settings::default();
    assert!(
        bench
            .engine
            .load_str("test.yaml", &long("scale: 4, every: 16"), &settings)
            .is_ok()
    );
}
