//! Meshes of several regions: who sees whom, what a death or a cut does, and who carries between.

use super::*;

/// A mesh of regions with this many nodes each, and when it began.
async fn grown(regions: u8, each: u8) -> (Mesh, Vec<Node>) {
    grown_with(MembershipConfig::default(), regions, each).await
}

async fn grown_with(config: MembershipConfig, regions: u8, each: u8) -> (Mesh, Vec<Node>) {
    let mut mesh = Mesh { config, ..Mesh::new() };
    let mut nodes = Vec::new();
    for n in 0..regions * each {
        nodes.push(mesh.start_in(&region_name(n % regions), n + 1, 1, &[1], Mesh::book()));
    }
    mesh.settled_within(&nodes, 60).await;
    (mesh, nodes)
}

fn region_name(n: u8) -> String {
    format!("r{n}")
}

fn of_region<'a>(nodes: &'a [Node], region: &str) -> Vec<&'a Node> {
    nodes.iter().filter(|node| node.region == region).collect()
}

fn cut_off(mesh: &Mesh, nodes: &[Node], region: &str) {
    for inside in of_region(nodes, region) {
        for outside in nodes.iter().filter(|node| node.region != region) {
            mesh.net.cut(inside.store, outside.store);
        }
    }
}

fn all_are(view: &View, region: &str, liveness: Liveness) -> bool {
    let mut of = view.nodes.values().filter(|m| m.facts.region.as_str() == region);
    of.all(|member| member.liveness == liveness)
}

impl Mesh {
    /// The nodes that are in the pool between regions.
    async fn bridges(&self, nodes: &[Node]) -> BTreeSet<StoreId> {
        let inside = nodes.iter().filter(|node| node.membership.inner.between_inlet.is_open());
        inside.map(|node| node.store).collect()
    }

    /// Kills a node: nothing of it goes on, and it says nothing.
    fn kill(&mut self, node: &Node) {
        self.net.remove(node.store);
        node.kill.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_of_several_regions_all_see_each_other_and_few_carry_between() {
    let (mesh, nodes) = grown(3, 4).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    for node in &nodes {
        assert_eq!(node.refused(), 0, "no message came to a pool that it is not of");
        for other in &nodes {
            let member = node.sees(other).expect("seen");
            assert_eq!(member.facts, other.facts());
            assert_eq!(member.liveness, Liveness::Live);
        }
    }
    let bridges = mesh.bridges(&nodes).await;
    for region in ["r0", "r1", "r2"] {
        let members = of_region(&nodes, region).into_iter().map(|node| node.store);
        let chosen = bridge::chosen(members.clone());
        let inside: BTreeSet<_> = members.filter(|store| bridges.contains(store)).collect();
        assert_eq!(inside, chosen, "those that the rule says, of {region}");
    }
}

#[tokio::test(start_paused = true)]
async fn three_nodes_in_two_regions_see_each_other_as_fast_as_in_one() {
    let mut mesh = Mesh::new();
    let began = Instant::now();
    let mut nodes = vec![mesh.start_in("eu", 1, 1, &[], Mesh::book())];
    nodes.push(mesh.start_in("eu", 2, 1, &[1], Mesh::book()));
    nodes.push(mesh.start_in("us", 3, 1, &[1], Mesh::book()));
    mesh.settled(&nodes).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(20)).await;
    // The only node of its region dies.
    let died = Instant::now();
    mesh.kill(&nodes[2]);
    for node in &nodes[..2] {
        node.wait("suspected", 10, |v| liveness_of(v, &nodes[2]) == Some(Liveness::Suspected))
            .await;
    }
    assert!(died.elapsed() < Duration::from_secs(5), "{:?}", died.elapsed());
    let again = mesh.start_in("us", 3, 2, &[1], Mesh::book());
    nodes[0].wait("back", 5, |v| liveness_of(v, &again) == Some(Liveness::Live)).await;
    assert_eq!(nodes[0].sees(&again).expect("seen").incarnation, Incarnation(2));
}

#[tokio::test(start_paused = true)]
async fn a_death_is_known_in_other_regions_within_seconds() {
    let (mut mesh, nodes) = grown(3, 5).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let bridges = mesh.bridges(&nodes).await;
    let victim = nodes.iter().find(|node| !bridges.contains(&node.store)).expect("some");
    let mut events = nodes.iter().map(|node| node.membership.events()).collect::<Vec<_>>();
    let died = Instant::now();
    mesh.kill(victim);
    for node in nodes.iter().filter(|node| node.store != victim.store) {
        node.wait("suspected", 10, |v| liveness_of(v, victim) == Some(Liveness::Suspected)).await;
    }
    assert!(died.elapsed() < Duration::from_secs(8), "{:?}", died.elapsed());
    let again = mesh.start_in(&victim.region, victim.number, 2, &[], victim.book.clone());
    for node in nodes.iter().filter(|node| node.store != victim.store) {
        node.wait("restarted", 10, |view| {
            view.nodes[&again.store].incarnation == Incarnation(2)
                && view.nodes[&again.store].liveness == Liveness::Live
        })
        .await;
    }
    for (node, events) in nodes.iter().zip(&mut events) {
        if node.store != victim.store {
            let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).collect();
            let told: Vec<_> = told.iter().map(|e| (e.kind, e.store)).collect();
            let expected = [EventKind::Suspected, EventKind::Restarted];
            assert_eq!(told, expected.map(|kind| (kind, victim.store)), "{:?}", node.store);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_cut_off_is_suspected_whole_and_heals() {
    // What is lost is forgotten after a minute, but in the worst case takes six: a heartbeat that
    // came late makes a node live for up to 85 s more, and one that forgot it may be told of it once
    // again by another that has yet to.
    let dead_node_grace = Duration::from_secs(60);
    let config = MembershipConfig {
        longest_rest: Duration::from_secs(4),
        heartbeat_lasts: Duration::from_secs(32),
        dead_node_grace,
        ..MembershipConfig::default()
    };
    let (mut mesh, nodes) = grown_with(config, 3, 4).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    for away in [Duration::from_secs(10), Duration::from_secs(360)] {
        cut_off(&mesh, &nodes, "r1");
        let cut = Instant::now();
        for node in nodes.iter().filter(|node| node.region != "r1") {
            node.wait("suspected", 20, |v| all_are(v, "r1", Liveness::Suspected)).await;
            assert!(all_are(&node.view(), &node.region, Liveness::Live), "its own stays");
        }
        assert!(cut.elapsed() < Duration::from_secs(15), "{:?}", cut.elapsed());
        for node in of_region(&nodes, "r1") {
            node.wait("the others are lost to it", 20, |v| {
                all_are(v, "r0", Liveness::Suspected) && all_are(v, "r1", Liveness::Live)
            })
            .await;
        }
        tokio::time::sleep(away).await;
        let forgotten = !nodes[0].view().nodes.contains_key(&of_region(&nodes, "r1")[0].store);
        assert_eq!(forgotten, away > dead_node_grace);
        assert!(mesh.net.swallowed() > 0, "the cut was real");
        mesh.net.heal_all();
        mesh.settled_within(&nodes, 60).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_whose_bridges_all_die_at_once_is_not_taken_for_lost() {
    let (mut mesh, nodes) = grown(2, 7).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let bridges = mesh.bridges(&nodes).await;
    let (dead, alive): (Vec<_>, Vec<_>) =
        nodes.iter().partition(|node| node.region == "r1" && bridges.contains(&node.store));
    assert_eq!(dead.len(), bridge::BRIDGES, "the fault is there");
    let mut events: Vec<_> = alive.iter().map(|node| node.membership.events()).collect();
    for node in &dead {
        mesh.kill(node);
    }
    for node in &alive {
        for victim in &dead {
            node.wait("suspected", 15, |v| liveness_of(v, victim) == Some(Liveness::Suspected))
                .await;
        }
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    for (node, events) in alive.iter().zip(&mut events) {
        let told = std::iter::from_fn(|| events.try_recv().ok());
        let wrong: Vec<_> = told.filter(|e| !dead.iter().any(|d| d.store == e.store)).collect();
        assert_eq!(wrong, [], "{:?}: no live node was suspected", node.store);
    }
    let now = mesh.bridges(&nodes).await;
    let new = alive.iter().filter(|n| n.region == "r1" && now.contains(&n.store)).count();
    assert_eq!(new, bridge::BRIDGES, "others have taken over");
    // What changes in that region is still told to the other.
    let victim = alive.iter().find(|node| node.region == "r1").expect("some");
    mesh.kill(victim);
    let other = alive.iter().find(|node| node.region == "r0").expect("some");
    other.wait("told", 15, |v| liveness_of(v, victim) == Some(Liveness::Suspected)).await;
}

#[tokio::test(start_paused = true)]
async fn a_mesh_that_knows_itself_by_its_books_starts_cold_in_any_order() {
    let (mut mesh, nodes) = grown(3, 4).await;
    // Every book has every node.
    tokio::time::sleep(Duration::from_secs(10)).await;
    for order in [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11, 3, 7, 0, 10, 2, 6, 9, 5, 1, 8, 4]] {
        let start = if order[0] == 0 { 2 } else { 3 };
        for node in &nodes {
            mesh.kill(node);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut started = Vec::new();
        for n in order {
            let node = &nodes[n];
            let again = mesh.start_in(&node.region, node.number, start, &[], node.book.clone());
            started.push(again);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        mesh.settled_within(&started, 60).await;
        for node in &started {
            mesh.kill(node);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_of_a_new_region_that_knows_one_stranger_finds_all_and_stops_with_a_word() {
    let (mut mesh, mut nodes) = grown(2, 4).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let seed = nodes.iter().find(|node| node.region == "r1").expect("some").number;
    nodes.push(mesh.start_in("new", 100, 1, &[seed], Mesh::book()));
    let took = Instant::now();
    mesh.settled(&nodes).await;
    assert!(took.elapsed() < Duration::from_secs(6), "{:?}", took.elapsed());
    let last = nodes.pop().expect("some");
    last.shutdown.cancel();
    for node in &nodes {
        node.wait("left", 5, |v| liveness_of(v, &last) == Some(Liveness::Left)).await;
    }
    let victim = nodes.pop().expect("some");
    victim.shutdown.cancel();
    for node in &nodes {
        node.wait("left", 5, |v| liveness_of(v, &victim) == Some(Liveness::Left)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn ten_regions_of_ten_converge_from_one_seed() {
    let began = Instant::now();
    let (mesh, nodes) = grown(10, 10).await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    // While they do not all know each other most nodes carry; those that are too many stop then.
    let mut bridges = 0;
    for _ in 0..120 {
        bridges = mesh.bridges(&nodes).await.len();
        if (30..=40).contains(&bridges) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!((30..=40).contains(&bridges), "{bridges} carry between regions");
}

#[tokio::test(start_paused = true)]
async fn hostile_calls_change_nothing_and_are_limited() {
    let (mesh, nodes) = grown(2, 2).await;
    let before = nodes[0].view();
    let wire = mesh.net.node(store(200));
    let (mut refused, mut answered) = (0, 0);
    for n in 0..200_u32 {
        let hash = blake3::hash(&n.to_le_bytes());
        let mut bytes = hash.as_bytes().repeat(1 + usize::try_from(n % 9).expect("small"));
        if n % 2 == 0 {
            bytes[..2].copy_from_slice(&[1, u8::try_from(n % 3).expect("small")]);
        }
        let called =
            wire.call(nodes[0].store, Kind::Roster, bytes.into(), Duration::from_secs(1)).await;
        match called {
            Ok(_) => answered += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(answered <= 8 && refused >= 192, "{answered} answered, {refused} refused");
    // What follows a request's own bytes is passed over, but not without end.
    let contact = roster::message::Contact {
        store: store(200),
        region: Name::new("r0").expect("name"),
        control: facts("n", 200).control,
        data: facts("n", 200).data,
    };
    let greeting = roster::message::encode(&roster::message::Request::Greet(contact));
    let greeting = greeting.expect("encodes");
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (more, passes) in [(0, true), (1_000, true), (4_096, false)] {
        let bytes = [greeting.clone(), vec![0; more]].concat().into();
        let call = wire.call(nodes[0].store, Kind::Roster, bytes, Duration::from_secs(1));
        assert_eq!(call.await.is_ok(), passes, "{more} bytes more");
    }
    wire.send(nodes[0].store, Kind::Roster, Bytes::from_static(b"no message"));
    wire.send(nodes[0].store, Kind::Bridges, Bytes::from_static(b"no gossip"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(nodes[0].view(), before);
}

/// How many runs the pool between regions holds, where most.
fn states_between(nodes: &[Node]) -> usize {
    let states = nodes.iter().map(|node| node.membership.inner.between_inlet.states());
    states.max().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_large_region_that_starts_at_once_with_one_seed_has_few_bridges() {
    let mut mesh = Mesh::new();
    let start = |n: u8| mesh.start_in(&region_name(u8::from(n > 70)), n, 1, &[1], Mesh::book());
    let nodes: Vec<_> = (1..=72).map(start).collect();
    mesh.settled_within(&nodes, 20).await;
    assert!(states_between(&nodes) <= 12, "{} runs", states_between(&nodes));
}

#[tokio::test(start_paused = true)]
async fn nodes_that_hear_nobody_for_a_while_do_not_all_enter_the_pool_between_regions() {
    let (mut mesh, nodes) = grown(2, 15).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = states_between(&nodes);
    let pairs = || {
        let rest = (0..nodes.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        rest.map(|(a, b)| (nodes[a].store, nodes[b].store))
    };
    pairs().for_each(|(a, b)| mesh.net.cut(a, b));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let me = nodes[0].store;
    let alone = |v: &View| v.nodes.iter().all(|(s, m)| *s == me || m.liveness != Liveness::Live);
    assert!(alone(&nodes[0].view()), "the cut was real");
    pairs().for_each(|(a, b)| mesh.net.heal(a, b));
    mesh.settled_within(&nodes, 60).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let after = states_between(&nodes);
    assert!(after <= before + 6, "{before} runs before, {after} after");
}

/// Kills the bridges of `r1`, and so all of it but one node.
fn leave_one(mesh: &mut Mesh, nodes: Vec<Node>, bridges: &BTreeSet<StoreId>) -> Vec<Node> {
    let dies = |node: &Node| node.region == "r1" && bridges.contains(&node.store);
    let (dead, alive): (Vec<_>, Vec<_>) = nodes.into_iter().partition(dies);
    assert_eq!(dead.len(), bridge::BRIDGES, "the fault is there");
    dead.iter().for_each(|node| mesh.kill(node));
    assert_eq!(of_region(&alive, "r1").len(), 1);
    alive
}

async fn see_each_other_live(alive: &[Node]) {
    for node in alive {
        node.wait("the living are live", 30, |view| {
            alive.iter().all(|other| liveness_of(view, other) == Some(Liveness::Live))
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_of_a_region_becomes_its_bridge_though_it_is_alone() {
    let (mut mesh, nodes) = grown(2, 4).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let bridges = mesh.bridges(&nodes).await;
    let alive = leave_one(&mut mesh, nodes, &bridges);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let last = of_region(&alive, "r1")[0];
    assert!(mesh.bridges(&alive).await.contains(&last.store));
    see_each_other_live(&alive).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_of_a_region_finds_the_others_again_after_a_cut_in_which_its_bridges_died() {
    let (mut mesh, nodes) = grown(2, 4).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let bridges = mesh.bridges(&nodes).await;
    cut_off(&mesh, &nodes, "r1");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let alive = leave_one(&mut mesh, nodes, &bridges);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let last = of_region(&alive, "r1")[0];
    assert!(!mesh.bridges(&alive).await.contains(&last.store), "it hears nobody");
    mesh.net.heal_all();
    see_each_other_live(&alive).await;
}
