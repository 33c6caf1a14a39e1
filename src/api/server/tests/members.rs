//! The calls about tokens and nodes over a real socket.

use flocker_base::StoreId;

use super::*;
use crate::api::{
    NodeDetails, NodeInfo, NodeLabel, NodeLabelled, NodeList, NodeOperations, NodeRemove,
    NodeRemoved, NodeState, TokenCreate, TokenCreated, TokenList, TokenOperations, TokenRevoke,
    TokensRevoked,
};

#[async_trait::async_trait]
impl TokenOperations for Fake {
    async fn create_token(&self, request: TokenCreate) -> Result<TokenCreated, ApiError> {
        let join = "flk1-x@h".to_owned();
        let TokenCreate { valid_for_ms, uses, .. } = request;
        Ok(TokenCreated { join, valid_for_ms, id: None, uses, needs_certificate: false })
    }

    async fn tokens(&self) -> Result<TokenList, ApiError> {
        Ok(TokenList { viewed_from: name("eu-1"), tokens: Vec::new() })
    }

    async fn revoke_tokens(&self, request: TokenRevoke) -> Result<TokensRevoked, ApiError> {
        assert_eq!(request.tokens, ["ab"]);
        Err(ApiError::not_found("there is no token 'ab'"))
    }
}

fn node() -> NodeInfo {
    NodeInfo {
        store: StoreId::from_bytes([9; 16]),
        name: name("eu-2"),
        region: name("eu"),
        state: NodeState::Live,
        state_for_ms: None,
        version: None,
        incarnation: None,
        control: None,
        data: None,
        http: None,
        is_self: false,
        rtt_ms: None,
        labels: [("rack".to_owned(), "r7".to_owned())].into(),
        joined: None,
        removed_by: None,
    }
}

#[async_trait::async_trait]
impl NodeOperations for Fake {
    async fn nodes(&self) -> Result<NodeList, ApiError> {
        Ok(NodeList { viewed_from: name("eu-1"), nodes: vec![node()] })
    }

    async fn node(&self, asked: String) -> Result<NodeDetails, ApiError> {
        assert_eq!(asked, "eu-2");
        Ok(NodeDetails {
            node: node(),
            volumes: Vec::new(),
            removal_needs_force: vec!["it lives".to_owned()],
            removal_means: Vec::new(),
        })
    }

    async fn remove_node(&self, request: NodeRemove) -> Result<NodeRemoved, ApiError> {
        assert!(request.force);
        Ok(NodeRemoved { node: name(&request.node), store: node().store, means: Vec::new() })
    }

    async fn label_node(&self, request: NodeLabel) -> Result<NodeLabelled, ApiError> {
        assert_eq!(request.labels["gone"], None);
        Ok(NodeLabelled { node: name(&request.node), labels: node().labels })
    }
}

#[tokio::test]
async fn tokens_and_nodes_are_asked_for_and_changed() {
    let running = Running::start(Fake::default(), ServerConfig::default()).await;
    let client = running.client();
    let request = TokenCreate { uses: Some(2), ..TokenCreate::lasting(60_000) };
    assert_eq!(client.create_token(&request).await.expect("made").uses, Some(2));
    assert!(client.tokens().await.expect("lists").tokens.is_empty());
    let revoke = TokenRevoke { tokens: vec!["ab".to_owned()] };
    let refused = client.revoke_tokens(&revoke).await.expect_err("refused");
    assert_eq!(refused.code, ErrorCode::NotFound);
    assert_eq!(client.nodes().await.expect("lists").nodes, [node()]);
    let details = client.node("eu-2").await.expect("shows");
    assert_eq!((details.node, details.removal_needs_force.len()), (node(), 1));
    let remove = NodeRemove { node: "eu-2".to_owned(), force: true };
    assert_eq!(client.remove_node(&remove).await.expect("removes").store, node().store);
    let labels = [("gone".to_owned(), None)].into();
    let label = NodeLabel { node: "eu-2".to_owned(), labels };
    assert_eq!(client.label_node(&label).await.expect("labels").labels, node().labels);
    running.stop().await;
}
