//! The proxy on real sockets: clients, backends and several nodes in one process. Nothing here
//! reaches beyond the loopback address.

mod bodies;
mod faults;
mod gate;
mod harness;
mod headers;
mod hostile;
mod moving;
mod routing;
mod tunnels;
