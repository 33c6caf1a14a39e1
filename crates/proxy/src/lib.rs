//! Flocker's HTTP proxy: any node takes any request, and a service that moves loses none.
//!
//! ```text
//!  client ──▶ server ──▶ session ──▶ exchange ──▶ gate ──▶ pool ──▶ upstream ──▶ backend (Local)
//!  peer   ──▶ (serve_forwarded)  │          ▲                   └────▶ peer's proxy (Remote)
//!                                │          │ hold, drain, release,
//!                            RouteTable ────┘ place changed, reachable again
//! ```
//!
//! One connection is one task: the upstream connection is polled by the very task that serves the
//! request, so a request crosses no queue and wakes no second task.
//!
//! Invariants:
//! - A request is written to an upstream at most once, unless nothing of it was written or an
//!   authenticated peer says that it acted on nothing of it (I7).
//! - A held request ends in exactly one outcome: admitted, refused with an honest text, or
//!   abandoned by its client. The gate's bounds in number, bytes and time are never exceeded.
//! - A request counts as in flight until its response body has been handed over whole.
//! - An idle connection is reused only for the very place (address and epoch) it was made for.
//! - This crate knows nothing of gossip or leases: it believes the [`RouteTable`] it is given.

mod answer;
mod body;
mod config;
mod dial;
mod exchange;
mod gate;
mod headers;
mod pool;
mod proxy;
mod replay;
mod route;
mod server;
mod service;
mod session;
mod throttle;
mod tunnel;
mod upstream;
mod watch;

pub use config::{ConfigError, ForwardedPolicy, ProxyConfig, TrustedNet};
pub use dial::{Dial, Stream};
pub use gate::Drained;
pub use proxy::Proxy;
pub use route::{Place, RouteTable};
pub use service::ServiceStats;
