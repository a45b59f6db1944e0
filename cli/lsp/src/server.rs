//! From messages to questions and back.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use lsp_server::{ErrorCode, Message, Notification, Request, RequestId, Response};
use lsp_types::{
    CancelParams, CodeAction, CodeActionKind, CodeActionParams, CompletionParams,
    DidChangeTextDocumentParams, DidCloseTextDocumentParams, DidOpenTextDocumentParams,
    DocumentFormattingParams, DocumentHighlightParams, DocumentSymbolParams, GotoDefinitionParams,
    HoverParams, InitializeParams, NumberOrString, PositionEncodingKind, ReferenceParams,
    RenameParams, TextDocumentPositionParams,
};
use retouch_graph::Engine;
use retouch_graph::paths::normal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::overlay::Overlay;
use super::text::{Encoding, path_of};
use super::wire::{self, Incoming};
use super::workspace::Workspace;
use crate::Wrap;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client said `shutdown`, then `exit`.
    Proper,
    /// The client went away, or said `exit` alone.
    Cut,
}

/// Why a request has no result.
struct Refusal {
    code: ErrorCode,
    message: String,
}

impl Refusal {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self::new(ErrorCode::RequestFailed, message)
    }
}

type Answer = Result<Json, Refusal>;

/// Serves one client until it says `exit` or goes away; how the session ended. With `aside`, another end of
/// `incoming`, large files that are pinned by their digest are read in the background.
///
/// # Errors
/// When an answer cannot be written, or a thread cannot be started.
pub fn serve(
    engine: &Engine,
    wrap: Wrap<'_>,
    incoming: &Receiver<Incoming>,
    aside: Option<Sender<Incoming>>,
    output: &mut dyn Write,
) -> io::Result<End> {
    let overlay = match aside {
        Some(aside) => Overlay::reading_aside(move |path| {
            let _ = aside.send(Incoming::Read(path)); // the session may be over
        })?,
        None => Overlay::default(),
    };
    let mut server = Server {
        workspace: Workspace::over(engine, wrap, overlay),
        gone: false,
        output,
        queue: VecDeque::new(),
        cancelled: HashSet::new(),
        initialized: false,
        shut_down: false,
        watches: false,
        asked: 0,
    };
    server.run(incoming)
}

struct Server<'a> {
    workspace: Workspace,
    output: &'a mut dyn Write,
    /// What came in and was not looked at.
    queue: VecDeque<Message>,
    /// Requests that need no answer any more.
    cancelled: HashSet<RequestId>,
    initialized: bool,
    shut_down: bool,
    /// Whether the client said all that it will.
    gone: bool,
    /// Whether the client can watch files.
    watches: bool,
    /// How many requests were sent to the client.
    asked: i32,
}

impl Server<'_> {
    fn run(&mut self, incoming: &Receiver<Incoming>) -> io::Result<End> {
        loop {
            loop {
                match incoming.try_recv() {
                    Ok(one) => self.take(one)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.gone = true;
                        break;
                    }
                }
            }
            let Some(message) = self.queue.pop_front() else {
                // Nothing waits: now the texts are checked, and not at every key of a quick hand.
                self.diagnose()?;
                if self.gone {
                    return Ok(End::Cut); // it went without `exit`
                }
                match incoming.recv() {
                    Ok(one) => self.take(one)?,
                    Err(_) => return Ok(End::Cut),
                }
                continue;
            };
            if let Some(exit) = self.message(message)? {
                return Ok(exit);
            }
        }
    }

    fn take(&mut self, incoming: Incoming) -> io::Result<()> {
        match incoming {
            Incoming::Malformed(why) => wire::refuse(self.output, &why)?,
            Incoming::Read(path) => self.workspace.concerned(&normal(&path)),
            Incoming::End => self.gone = true,
            Incoming::Message(message) => {
                if let Message::Notification(note) = &*message
                    && note.method == "$/cancelRequest"
                {
                    if let Ok(params) = serde_json::from_value::<CancelParams>(note.params.clone())
                    {
                        let id = match params.id {
                            NumberOrString::Number(number) => RequestId::from(number),
                            NumberOrString::String(text) => RequestId::from(text),
                        };
                        // One that is answered already is no longer waiting.
                        let waits = self.queue.iter().any(
                            |one| matches!(one, Message::Request(request) if request.id == id),
                        );
                        if waits {
                            self.cancelled.insert(id);
                        }
                    }
                } else {
                    self.queue.push_back(*message);
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, message: &Message) -> io::Result<()> {
        wire::write(self.output, message)
    }

    fn notify<P: Serialize>(&mut self, method: &str, params: P) -> io::Result<()> {
        let params = serde_json::to_value(params).map_err(io::Error::other)?;
        self.send(&Message::Notification(Notification {
            method: method.to_owned(),
            params,
        }))
    }

    fn diagnose(&mut self) -> io::Result<()> {
        if !self.workspace.is_dirty() {
            return Ok(());
        }
        let told = guarded(|| Ok(self.workspace.diagnose()));
        match told {
            Ok(published) => {
                for params in published {
                    self.notify("textDocument/publishDiagnostics", params)?;
                }
            }
            Err(refusal) => self.complain(&refusal)?,
        }
        Ok(())
    }

    /// Tells the client of a fault of this program.
    fn complain(&mut self, refusal: &Refusal) -> io::Result<()> {
        self.workspace.restore();
        self.notify(
            "window/logMessage",
            json!({"type": 1, "message": refusal.message}),
        )
    }

    fn message(&mut self, message: Message) -> io::Result<Option<End>> {
        match message {
            Message::Request(request) => {
                let id = request.id.clone();
                let initialize = request.method == "initialize";
                let answer = self.request(request);
                let done = answer.is_ok();
                let response_result = answer.map_err(|refusal| lsp_server::ResponseError {
                    code: refusal.code as i32,
                    message: refusal.message,
                    data: None,
                });
                self.send(&Message::Response(Response {
                    id,
                    response_result,
                }))?;
                self.initialized |= initialize && done;
                Ok(None)
            }
            Message::Notification(note) if note.method == "exit" => Ok(Some(if self.shut_down {
                End::Proper
            } else {
                End::Cut
            })),
            Message::Notification(note) => {
                if note.method == "initialized" {
                    self.watch()?;
                } else if self.initialized && !self.shut_down {
                    let method = note.method.clone();
                    let taken = guarded(|| notification(&mut self.workspace, note));
                    if let Err(refusal) = taken {
                        tracing::warn!("{method}: {}", refusal.message);
                        self.complain(&refusal)?;
                    }
                }
                Ok(None)
            }
            // Answers to what was asked of the client need no more.
            Message::Response(_) => Ok(None),
        }
    }

    /// Asks the client to watch workflows on the disk.
    fn watch(&mut self) -> io::Result<()> {
        if !self.watches {
            return Ok(());
        }
        self.asked += 1;
        let watchers = json!([{"globPattern": "**/*.{yaml,yml}"}]);
        self.send(&Message::Request(Request {
            id: RequestId::from(self.asked),
            method: "client/registerCapability".to_owned(),
            params: json!({"registrations": [{
                "id": "workflows",
                "method": "workspace/didChangeWatchedFiles",
                "registerOptions": {"watchers": watchers}
            }]}),
        }))
    }

    fn request(&mut self, request: Request) -> Answer {
        if self.cancelled.remove(&request.id) {
            return Err(Refusal::new(ErrorCode::RequestCanceled, "cancelled"));
        }
        if self.shut_down {
            return Err(Refusal::new(
                ErrorCode::InvalidRequest,
                "the server is shut down: only `exit` is accepted",
            ));
        }
        match request.method.as_str() {
            "initialize" if self.initialized => Err(Refusal::new(
                ErrorCode::InvalidRequest,
                "the server is initialized already",
            )),
            "initialize" => {
                let params: InitializeParams = params(request)?;
                Ok(self.initialize(&params))
            }
            _ if !self.initialized => Err(Refusal::new(
                ErrorCode::ServerNotInitialized,
                "`initialize` comes first",
            )),
            "shutdown" => {
                self.shut_down = true;
                Ok(Json::Null)
            }
            _ => {
                let answer = guarded(|| answer(&self.workspace, request));
                if matches!(&answer, Err(refusal) if matches!(refusal.code, ErrorCode::InternalError))
                {
                    self.workspace.restore();
                }
                answer
            }
        }
    }

    #[expect(deprecated, reason = "older clients name their folder so")]
    fn initialize(&mut self, params: &InitializeParams) -> Json {
        let folders = params.workspace_folders.iter().flatten();
        let mut folders: Vec<_> = folders.filter_map(|folder| path_of(&folder.uri)).collect();
        if folders.is_empty() {
            folders.extend(params.root_uri.as_ref().and_then(path_of));
        }
        self.workspace.folders = folders;
        let names = params.initialization_options.as_ref();
        let names = names.and_then(|options| options.get("files"));
        if let Some(names) = names.and_then(Json::as_array) {
            let names = names.iter().filter_map(Json::as_str);
            self.workspace.names = names.map(str::to_owned).collect();
        }
        let offered = params.capabilities.general.as_ref();
        let offered = offered.and_then(|general| general.position_encodings.as_ref());
        let utf8 = offered.is_some_and(|kinds| kinds.contains(&PositionEncodingKind::UTF8));
        if utf8 {
            self.workspace.encoding = Encoding::Utf8;
        }
        let workspace = params.capabilities.workspace.as_ref();
        self.watches = workspace
            .and_then(|workspace| workspace.did_change_watched_files.as_ref())
            .and_then(|watched| watched.dynamic_registration)
            .unwrap_or(false);
        let prepares = params.capabilities.text_document.as_ref();
        let prepares = prepares
            .and_then(|document| document.rename.as_ref())
            .and_then(|rename| rename.prepare_support)
            .unwrap_or(false);
        json!({
            "serverInfo": {"name": "retouch", "version": env!("CARGO_PKG_VERSION")},
            "capabilities": {
                "positionEncoding": if utf8 { "utf-8" } else { "utf-16" },
                "textDocumentSync": {"openClose": true, "change": 2, "save": {"includeText": false}},
                "completionProvider": {"triggerCharacters": ["$", ".", "{", ",", " ", "\"", "/"]},
                "hoverProvider": true,
                "definitionProvider": true,
                "referencesProvider": true,
                "documentHighlightProvider": true,
                "documentSymbolProvider": true,
                // A client that cannot prepare is given the plain form.
                "renameProvider": if prepares { json!({"prepareProvider": true}) } else { json!(true) },
                "documentFormattingProvider": true,
                "codeActionProvider": {"codeActionKinds": ["quickfix"]}
            }
        })
    }
}

/// Does something; a panic is an error of this request alone.
fn guarded<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Refusal::new(
            ErrorCode::InternalError,
            "internal server error; this is a bug in the program: please report it with the file",
        ))
    })
}

fn params<P: DeserializeOwned>(request: Request) -> Result<P, Refusal> {
    serde_json::from_value(request.params).map_err(|error| {
        Refusal::new(
            ErrorCode::InvalidParams,
            format!("the params of `{}` cannot be read: {error}", request.method),
        )
    })
}

fn json_of(value: impl Serialize) -> Answer {
    serde_json::to_value(value)
        .map_err(|error| Refusal::new(ErrorCode::InternalError, error.to_string()))
}

fn answer(workspace: &Workspace, request: Request) -> Answer {
    match request.method.as_str() {
        "textDocument/completion" => {
            let params: CompletionParams = params(request)?;
            let at = params.text_document_position;
            json_of(workspace.complete(&at.text_document.uri, at.position))
        }
        "textDocument/hover" => {
            let params: HoverParams = params(request)?;
            let at = params.text_document_position_params;
            json_of(workspace.hover(&at.text_document.uri, at.position))
        }
        "textDocument/definition" => {
            let params: GotoDefinitionParams = params(request)?;
            let at = params.text_document_position_params;
            json_of(workspace.definition(&at.text_document.uri, at.position))
        }
        "textDocument/references" => {
            let params: ReferenceParams = params(request)?;
            let at = params.text_document_position;
            let declaration = params.context.include_declaration;
            json_of(workspace.references(&at.text_document.uri, at.position, declaration))
        }
        "textDocument/documentHighlight" => {
            let params: DocumentHighlightParams = params(request)?;
            let at = params.text_document_position_params;
            json_of(workspace.highlights(&at.text_document.uri, at.position))
        }
        "textDocument/documentSymbol" => {
            let params: DocumentSymbolParams = params(request)?;
            json_of(workspace.symbols(&params.text_document.uri))
        }
        "textDocument/prepareRename" => {
            let at: TextDocumentPositionParams = params(request)?;
            json_of(workspace.prepare_rename(&at.text_document.uri, at.position)?)
        }
        "textDocument/rename" => {
            let params: RenameParams = params(request)?;
            let at = params.text_document_position;
            json_of(workspace.rename(&at.text_document.uri, at.position, &params.new_name)?)
        }
        "textDocument/formatting" => {
            let params: DocumentFormattingParams = params(request)?;
            json_of(workspace.format(&params.text_document.uri)?)
        }
        "textDocument/codeAction" => {
            let params: CodeActionParams = params(request)?;
            let quick = |kind: &CodeActionKind| {
                "quickfix".starts_with(kind.as_str()) // `quickfix`, or the empty kind, which is all
            };
            if params
                .context
                .only
                .is_some_and(|only| !only.iter().any(quick))
            {
                return json_of(Vec::<CodeAction>::new());
            }
            json_of(workspace.actions(&params.text_document.uri, params.range))
        }
        other => Err(Refusal::new(
            ErrorCode::MethodNotFound,
            format!("unknown method `{other}`"),
        )),
    }
}

fn notification(workspace: &mut Workspace, note: Notification) -> Result<(), Refusal> {
    fn read<P: DeserializeOwned>(note: Notification) -> Result<P, Refusal> {
        serde_json::from_value(note.params).map_err(|error| {
            Refusal::new(
                ErrorCode::InvalidParams,
                format!("the params of `{}` cannot be read: {error}", note.method),
            )
        })
    }
    match note.method.as_str() {
        "textDocument/didOpen" => {
            let params: DidOpenTextDocumentParams = read(note)?;
            let document = params.text_document;
            let (language, version) = (document.language_id, document.version);
            workspace.open(document.uri, &language, version, document.text);
        }
        "textDocument/didChange" => {
            let params: DidChangeTextDocumentParams = read(note)?;
            let document = params.text_document;
            if !workspace.change(&document.uri, document.version, params.content_changes) {
                return Err(Refusal::new(
                    ErrorCode::InvalidParams,
                    format!("{} changed and is not open", document.uri.as_str()),
                ));
            }
        }
        "textDocument/didClose" => {
            let params: DidCloseTextDocumentParams = read(note)?;
            workspace.close(&params.text_document.uri);
        }
        "textDocument/didSave" | "workspace/didChangeWatchedFiles" => workspace.disk_changed(),
        // Other notifications are ignored.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_of_its_request_alone() {
        let refusal = guarded::<()>(|| panic!("a fault of the program")).unwrap_err();
        assert!(matches!(refusal.code, ErrorCode::InternalError));
        assert!(guarded(|| Ok(1)).is_ok_and(|one| one == 1));
    }

    fn note(method: &str, params: Json) -> Incoming {
        Incoming::Message(Box::new(Message::Notification(Notification {
            method: method.to_owned(),
            params,
        })))
    }

    fn ask(id: i32, method: &str, params: Json) -> Incoming {
        Incoming::Message(Box::new(Message::Request(Request {
            id: RequestId::from(id),
            method: method.to_owned(),
            params,
        })))
    }

    /// All that the server says to messages that lie ready before it looks.
    fn said(messages: Vec<Incoming>) -> (Vec<Json>, End) {
        let (to, from) = std::sync::mpsc::channel();
        for message in messages {
            to.send(message).unwrap();
        }
        drop(to);
        let engine = Engine::new(retouch_nodes::registry());
        let mut output = Vec::new();
        let exit = serve(&engine, &|files| files, &from, None, &mut output).unwrap();
        let mut rest = output.as_slice();
        let mut said = Vec::new();
        while !rest.is_empty() {
            let text = std::str::from_utf8(rest).unwrap();
            let (head, tail) = text.split_once("\r\n\r\n").unwrap();
            let length: usize = head
                .strip_prefix("Content-Length: ")
                .unwrap()
                .parse()
                .unwrap();
            said.push(serde_json::from_str(&tail[..length]).unwrap());
            rest = &tail.as_bytes()[length..];
        }
        (said, exit)
    }

    #[test]
    fn of_changes_that_wait_only_the_last_is_checked_and_a_cancelled_request_is_not_answered_in_full()
     {
        let uri = "untitled:one";
        let text = |seed: &str| {
            format!("schema: retouch/v1\nparams:\n  seed: {{type: seed, default: {seed}}}\n")
        };
        let mut messages = vec![
            ask(1, "initialize", json!({"capabilities": {}})),
            note(
                "textDocument/didOpen",
                json!({"textDocument": {"uri": uri, "languageId": "yaml", "version": 0, "text": text("-1")}}),
            ),
        ];
        for version in 1..=30 {
            let seed = if version == 30 { "x" } else { "-2" };
            messages.push(note("textDocument/didChange", json!({
                "textDocument": {"uri": uri, "version": version}, "contentChanges": [{"text": text(seed)}]
            })));
        }
        messages.push(ask(
            2,
            "textDocument/documentSymbol",
            json!({"textDocument": {"uri": uri}}),
        ));
        messages.push(note("$/cancelRequest", json!({"id": 2})));
        let (said, exit) = said(messages);
        assert_eq!(exit, End::Cut, "it went without `exit`");
        let published: Vec<&Json> = said
            .iter()
            .filter(|one| one["method"] == "textDocument/publishDiagnostics")
            .collect();
        assert_eq!(published.len(), 1, "{published:#?}");
        assert_eq!(published[0]["params"]["version"], 30);
        let message = published[0]["params"]["diagnostics"][0]["message"]
            .as_str()
            .unwrap();
        assert!(message.contains("`x`"), "{message}");
        let cancelled = said.iter().find(|one| one["id"] == 2).unwrap();
        assert_eq!(cancelled["error"]["code"], -32800);
    }
}
