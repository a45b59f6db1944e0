//! A server that speaks as much of S3's protocol as the client asks for, in this process, with vices that can be switched on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use retouch_cluster::{Environment, Place, Store};

/// A key that must not be seen anywhere.
pub const KEY: &str = "AKIASECRETOFTESTS";
/// The same of the secret.
pub const SECRET: &str = "wJalrXUtnFEMI-of-tests";

/// What the server does wrong.
#[derive(Debug, Default)]
pub struct Vices {
    /// So many of the next requests get an answer 503.
    pub fails: AtomicU32,
    /// So many of the next answers end in the middle of the body.
    pub halves: AtomicU32,
    /// So many of the next requests that write are done, and not answered.
    pub hangs_up: AtomicU32,
    /// All requests are refused, and the answer repeats the key.
    pub refuses: AtomicBool,
    /// Conditions are ignored.
    pub ignores: AtomicBool,
    /// Milliseconds before each answer.
    pub slow: AtomicU32,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    pub vices: Vices,
    pub requests: AtomicUsize,
    objects: Mutex<BTreeMap<String, (Vec<u8>, SystemTime)>>,
    port: u16,
}

fn takes(count: &AtomicU32) -> bool {
    let less = |count: u32| count.checked_sub(1);
    (count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)).is_ok()
}

/// `%2F` and the like.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        match (first, more) {
            (b'%', [a, b, more @ ..]) => {
                let digits = [*a, *b];
                let digits = std::str::from_utf8(&digits).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = more;
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// The date of headers: `Mon, 30 Nov 2026 10:45:12 GMT`.
const DATE: &str = "Mon, 30 Nov 2026 10:45:12 GMT";

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!name.is_empty()).then(|| (unescaped(name), unescaped(value)))
    });
    let mut request = Request {
        method,
        path: unescaped(path.trim_start_matches('/')),
        query: query.collect(),
        headers: BTreeMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        request
            .headers
            .insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = request
        .headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

fn answer(stream: &mut TcpStream, status: &str, body: &[u8], head: bool, half: bool) -> bool {
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"e\"\r\nLast-Modified: {DATE}\r\n\r\n",
        body.len()
    );
    let sent = match (head, half) {
        (true, _) => 0,
        (false, true) => body.len() / 2,
        (false, false) => body.len(),
    };
    stream.write_all(text.as_bytes()).is_ok() && stream.write_all(&body[..sent]).is_ok() && !half
}

fn error(code: &str) -> Vec<u8> {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>")
        .into_bytes()
}

/// The variables by which a client finds a server.
pub fn environment(endpoint: &str) -> Environment {
    let variables = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ENDPOINT_URL", endpoint),
    ];
    let owned = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Environment(owned.into())
}

impl Server {
    /// Begins to serve.
    pub fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Arc::new(Self {
            vices: Vices::default(),
            requests: AtomicUsize::new(0),
            objects: Mutex::default(),
            port: listener.local_addr().unwrap().port(),
        });
        let of = Arc::clone(&server);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, of) = (stream.unwrap(), Arc::clone(&of));
                std::thread::spawn(move || of.serve(stream));
            }
        });
        server
    }

    /// A client of it.
    #[allow(dead_code)] // two programs of tests use this file
    pub fn store(&self) -> Store {
        let place = Place::parse("s3://bucket/lab/runs").unwrap();
        Store::open_in(&place, &environment(&self.endpoint())).unwrap()
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The names of what it holds.
    #[allow(dead_code)] // two programs of tests use this file
    pub fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read(&mut reader) {
            self.requests.fetch_add(1, Ordering::SeqCst);
            let slow = self.vices.slow.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(slow.into()));
            let head = request.method == "HEAD";
            if takes(&self.vices.fails) {
                if !answer(
                    &mut stream,
                    "503 Slow Down",
                    &error("SlowDown"),
                    head,
                    false,
                ) {
                    return;
                }
                continue;
            }
            let signed = request
                .headers
                .get("authorization")
                .is_some_and(|with| with.contains("AWS4-HMAC-SHA256") && with.contains(KEY));
            let (status, body) = match signed && !self.vices.refuses.load(Ordering::SeqCst) {
                true => self.answer(&request),
                false => ("403 Forbidden", error("InvalidAccessKeyId")),
            };
            if request.method == "PUT" && takes(&self.vices.hangs_up) {
                return;
            }
            let half = !body.is_empty() && takes(&self.vices.halves);
            if !answer(&mut stream, status, &body, head, half) {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> (&'static str, Vec<u8>) {
        let mut objects = self.objects.lock().unwrap();
        let name = request.path.strip_prefix("bucket").unwrap_or_default();
        let name = name.trim_start_matches('/').to_owned();
        match request.method.as_str() {
            "PUT" => {
                let conditional = request
                    .headers
                    .get("if-none-match")
                    .is_some_and(|with| with == "*");
                let ignores = self.vices.ignores.load(Ordering::SeqCst);
                if conditional && !ignores && objects.contains_key(&name) {
                    return ("412 Precondition Failed", error("PreconditionFailed"));
                }
                objects.insert(name, (request.body.clone(), SystemTime::now()));
                ("200 OK", Vec::new())
            }
            "GET" if request.query.contains_key("list-type") => {
                ("200 OK", list(&objects, &request.query))
            }
            "GET" | "HEAD" => match objects.get(&name) {
                Some((bytes, _)) => ("200 OK", bytes.clone()),
                None => ("404 Not Found", error("NoSuchKey")),
            },
            "DELETE" => {
                objects.remove(&name);
                ("204 No Content", Vec::new())
            }
            "POST" if request.query.contains_key("delete") => {
                let text = String::from_utf8(request.body.clone()).unwrap();
                let mut answer = "<DeleteResult>".to_owned();
                for piece in text.split("<Key>").skip(1) {
                    let name = piece.split("</Key>").next().unwrap();
                    objects.remove(name);
                    answer += &format!("<Deleted><Key>{name}</Key></Deleted>");
                }
                ("200 OK", (answer + "</DeleteResult>").into_bytes())
            }
            _ => ("405 Method Not Allowed", error("MethodNotAllowed")),
        }
    }
}

/// Few, so that tests see several pages.
const PAGE: usize = 7;

fn list(
    objects: &BTreeMap<String, (Vec<u8>, SystemTime)>,
    query: &BTreeMap<String, String>,
) -> Vec<u8> {
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let after = query.get("continuation-token").cloned().unwrap_or_default();
    let mut found = objects
        .iter()
        .filter(|(name, _)| name.starts_with(&prefix) && **name > after);
    let page: Vec<_> = found.by_ref().take(PAGE).collect();
    let more = found.next().is_some();
    let mut text = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name><Prefix>{prefix}</Prefix><KeyCount>{}</KeyCount><IsTruncated>{more}</IsTruncated>",
        page.len()
    );
    if let (true, Some((last, _))) = (more, page.last()) {
        text += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
    }
    for (name, (bytes, _)) in page {
        text += &format!(
            "<Contents><Key>{name}</Key><LastModified>2026-11-30T10:45:12.000Z</LastModified><ETag>\"e\"</ETag><Size>{}</Size></Contents>",
            bytes.len()
        );
    }
    (text + "</ListBucketResult>").into_bytes()
}
