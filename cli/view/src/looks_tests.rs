use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use retouch_graph::{HostCache, RunOptions, Settings, Silent};
use retouch_nodes::Runtime;

use super::*;

/// Plain sampling of a tiny model in 5 steps, run once.
fn ran() -> (Engine, Arc<Plan>) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/data/tiny-sd1");
    let text = format!(
        "schema: retouch/v1
name: job
nodes:
  base: {{op: load_model, path: '{}'}}
  draw: {{op: sample, model: $base, prompt: a teddy bear on a beach, steps: 5, seed: 1, guidance: 3}}
outputs:
  latent: {{value: $draw}}
",
        data.display()
    );
    let runtime = Runtime::cpu();
    let numerics = runtime.numerics();
    let engine = Engine::new(retouch_nodes::registry())
        .with_environment(Arc::new(runtime))
        .with_numerics(numerics)
        .with_cache(Arc::new(HostCache::new(1 << 30)));
    let checked = engine
        .load_str("test.yaml", &text, &Settings::default())
        .unwrap();
    let plan = Arc::new(engine.plan(&checked, &[]).unwrap());
    let options = RunOptions::default();
    engine
        .run(&plan, &Silent, &Cancel::new(), &options)
        .unwrap();
    (engine, plan)
}

fn looks(busy: bool) -> (EngineLooks, Arc<AtomicUsize>) {
    let (engine, plan) = ran();
    let woken = Arc::new(AtomicUsize::new(0));
    let wake = Arc::clone(&woken);
    let wake = Box::new(move || {
        wake.fetch_add(1, Ordering::SeqCst);
    });
    assert!(EngineLooks::new(engine.clone(), plan.clone(), "base", busy, wake.clone()).is_none());
    (
        EngineLooks::new(engine, plan, "draw", busy, wake).unwrap(),
        woken,
    )
}

/// Asks in frame after frame, as a window does, until `done` says so.
#[track_caller]
fn until(looks: &mut EngineLooks, request: &Request, done: impl Fn(&Reply) -> bool) -> Reply {
    let since = Instant::now();
    loop {
        looks.frame();
        let reply = looks.ask(request);
        if done(&reply) {
            return reply;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "still {reply:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_ready(reply: &Reply) -> bool {
    matches!(reply, Reply::Ready(_))
}

fn gaze(k: usize) -> Request {
    Request::Gaze {
        k,
        site: 3,
        image: 0,
        at: (0, 0),
        head: None,
    }
}

#[test]
fn wishes_are_answered_by_another_thread_which_wakes_the_window() {
    let (mut looks, woken) = looks(false);
    let Reply::Ready(Answer::Summary(summary)) = until(&mut looks, &Request::Summary, is_ready)
    else {
        panic!("no summary");
    };
    assert_eq!((summary.steps, summary.kept()), (5, 6));
    let picture = |exact| Request::Picture {
        k: 3,
        image: 0,
        exact,
    };
    let Reply::Ready(Answer::Picture(quick)) = until(&mut looks, &picture(false), is_ready) else {
        panic!("no picture");
    };
    assert_eq!(quick.rgb.len(), 3 * quick.width * quick.height);
    assert_eq!(looks.calls(), 0);
    until(&mut looks, &picture(true), is_ready);
    let Reply::Ready(Answer::Gaze(found)) = until(&mut looks, &gaze(3), is_ready) else {
        panic!("no gaze");
    };
    let sum: f32 = found.row.planes[0].1.data.iter().sum();
    assert!((sum - 1.0).abs() < 1e-4);
    let calls = looks.calls();
    assert_eq!(calls, 1);
    // Another query of the same site and step costs no call.
    let other = Request::Gaze {
        k: 3,
        site: 3,
        image: 0,
        at: (0, 1),
        head: Some(0),
    };
    until(&mut looks, &other, is_ready);
    assert_eq!(looks.calls(), calls);
    assert!(woken.load(Ordering::SeqCst) >= 5);
    // What cannot be is said.
    let words = Request::Words {
        k: 3,
        whose: Whose::Own,
        subject: "giraffe".to_owned(),
    };
    let failed = until(&mut looks, &words, |reply| {
        matches!(reply, Reply::Failed { .. })
    });
    assert!(format!("{failed:?}").contains("giraffe"), "{failed:?}");
}

#[test]
fn while_a_run_goes_on_what_takes_a_network_waits_and_is_done_after_it() {
    let (mut looks, _) = looks(true);
    until(&mut looks, &Request::Summary, is_ready);
    let waits = |reply: &Reply| matches!(reply, Reply::Waiting(what) if what.contains("U-Net"));
    until(&mut looks, &gaze(2), waits);
    std::thread::sleep(Duration::from_millis(30));
    until(&mut looks, &gaze(2), waits);
    assert_eq!(looks.calls(), 0);
    looks.run_ends();
    until(&mut looks, &gaze(2), is_ready);
    assert_eq!(looks.calls(), 1);
    // The next run lets go of what was held.
    looks.run_begins();
    until(&mut looks, &gaze(4), waits);
    looks.run_ends();
    until(&mut looks, &gaze(4), is_ready);
}

#[test]
fn what_is_not_wished_for_any_more_is_not_begun() {
    let (mut looks, _) = looks(true);
    looks.frame();
    // A person who runs over the steps: only the last is still requested when the run is over.
    for k in 0..5 {
        looks.frame();
        looks.frame();
        looks.ask(&gaze(k));
    }
    looks.run_ends();
    until(&mut looks, &gaze(4), is_ready);
    assert_eq!(looks.calls(), 1);
    let held = looks.shared.lock();
    assert!(!held.requests.contains_key(&gaze(0)));
}
