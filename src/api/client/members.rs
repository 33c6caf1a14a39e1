//! The client's calls about tokens and nodes.

use http::Method;

use super::{Client, Effect};
use crate::api::error::ApiError;
use crate::api::nodes::{NodeDetails, NodeLabel, NodeLabelled, NodeList, NodeRemove, NodeRemoved};
use crate::api::tokens::{TokenCreate, TokenCreated, TokenList, TokenRevoke, TokensRevoked};

impl Client {
    /// Makes a join token.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn create_token(&self, request: &TokenCreate) -> Result<TokenCreated, ApiError> {
        self.call(Method::POST, "/v1/tokens", Some(request), Effect::Changes).await
    }

    /// The tokens.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn tokens(&self) -> Result<TokenList, ApiError> {
        self.call(Method::GET, "/v1/tokens", None::<&()>, Effect::Reads).await
    }

    /// Revokes tokens.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn revoke_tokens(&self, request: &TokenRevoke) -> Result<TokensRevoked, ApiError> {
        self.call(Method::POST, "/v1/tokens/revoke", Some(request), Effect::Changes).await
    }

    /// The nodes.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn nodes(&self) -> Result<NodeList, ApiError> {
        self.call(Method::GET, "/v1/nodes", None::<&()>, Effect::Reads).await
    }

    /// One node. The caller has made sure that the text is one word of a name's letters.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn node(&self, node: &str) -> Result<NodeDetails, ApiError> {
        self.call(Method::GET, &format!("/v1/nodes/by/{node}"), None::<&()>, Effect::Reads).await
    }

    /// Removes a node.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn remove_node(&self, request: &NodeRemove) -> Result<NodeRemoved, ApiError> {
        self.call(Method::POST, "/v1/nodes/remove", Some(request), Effect::Changes).await
    }

    /// Changes a node's labels.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn label_node(&self, request: &NodeLabel) -> Result<NodeLabelled, ApiError> {
        self.call(Method::POST, "/v1/nodes/label", Some(request), Effect::Changes).await
    }
}
