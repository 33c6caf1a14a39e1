//! Tokens and nodes on the command line.

use flocker::api::{
    NodeDetails, NodeInfo, NodeLabel, NodeLabelled, NodeList, NodeOperations, NodeRemove,
    NodeRemoved, NodeState, NodeVolume, TokenCreate, TokenCreated, TokenList, TokenOperations,
    TokenRevoke, TokenState, TokenStatus, TokensRevoked,
};
use flocker_base::{StoreId, TokenId};
use flocker_gossip::join::Token;

use super::{Agent, ApiError, Fake, alone, ends, flocker, name};

#[async_trait::async_trait]
impl TokenOperations for Fake {
    async fn create_token(&self, request: TokenCreate) -> Result<TokenCreated, ApiError> {
        Ok(TokenCreated {
            join: "flk1-x@h".to_owned(),
            valid_for_ms: request.valid_for_ms,
            id: None,
            uses: request.uses,
            needs_certificate: request.region.is_some(),
        })
    }

    async fn tokens(&self) -> Result<TokenList, ApiError> {
        let token = |id: u8, state| TokenStatus {
            id: TokenId::from_bytes([id; 16]),
            state,
            made_ms_ago: 60_000,
            made_by: Some(name("eu-1")),
            expires_in_ms: Some(3_540_000),
            ended_ms_ago: (state == TokenState::UsedUp).then_some(1_000),
            uses: Some(2),
            uses_left: Some(u32::from(state == TokenState::Live)),
            region: Some(name("us")),
            name: None,
            note: Some("rack\u{1b} 7".to_owned()),
        };
        let tokens = vec![token(0xab, TokenState::Live), token(0xcd, TokenState::UsedUp)];
        Ok(TokenList { viewed_from: name("eu-1"), tokens })
    }

    async fn revoke_tokens(&self, request: TokenRevoke) -> Result<TokensRevoked, ApiError> {
        let ids = request.tokens.iter().map(|text| text.parse());
        match ids.collect::<Result<Vec<TokenId>, _>>() {
            Ok(revoked) => Ok(TokensRevoked { revoked, already: Vec::new() }),
            Err(_) => Err(ApiError::not_found("there is no such token").hint("list them")),
        }
    }
}

#[async_trait::async_trait]
impl NodeOperations for Fake {
    async fn nodes(&self) -> Result<NodeList, ApiError> {
        let nodes = vec![fake_node("eu-1", NodeState::Live), fake_node("us-1", NodeState::Removed)];
        Ok(NodeList { viewed_from: name("eu-1"), nodes })
    }

    /// The node `busy` needs force.
    async fn node(&self, node: String) -> Result<NodeDetails, ApiError> {
        if node == "nobody" {
            return Err(ApiError::not_found("there is no node 'nobody'").hint("list them"));
        }
        let force = (node == "busy").then(|| "it is the master of volume pg".to_owned());
        Ok(NodeDetails {
            node: fake_node(&node, NodeState::Suspected),
            volumes: vec![NodeVolume {
                volume: name("pg"),
                master: false,
                copy: true,
                votes: true,
            }],
            removal_needs_force: force.into_iter().collect(),
            removal_means: vec!["volume pg loses a voter, which is not replaced".to_owned()],
        })
    }

    async fn remove_node(&self, request: NodeRemove) -> Result<NodeRemoved, ApiError> {
        let store = request.node.parse().expect("the program names the store");
        let means = vec!["volume pg loses a copy".to_owned()];
        Ok(NodeRemoved { node: name(if request.force { "forced" } else { "gone" }), store, means })
    }

    async fn label_node(&self, request: NodeLabel) -> Result<NodeLabelled, ApiError> {
        let kept = request.labels.into_iter().filter_map(|(key, value)| Some((key, value?)));
        Ok(NodeLabelled { node: name(&request.node), labels: kept.collect() })
    }
}

fn fake_node(called: &str, state: NodeState) -> NodeInfo {
    NodeInfo {
        store: StoreId::from_bytes([9; 16]),
        name: name(called),
        region: name("eu"),
        state,
        state_for_ms: Some(5_000),
        version: Some("0.1.0".to_owned()),
        incarnation: Some(3),
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

impl Agent {
    pub(super) async fn tells_of_tokens_and_nodes(&self) {
        let (code, out, err) = self.run(&["token", "create", "--uses", "1"]).await;
        assert_eq!((code, out.as_str()), (0, "flocker up --join flk1-x@h\n"));
        assert!(
            err.contains("on one new node within 1h") && err.contains("Only this node"),
            "{err}"
        );
        // The fake agent's authority is outside when a region is asked for.
        let (_, out, err) = self.run(&["token", "create", "--region", "us"]).await;
        assert!(out.ends_with("--ca-cert CA.pem --cert NODE.pem --key NODE.key\n"), "{out}");
        assert!(err.contains("flocker identity csr"), "{err}");
        let (_, out, _) = self.run(&["token", "create", "--region", "us", "-q"]).await;
        assert_eq!(out, "flk1-x@h\n");
        let (_, out, _) = self.run(&["token", "ls"]).await;
        assert!(
            out.contains("abababab") && out.contains("1 of 2") && out.contains("region us"),
            "{out}"
        );
        assert!(!out.contains("cdcdcdcd") && !out.contains('\u{1b}'), "{out}");
        let (_, out, _) = self.run(&["token", "ls", "--all"]).await;
        assert!(out.contains("used up") && out.contains("ended 1.0 s ago"), "{out}");
        let id = TokenId::from_bytes([0xab; 16]);
        assert_eq!(self.run(&["token", "ls", "-q"]).await.1, format!("{id}\n"));
        let whole = Token { id, secret: [7; 32], ca: [8; 32] };
        for text in [id.to_string(), whole.to_string(), format!("{whole}@10.0.0.1")] {
            let (code, out, err) = self.run(&["token", "revoke", &text]).await;
            assert_eq!((code, out.as_str(), err.as_str()), (0, "revoked abababab\n", ""));
        }
        assert_eq!(self.run(&["token", "revoke", "zz"]).await.0, 5);

        let (_, out, _) = self.run(&["node", "ls", "-o", "wide"]).await;
        assert!(out.contains("eu-1") && out.contains("rack=r7") && !out.contains("us-1"), "{out}");
        assert_eq!(self.run(&["node", "ls", "-q", "--all"]).await.1, "eu-1\nus-1\n");
        let (_, out, _) = self.run(&["node", "show", "eu-2"]).await;
        assert!(out.starts_with("eu-2\n") && out.contains("pg: copy, voter"), "{out}");
        assert_eq!(self.run(&["node", "show", "nobody"]).await.0, 5);
        let labelled = self.run(&["node", "label", "eu-1", "a=b=c", "rack-", "empty="]).await;
        assert_eq!(labelled, (0, "eu-1: a=b=c empty=\n".to_owned(), String::new()));
    }
}

#[tokio::test]
async fn a_removal_asks_and_a_needed_node_needs_force() {
    let agent = Agent::start().await;
    let (code, out, err) = agent.run(&["node", "rm", "eu-2"]).await;
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("nobody is here to ask; add --yes"), "{err}");
    let (code, out, err) = agent.run(&["node", "rm", "eu-2", "-y"]).await;
    assert_eq!((code, out.as_str()), (0, "removed node gone (09090909)\n"));
    assert_eq!(err, "note: volume pg loses a copy\n");
    let (code, _, err) = agent.run(&["node", "rm", "busy", "-y"]).await;
    assert_eq!(code, 8);
    assert_eq!(
        err,
        "error: busy was not removed: it is the master of volume pg; settle that first, or add --force\n"
    );
    let (code, out, _) = agent.run(&["node", "rm", "busy", "-y", "--force"]).await;
    assert_eq!((code, out.as_str()), (0, "removed node forced (09090909)\n"));
    let (code, out, _) = agent.run(&["node", "rm", "busy", "--dry-run"]).await;
    assert_eq!(code, 0);
    assert!(out.contains("needs --force: it is the master") && out.contains("a voter"), "{out}");
    agent.stop().await;
}

#[tokio::test]
async fn what_names_no_node_or_label_is_a_mistake_and_a_token_needs_a_host() {
    for arguments in [
        &["node", "show", "../x"][..],
        &["node", "rm", ""],
        &["node", "label", "eu-1"],
        &["node", "label", "eu-1", "rack"],
        &["node", "label", "eu-1", "=x"],
        &["token", "create", "--uses", "0"],
        &["token", "create", "--uses", "1001"],
        &["token", "revoke"],
    ] {
        let (code, out, _) = alone(arguments).await;
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut command = flocker(folder.path(), &["up"]);
    command.env("FLOCKER_TOKEN", "flk1-hidden");
    let (code, _, err) = ends(command).await;
    assert_eq!(code, 2);
    assert!(err.contains("no host to join at") && !err.contains("hidden"), "{err}");
}
