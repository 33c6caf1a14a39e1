//! One client's connection as its requests see it: which service a request is for, what is refused
//! at once, and what an upstream gets to see of it. It sends nothing itself.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flocker_base::StoreId;
use hyper::body::{Body, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use crate::answer::Answer;
use crate::body::{BodyContext, RequestBody, ResponseBody};
use crate::exchange::Exchange;
use crate::headers::{self, Origin, SERVICE, Wants};
use crate::proxy::Shared;
use crate::route::host_key;
use crate::service::{Service, TunnelSlot};
use crate::upstream::UpstreamIo;
use crate::watch::Phase;

/// One client's connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) origin: Origin,
    pub(crate) context: Arc<BodyContext>,
    /// Set when the last response was 101: the connection becomes a tunnel.
    pub(crate) tunnel: Mutex<Option<Tunnel>>,
}

/// The far side of a tunnel.
pub(crate) struct Tunnel {
    pub(crate) io: UpstreamIo,
    pub(crate) early: Bytes,
    pub(crate) slot: TunnelSlot,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

impl Session {
    /// Answers one request. Every failure becomes an answer.
    pub(crate) async fn exchange(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        self.context.watch.enter(Phase::Held);
        self.context.fate.reset();
        let response = match self.answer(request).await {
            Ok(response) => response,
            Err((answer, service)) => {
                self.log(&answer, service.as_deref());
                self.context.watch.enter(Phase::Idle);
                answer.into_response(self.origin.is_peer())
            }
        };
        Ok(response)
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, (Answer, Option<Arc<Service>>)> {
        let (service, hops) = self.route(&request).map_err(|answer| (answer, None))?;
        let blame = Arc::clone(&service);
        let exchanged = async {
            let request = self.checked(request)?;
            service.count_request();
            let wants = headers::wants(request.headers());
            let wants = if request.body().is_end_stream() { wants } else { Wants::Answer };
            let request = self.rewritten(request, wants)?;
            let target = request.uri().path().len() + request.uri().query().map_or(0, str::len);
            let weight = headers::weight(request.headers(), target);
            Exchange::new(self, service, wants, weight, hops).run(request).await
        };
        exchanged.await.map_err(|answer| (answer, Some(blame)))
    }

    /// Which service the request is for, and through which nodes it came.
    fn route(&self, request: &Request<Incoming>) -> Result<(Arc<Service>, Vec<StoreId>), Answer> {
        let most = self.shared.config.max_hops;
        let mut hops = Vec::new();
        if let Origin::Peer(from) = &self.origin {
            hops = headers::parse_hops(request.headers(), most)
                .ok_or_else(|| Answer::bad_request("the list of nodes passed is malformed"))?;
            hops.push(*from);
            if let Some(id) = request.headers().get(SERVICE) {
                let id = id.to_str().ok().and_then(|id| id.parse().ok());
                let id = id.ok_or_else(|| Answer::bad_request("the service's id is malformed"))?;
                return match self.shared.service(id) {
                    Some(service) => Ok((service, hops)),
                    // This node's routes are behind the sender's.
                    None => {
                        Err(Answer::unavailable(format!("this node knows no service {id} yet"))
                            .handed_back())
                    }
                };
            }
        }
        let host = host_of(request)?;
        let key = host_key(host)
            .ok_or_else(|| Answer::bad_request(format!("'{}' is no valid Host", shown(host))))?;
        match self.shared.host(&key) {
            Some(service) => Ok((service, hops)),
            None => Err(Answer::new(
                StatusCode::NOT_FOUND,
                format!(
                    "no route for host '{}' (see `flocker service ls` for the hosts there are)",
                    shown(&key)
                ),
            )),
        }
    }

    /// Refuses what this proxy does not pass on, and wraps the body with its limit.
    fn checked(&self, request: Request<Incoming>) -> Result<Request<RequestBody>, Answer> {
        if request.method() == Method::CONNECT {
            let text = "CONNECT is not served: this is no forward proxy";
            return Err(Answer::new(StatusCode::METHOD_NOT_ALLOWED, text).closing());
        }
        let limit = self.shared.config.max_body_bytes.unwrap_or(u64::MAX);
        if request.body().size_hint().lower() > limit {
            return Err(Answer::too_large(limit));
        }
        let (head, body) = request.into_parts();
        let body = if body.is_end_stream() {
            RequestBody::empty()
        } else {
            RequestBody::live(body, limit, Arc::clone(&self.context))
        };
        Ok(Request::from_parts(head, body))
    }

    /// The request as an upstream gets it.
    fn rewritten(
        &self,
        request: Request<RequestBody>,
        wants: Wants,
    ) -> Result<Request<RequestBody>, Answer> {
        let (mut head, body) = request.into_parts();
        if let Some(authority) = head.uri.authority() {
            // The target is an absolute URI: its host is the one that counts (RFC 9112, 3.2.2).
            let Ok(host) = HeaderValue::from_str(authority.as_str()) else {
                return Err(Answer::bad_request("the target's host is malformed"));
            };
            head.headers.insert(HOST, host);
            head.uri = match head.uri.path_and_query() {
                Some(path) => Uri::from(path.clone()),
                None => Uri::from_static("/"),
            };
        }
        if head.version != Version::HTTP_11 {
            head.version = Version::HTTP_11;
        }
        head.extensions.clear();
        headers::prepare_request(&mut head.headers, &self.origin, wants);
        Ok(Request::from_parts(head, body))
    }

    fn log(&self, answer: &Answer, service: Option<&Service>) {
        if let (Some(service), true) = (service, answer.is_failure()) {
            service.count_failure();
        }
        let Some(held_back) = self.shared.throttle.allow(self.shared.context.clock.boot()) else {
            return;
        };
        let status = answer.status.as_u16();
        let (from, text) = (self.origin.shown(), &answer.text);
        if answer.is_failure() {
            tracing::warn!(status, from, held_back, "request answered with an error: {text}");
        } else {
            tracing::info!(status, from, held_back, "request refused: {text}");
        }
    }
}

fn host_of(request: &Request<Incoming>) -> Result<&str, Answer> {
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.as_str());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => match host.to_str() {
            Ok(host) => Ok(host),
            Err(_) => Err(Answer::bad_request("the Host header is malformed")),
        },
        (None, _) => Err(Answer::bad_request("a request needs a Host header")),
        (Some(_), Some(_)) => Err(Answer::bad_request("a request may have one Host header only")),
    }
}

/// A stranger's text, as far as a message shows it.
fn shown(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_default).collect()
}
