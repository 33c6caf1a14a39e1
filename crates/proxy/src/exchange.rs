//! One request through the gate, to the place, and again if nothing of it was sent. It never sends
//! anything twice that may have been acted on.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flocker_base::StoreId;
use hyper::body::{Body, Incoming};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};

use crate::answer::Answer;
use crate::body::{RequestBody, ResponseBody};
use crate::gate::Pass;
use crate::gate::core::Refusal;
use crate::headers::{self, HOPS, REFUSED, SERVICE, Wants};
use crate::pool::ConnectError;
use crate::replay::ReplaySource;
use crate::route::Place;
use crate::service::Service;
use crate::session::{Session, Tunnel};
use crate::upstream::{Sent, Upstream, UpstreamIo};
use crate::watch::{Expired, Phase};

/// A request on its way, with what it takes to send it again.
pub(crate) struct Exchange<'a> {
    session: &'a Session,
    service: Arc<Service>,
    wants: Wants,
    weight: u64,
    hops: Vec<StoreId>,
    /// The head and body of a forwarded request, in case the peer hands it back.
    spare: Option<Spare>,
}

struct Spare {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Option<ReplaySource>,
}

/// Where an attempt led.
enum Attempt {
    Done(Response<ResponseBody>),
    /// Nothing was sent, or the peer acted on nothing: it waits for another chance.
    Again(Request<RequestBody>, Pass),
}

impl<'a> Exchange<'a> {
    /// `weight`: roughly the bytes it occupies while held; `hops`: the nodes it came through.
    pub(crate) const fn new(
        session: &'a Session,
        service: Arc<Service>,
        wants: Wants,
        weight: u64,
        hops: Vec<StoreId>,
    ) -> Self {
        Self { session, service, wants, weight, hops, spare: None }
    }

    /// The response, or the proxy's own answer instead of one.
    pub(crate) async fn run(
        mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Answer> {
        let entered = self.service.gate.enter(self.weight).await;
        let mut pass = entered.map_err(|why| self.refused(why))?;
        loop {
            let (back, spent) = match self.attempt(request, pass).await? {
                Attempt::Done(response) => return Ok(response),
                Attempt::Again(request, pass) => (request, pass),
            };
            self.session.context.watch.enter(Phase::Held);
            let gate = Arc::clone(&self.service.gate);
            let (entry, probe) = gate.enter_again(spent, self.weight);
            if let Some(probe) = probe {
                self.session.shared.probe(&self.service, probe);
            }
            pass = entry.verdict().await.map_err(|why| self.refused(why))?;
            request = back;
        }
    }

    /// Sends the request to the place that the pass is for.
    async fn attempt(
        &mut self,
        request: Request<RequestBody>,
        pass: Pass,
    ) -> Result<Attempt, Answer> {
        let node = match pass.route().place() {
            Place::Remote { node } => Some(node),
            Place::Local { .. } | Place::Unknown => None,
        };
        let mut request = match node {
            Some(node) => self.addressed(request, node)?,
            None => {
                let mut request = request;
                request.headers_mut().remove(SERVICE);
                request.headers_mut().remove(HOPS);
                request
            }
        };
        // A connection that lay unused may have been closed just now. As long as nothing was
        // written, the next is as good; a new one settles it.
        loop {
            let (upstream, is_new) = match pass.route().pool().get().await {
                Ok(got) => got,
                Err(error @ ConnectError::Full(_)) => {
                    return Err(Answer::unavailable(format!(
                        "service '{}' is busy: {error}; try again",
                        self.service.label()
                    )));
                }
                Err(error) => {
                    tracing::debug!(service = %self.service.label(), %error, "place unreachable");
                    return Ok(Attempt::Again(request, pass));
                }
            };
            let watch = &self.session.context.watch;
            watch.enter_waiting(node.is_some());
            match upstream.send(request, watch).await {
                Sent::Unsent(back, error) => {
                    request = *back;
                    if is_new {
                        tracing::debug!(service = %self.service.label(), %error, "nothing sent");
                        return Ok(Attempt::Again(request, pass));
                    }
                }
                Sent::Response(response, upstream) => {
                    return self.responded(response, upstream, pass);
                }
                Sent::Switched(response, io, early) => {
                    return self.switched(response, io, early);
                }
                Sent::Failed(error) => return Err(self.broken(&error)),
                Sent::Expired(what) => return Err(self.expired(what)),
            }
        }
    }

    /// Adds what a peer needs to know, and keeps a copy in case the peer hands the request back.
    fn addressed(
        &mut self,
        mut request: Request<RequestBody>,
        node: StoreId,
    ) -> Result<Request<RequestBody>, Answer> {
        let config = &self.session.shared.config;
        if self.hops.contains(&node) || self.hops.len() >= config.max_hops {
            return Err(self.disagreement());
        }
        self.service.count_forwarded();
        let headers = request.headers_mut();
        headers.insert(SERVICE, self.service.id_text().clone());
        if self.hops.is_empty() {
            headers.remove(HOPS);
        } else {
            headers.insert(HOPS, headers::hops_value(&self.hops));
        }
        if request.body().is_end_stream() {
            self.keep(&request, None);
        } else if request.body().size_hint().lower() <= config.replay_bytes as u64
            && let Some(body) = request.body_mut().take_live()
        {
            let source = ReplaySource::new(body, config.replay_bytes);
            *request.body_mut() = self.replayed(&source)?;
            self.keep(&request, Some(source));
        }
        Ok(request)
    }

    fn disagreement(&self) -> Answer {
        let label = self.service.label();
        Answer::unavailable(format!(
            "the nodes do not agree yet where service '{label}' is; nothing of the request was \
             acted on; try again"
        ))
        .handed_back()
    }

    fn keep(&mut self, request: &Request<RequestBody>, body: Option<ReplaySource>) {
        self.spare = Some(Spare {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
            body,
        });
    }

    fn replayed(&self, source: &ReplaySource) -> Result<RequestBody, Answer> {
        let limit = self.session.shared.config.max_body_bytes.unwrap_or(u64::MAX);
        let body = source.give().ok_or_else(|| {
            Answer::unavailable("the request body can't be sent a second time; try again")
        })?;
        Ok(RequestBody::replay(body, limit, Arc::clone(&self.session.context)))
    }

    fn responded(
        &mut self,
        mut response: Response<Incoming>,
        mut upstream: Upstream,
        pass: Pass,
    ) -> Result<Attempt, Answer> {
        let forwarded = matches!(pass.route().place(), Place::Remote { .. });
        if forwarded && response.headers().contains_key(REFUSED) {
            drop((response, upstream));
            return self.handed_back(pass);
        }
        if let Some(seconds) = headers::keep_alive_seconds(response.headers()) {
            let said = Duration::from_secs(seconds) / 2;
            upstream.idle_limit = upstream.idle_limit.min(said);
        }
        headers::prepare_response(response.headers_mut(), false);
        let watch = Arc::clone(&self.session.context.watch);
        watch.enter(Phase::Sending);
        let service = Arc::clone(&self.service);
        let (mut head, body) = response.into_parts();
        head.extensions.clear();
        head.version = Version::HTTP_11;
        let body = ResponseBody::passed(body, upstream, pass, service, watch);
        Ok(Attempt::Done(Response::from_parts(head, body)))
    }

    /// The peer acted on nothing of it.
    /// It is tried again from here, or by the node it came from.
    fn handed_back(&mut self, pass: Pass) -> Result<Attempt, Answer> {
        if self.session.origin.is_peer() {
            // The node that has the client is the one to try again: its routes may be newer.
            return Err(self.disagreement());
        }
        let Some(spare) = self.spare.take() else {
            return Err(Answer::unavailable(format!(
                "the nodes do not agree yet where service '{}' is, and the request body is too \
                 long to be sent a second time; try again",
                self.service.label()
            )));
        };
        let body = match &spare.body {
            Some(source) => self.replayed(source)?,
            None => RequestBody::empty(),
        };
        let mut request = Request::new(body);
        *request.method_mut() = spare.method.clone();
        *request.uri_mut() = spare.uri.clone();
        *request.headers_mut() = spare.headers.clone();
        self.spare = Some(spare);
        Ok(Attempt::Again(request, pass))
    }

    fn switched(
        &self,
        mut response: Response<Incoming>,
        io: UpstreamIo,
        early: Bytes,
    ) -> Result<Attempt, Answer> {
        if self.wants != Wants::Upgrade {
            return Err(Answer::new(
                StatusCode::BAD_GATEWAY,
                format!(
                    "service '{}' switched protocols without being asked",
                    self.service.label()
                ),
            )
            .closing());
        }
        headers::prepare_response(response.headers_mut(), true);
        let tunnel = Tunnel { io, early, slot: self.service.tunnel() };
        let mut place = self.session.tunnel.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(tunnel);
        let (mut head, _) = response.into_parts();
        head.extensions.clear();
        Ok(Attempt::Done(Response::from_parts(head, ResponseBody::Full(None))))
    }

    /// The connection failed after the request had gone out.
    fn broken(&self, error: &hyper::Error) -> Answer {
        let fate = &self.session.context.fate;
        if fate.is_too_large() {
            return Answer::too_large(
                self.session.shared.config.max_body_bytes.unwrap_or(u64::MAX),
            );
        }
        if fate.is_client_fault() {
            return Answer::bad_request("the request body broke off or is malformed");
        }
        Answer::new(
            StatusCode::BAD_GATEWAY,
            format!(
                "service '{}' closed the connection without a response ({error}); it may have \
                 acted on the request, so it was not sent again",
                self.service.label()
            ),
        )
    }

    fn expired(&self, what: Expired) -> Answer {
        match what {
            Expired::Body => {
                Answer::new(StatusCode::REQUEST_TIMEOUT, "the request body did not come in time")
                    .closing()
            }
            Expired::Response => Answer::new(
                StatusCode::GATEWAY_TIMEOUT,
                format!(
                    "service '{}' took the request and did not answer in time; it may have acted \
                     on it, so it was not sent again",
                    self.service.label()
                ),
            ),
        }
    }

    fn refused(&self, why: Refusal) -> Answer {
        let label = self.service.label();
        let config = &self.session.shared.config;
        match why {
            Refusal::TooMany => Answer::unavailable(format!(
                "service '{label}' is moving or away, and {} requests wait for it already, which \
                 is the most this node holds; nothing of the request was sent; try again",
                config.max_held
            )),
            Refusal::TooManyBytes => Answer::unavailable(format!(
                "service '{label}' is moving or away, and the requests that wait for it occupy \
                 the {} bytes this node gives them; nothing of the request was sent; try again",
                config.max_held_bytes
            )),
            Refusal::TooLong => Answer::unavailable(format!(
                "service '{label}' is moving or away: the request waited {:?}, which is as long as \
                 this node holds one; nothing of it was sent; try again",
                config.max_hold
            )),
            Refusal::Removed => {
                Answer::new(StatusCode::NOT_FOUND, format!("service '{label}' was removed"))
            }
        }
    }
}
