//! The client against a server that speaks S3's protocol, well and badly; and against a folder.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

use retouch_cluster::claims::{Monotonic, State, states};
use retouch_cluster::probe::probe;
use retouch_cluster::{Board, Fault, Next, Objects, Place, Store};

use crate::support::{KEY, SECRET, Server, environment};

/// What every store does.
fn keeps(store: &Store) {
    assert!(store.create("a/one", b"1".to_vec()).unwrap());
    assert!(!store.create("a/one", b"2".to_vec()).unwrap());
    assert_eq!(store.get("a/one").unwrap().as_deref(), Some(&b"1"[..]));
    store.put("a/one", b"three".to_vec()).unwrap();
    assert_eq!(store.get("a/one").unwrap().as_deref(), Some(&b"three"[..]));
    assert_eq!(store.get("a/none").unwrap(), None);
    assert_eq!(store.list("nowhere").unwrap(), []);
    store.put("a/empty", Vec::new()).unwrap();
    assert_eq!(store.get("a/empty").unwrap(), Some(Vec::new()));
    for number in (0..40).rev() {
        store
            .put(&format!("b/{number:03}/x"), vec![0; number])
            .unwrap();
    }
    store.put("bb/no", Vec::new()).unwrap();
    let listed = store.list("b").unwrap();
    assert_eq!(
        listed.len(),
        40,
        "pages are put together, a name that only begins so is left out"
    );
    assert_eq!((listed[7].name.as_str(), listed[7].size), ("b/007/x", 7));
    store.delete("a/one").unwrap();
    store.delete("a/one").unwrap();
    assert_eq!(store.get("a/one").unwrap(), None);
    assert_eq!(probe(store), Ok(()));
    assert_eq!(store.list("probe").unwrap(), []);
}

/// Of many workers that claim the same chunks at once each is given to one.
fn claims(store: &Store, workers: usize) {
    const CHUNKS: usize = 10;
    let barrier = Arc::new(Barrier::new(workers));
    let threads: Vec<_> = (0..workers)
        .map(|worker| {
            let (store, barrier) = (store.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let name = format!("w{worker}");
                let clock = Monotonic::default();
                let mut board =
                    Board::join(store, clock, "runs/r", &name, 600_000, CHUNKS, Vec::new())
                        .unwrap();
                barrier.wait();
                let mut won = Vec::new();
                while let Next::Take(claim) = board.next_chunk().unwrap() {
                    won.push(claim.chunk);
                }
                won
            })
        })
        .collect();
    let mut won: Vec<usize> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    won.sort_unstable();
    assert_eq!(won, (0..CHUNKS).collect::<Vec<_>>());
    let listed = store.list("runs/r/state").unwrap();
    assert_eq!(listed.len(), CHUNKS);
    let held = |state: &State| matches!(state, State::Held(0, _));
    assert!(states(&listed, CHUNKS).iter().all(held));
}

#[test]
fn a_folder_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Folder(folder.path().join("deep/store"));
    let store = Store::open(&place).unwrap();
    keeps(&store);
    claims(&store, 16);
}

#[test]
fn s3_is_a_store_and_64_workers_claim_what_one_wins() {
    let server = Server::start();
    let store = server.store();
    keeps(&store);
    assert!(
        server
            .names()
            .iter()
            .all(|name| name.starts_with("lab/runs/"))
    );
    claims(&store, 64);
}

/// `tests/cluster/moto.sh` starts a server that others wrote.
#[test]
fn so_is_a_server_that_others_wrote() {
    let Ok(endpoint) = std::env::var("RETOUCH_TEST_S3") else {
        eprintln!("skipped: RETOUCH_TEST_S3 names no server (tests/cluster/moto.sh starts one)");
        return;
    };
    let place = Place::parse(&format!("s3://bucket/suite-{}", std::process::id())).unwrap();
    let store = Store::open_in(&place, &environment(&endpoint)).unwrap();
    keeps(&store);
    claims(&store, 64);
}

#[test]
fn faults_that_pass_are_passed_over() {
    let server = Server::start();
    let store = server.store();
    let set = |vice: &std::sync::atomic::AtomicU32, to| vice.store(to, Ordering::SeqCst);
    set(&server.vices.slow, 20);
    set(&server.vices.fails, 2);
    store.put("a", b"whole".to_vec()).unwrap();
    set(&server.vices.slow, 0);
    set(&server.vices.fails, 2);
    assert_eq!(store.list("").unwrap().len(), 1);
    // Half of an object is never taken for all of it.
    set(&server.vices.halves, 1);
    match store.get("a") {
        Ok(bytes) => assert_eq!(bytes.as_deref(), Some(&b"whole"[..])),
        Err(error) => assert!(matches!(error, Fault::Unreachable(_)), "{error:?}"),
    }
    assert_eq!(store.get("a").unwrap().as_deref(), Some(&b"whole"[..]));
    // A claim that was taken and not answered is the worker's own.
    let mut board = Board::join(
        store,
        Monotonic::default(),
        "runs/r",
        "w",
        60_000,
        1,
        Vec::new(),
    )
    .unwrap();
    set(&server.vices.hangs_up, 1);
    let claim = match board.next_chunk() {
        Ok(Next::Take(claim)) => claim,
        // The client did not try again: the worker does.
        Err(Fault::Unreachable(_)) => match board.next_chunk().unwrap() {
            Next::Take(claim) => claim,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!((claim.chunk, claim.attempt), (0, 0));
}

#[test]
fn a_store_that_refuses_says_why_and_no_key() {
    let server = Server::start();
    let store = server.store();
    server.vices.refuses.store(true, Ordering::SeqCst);
    let mut said = vec![format!("{store:?}")];
    for fault in [
        store.get("a").unwrap_err(),
        store.put("a", Vec::new()).unwrap_err(),
        store.list("a").unwrap_err(),
        probe(&store).unwrap_err(),
    ] {
        assert!(matches!(fault, Fault::Refused(_)), "{fault:?}");
        assert!(
            fault.to_string().contains("s3://bucket/lab/runs"),
            "{fault}"
        );
        assert!(fault.to_string().contains("InvalidAccessKeyId"), "{fault}");
        said.push(format!("{fault:?}"));
    }
    let said = said.join("\n");
    assert!(!said.contains(KEY) && !said.contains(SECRET), "{said}");
}

#[test]
fn a_store_that_ignores_conditions_is_found_out() {
    let server = Server::start();
    server.vices.ignores.store(true, Ordering::SeqCst);
    let Err(Fault::Unusable(message)) = probe(&server.store()) else {
        panic!("it was accepted");
    };
    assert!(
        message.contains("s3://bucket/lab/runs ignores the condition"),
        "{message}"
    );
}

#[test]
fn a_store_that_is_not_there_is_an_error_and_not_a_wait() {
    let place = Place::parse("s3://bucket").unwrap();
    let environment = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    // Without `AWS_ALLOW_HTTP` nothing is sent in the clear.
    let store = Store::open_in(&place, &retouch_cluster::Environment(environment.into())).unwrap();
    let fault = store.get("a").unwrap_err();
    assert!(!fault.to_string().contains(KEY), "{fault}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let fault = Store::open(&Place::Folder(file.path().to_owned())).unwrap_err();
    assert!(fault.to_string().contains("cannot be made"), "{fault}");
}
