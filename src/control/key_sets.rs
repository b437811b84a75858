//! The sets of keys that tokens are verified with: fetched at start, at intervals, and when a token names a key that is not
//! known.
//!
//! What was fetched stays in force while it cannot be fetched again: an issuer that cannot be reached is no reason to turn
//! away those whom its keys let in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use crate::config::auth::keys::{KeyFault, Keys};
use crate::config::auth::{Auth, KeySet, KeySetPlace, KeySource};
use crate::config::{Config, UpstreamAddress};
use crate::metrics::{KeySetCells, Metrics};
use crate::net::tls::ClientSettings;
use crate::route::auth::Keyring;

/// How long a set may take to come.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a set at most.
const SET_SIZE_MAX: usize = 1 << 20;
/// How often at most tokens that name unknown keys have a set fetched: anybody can send one.
const MISSED_INTERVAL: Duration = Duration::from_secs(10);
/// How soon a set is fetched again that could not be, for the first time; then later and later, up to its interval.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long the start of the gateway waits for the first sets. It serves without them.
const FIRST_SETS_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of each route that verifies tokens, by its index; those of sets are fetched in `tasks`. Returns when each set has
/// come or could not be had, or the time for that is over.
pub(super) async fn watch(
    config: &Config,
    metrics: &Metrics,
    tasks: &mut JoinSet<()>,
) -> Vec<Option<Arc<Keyring>>> {
    let (untried, mut tried) = mpsc::channel::<()>(1);
    let mut cells = Vec::new();
    let keyrings = config.routes.iter().map(|route| {
        let Some(Auth::Jwt(jwt)) = &route.auth else { return None };
        Some(match &jwt.keys {
            KeySource::Key { keys, .. } => Arc::new(Keyring::of(keys)),
            KeySource::Set(set) => {
                let watched = Watched {
                    route: route.name.clone(),
                    set: set.clone(),
                    keyring: Arc::default(),
                    cells: Arc::default(),
                };
                cells.push((route.name.clone(), Arc::clone(&watched.cells)));
                let keyring = Arc::clone(&watched.keyring);
                tasks.spawn(watched.keep(untried.clone()));
                keyring
            }
        })
    });
    let keyrings = keyrings.collect();
    metrics.set_key_sets(cells);
    drop(untried);
    // Nothing is sent: the channel ends once every set has been tried.
    let _ = timeout(FIRST_SETS_TIMEOUT, tried.recv()).await;
    keyrings
}

/// The set of keys of one route.
struct Watched {
    route: String,
    set: KeySet,
    keyring: Arc<Keyring>,
    cells: Arc<KeySetCells>,
}

impl Watched {
    async fn keep(self, untried: mpsc::Sender<()>) {
        let mut untried = Some(untried);
        let mut retry_after = RETRY_INTERVAL;
        let mut fault: Option<String> = None;
        loop {
            let began = Instant::now();
            let wait =
                match timeout(FETCH_TIMEOUT, fetch(&self.set)).await.unwrap_or(Err(FetchFault::TimedOut)) {
                    Ok(keys) => {
                        self.cells.loaded(keys.count());
                        if fault.take().is_some() || untried.is_some() {
                            let count = keys.count();
                            tracing::info!(route = self.route, count, "the keys for tokens are in force");
                        }
                        self.keyring.put(keys);
                        retry_after = RETRY_INTERVAL;
                        self.set.refresh_interval
                    }
                    Err(error) => {
                        self.cells.failed();
                        let text = error.to_string();
                        // Told once, until it is another one.
                        if fault.as_ref() != Some(&text) {
                            tracing::warn!(
                                route = self.route,
                                jwks = self.set.name,
                                fault = text,
                                "the keys for tokens cannot be had; those before, if any, stay in force"
                            );
                            fault = Some(text);
                        }
                        let wait = retry_after.min(self.set.refresh_interval);
                        retry_after = retry_after.saturating_mul(2);
                        wait
                    }
                };
            untried = None;
            tokio::select! {
                () = sleep_until(began + wait) => {}
                () = self.keyring.missed() => sleep_until(began + wait.min(MISSED_INTERVAL)).await,
            }
        }
    }
}

/// Why a set cannot be had.
#[derive(Debug)]
enum FetchFault {
    TimedOut,
    Io(io::Error),
    Http(String),
    Status(u16),
    Keys(KeyFault),
}

impl fmt::Display for FetchFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => formatter.write_str("it did not come in time"),
            Self::Io(error) => error.fmt(formatter),
            Self::Http(error) => formatter.write_str(error),
            Self::Status(status) => write!(formatter, "it was answered with {status}"),
            Self::Keys(fault) => fault.fmt(formatter),
        }
    }
}

impl From<io::Error> for FetchFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn fetch(set: &KeySet) -> Result<Keys, FetchFault> {
    let json = match &set.place {
        KeySetPlace::File(file) => {
            let path = file.path.clone();
            Bytes::from(tokio::task::spawn_blocking(move || read(&path)).await.map_err(io::Error::other)??)
        }
        KeySetPlace::Url { server, target, ca } => {
            let host = server.host();
            let (authority, stream) = match &server.address {
                UpstreamAddress::Socket(address) => (address.to_string(), TcpStream::connect(address).await?),
                UpstreamAddress::Name { host, port } => {
                    (format!("{host}:{port}"), TcpStream::connect((host.as_str(), *port)).await?)
                }
                UpstreamAddress::Unix(path) => {
                    return ask(UnixStream::connect(path).await?, "localhost", target).await.and_then(keys);
                }
            };
            match ca {
                None => ask(stream, &authority, target).await?,
                Some((_, authorities)) => {
                    let connector = TlsConnector::from(ClientSettings::new(Arc::clone(authorities)).config());
                    let name = ServerName::try_from(host).map_err(io::Error::other)?;
                    ask(connector.connect(name, stream).await?, &authority, target).await?
                }
            }
        }
    };
    keys(json)
}

/// The content of a regular file, of which there is no more than a set may have.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut content = Vec::new();
    let size = File::open(path)?.take(SET_SIZE_MAX as u64 + 1).read_to_end(&mut content)?;
    if size > SET_SIZE_MAX {
        Err(io::Error::other("it is larger than a set of keys is"))
    } else {
        Ok(content)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is the end of what was fetched")]
fn keys(json: Bytes) -> Result<Keys, FetchFault> {
    Keys::set(&json).map_err(FetchFault::Keys)
}

/// Asks for a target on this connection, and takes the whole answer.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &str,
    target: &str,
) -> Result<Bytes, FetchFault> {
    let http = |error: hyper::Error| FetchFault::Http(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let request = Request::get(target)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| FetchFault::Http(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(http)?;
        if response.status() != http::StatusCode::OK {
            return Err(FetchFault::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), SET_SIZE_MAX).collect().await;
        Ok(body.map_err(|error| FetchFault::Http(error.to_string()))?.to_bytes())
    };
    // The connection does the work, and both end together.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(http(error)),
        },
    }
}
