//! The routes of tokens and nodes. What changes something runs to its end.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post};

use super::{Envelopeless, Server, Shared, answer};
use crate::api::nodes::{NodeLabel, NodeRemove};
use crate::api::tokens::{TokenCreate, TokenRevoke};

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/tokens", get(tokens).post(create_token))
        .route("/v1/tokens/revoke", post(revoke_tokens))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/remove", post(remove_node))
        .route("/v1/nodes/label", post(label_node))
        .route("/v1/nodes/by/{node}", get(node))
}

async fn tokens(State(server): Shared) -> Response {
    answer(server.within_deadline(server.operations.tokens()).await)
}

async fn create_token(State(server): Shared, request: Request) -> Response {
    let body: TokenCreate = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.create_token(body).await }).await)
}

async fn revoke_tokens(State(server): Shared, request: Request) -> Response {
    let body: TokenRevoke = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.revoke_tokens(body).await }).await)
}

async fn nodes(State(server): Shared) -> Response {
    answer(server.within_deadline(server.operations.nodes()).await)
}

async fn node(State(server): Shared, Path(node): Path<String>) -> Response {
    answer(server.within_deadline(server.operations.node(node)).await)
}

async fn remove_node(State(server): Shared, request: Request) -> Response {
    let body: NodeRemove = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.remove_node(body).await }).await)
}

async fn label_node(State(server): Shared, request: Request) -> Response {
    let body: NodeLabel = match server.body(request).await {
        Ok(body) => body,
        Err(error) => return answer::<Envelopeless>(Err(error)),
    };
    let operations = Arc::clone(&server.operations);
    answer(server.to_the_end(async move { operations.label_node(body).await }).await)
}
