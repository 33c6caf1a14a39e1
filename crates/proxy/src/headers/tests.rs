//! Header rules that need no socket.

use super::*;

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in list {
        let value = HeaderValue::from_str(value).expect("a value");
        headers.append(HeaderName::from_static(name), value);
    }
    headers
}

fn client(ip: &str) -> Origin {
    Origin::client(ip.parse().expect("an address"), &ForwardedPolicy::Replace)
}

#[test]
fn an_ipv6_client_is_told_in_the_form_each_header_has() {
    let mut map = headers(&[("host", "a")]);
    prepare_request(&mut map, &client("2001:db8::1"), Wants::Answer);
    assert_eq!(map["x-forwarded-for"], "2001:db8::1");
    assert_eq!(map["forwarded"], "for=\"[2001:db8::1]\";proto=http");
    let mut map = headers(&[("host", "a")]);
    prepare_request(&mut map, &client("::ffff:10.0.0.1"), Wants::Answer);
    assert_eq!(map["x-forwarded-for"], "10.0.0.1");
}

#[test]
fn a_peers_word_about_the_client_stands() {
    let mut map = headers(&[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4")]);
    prepare_request(&mut map, &Origin::Peer(StoreId::from_bytes([1; 16])), Wants::Answer);
    assert_eq!(map["x-forwarded-for"], "1.2.3.4");
    assert_eq!(map["forwarded"], "for=1.2.3.4");
}

#[test]
fn only_a_real_upgrade_is_one_and_never_to_http_2() {
    let asked =
        |connection, upgrade| wants(&headers(&[("connection", connection), ("upgrade", upgrade)]));
    assert_eq!(asked("Upgrade", "websocket"), Wants::Upgrade);
    assert_eq!(asked("keep-alive, UPGRADE", "websocket"), Wants::Upgrade);
    assert_eq!(asked("keep-alive", "websocket"), Wants::Answer);
    assert_eq!(asked("upgrade", "h2c"), Wants::Answer);
    assert_eq!(asked("upgrade", "websocket, H2C"), Wants::Answer);
    assert_eq!(wants(&headers(&[("connection", "upgrade")])), Wants::Answer);
}

#[test]
fn hops_survive_the_way_and_nonsense_is_refused() {
    let hops = [StoreId::from_bytes([1; 16]), StoreId::from_bytes([2; 16])];
    let mut map = HeaderMap::new();
    assert_eq!(parse_hops(&map, 3), Some(Vec::new()));
    map.insert(HOPS, hops_value(&hops));
    assert_eq!(map[HOPS], "01010101010101010101010101010101,02020202020202020202020202020202");
    assert_eq!(parse_hops(&map, 3).as_deref(), Some(&hops[..]));
    assert_eq!(parse_hops(&map, 1), None, "more than a node may have passed");
    for bad in ["", "x", "1,2", ",", "01010101010101010101010101010101,"] {
        map.insert(HOPS, HeaderValue::from_str(bad).expect("a value"));
        assert_eq!(parse_hops(&map, 3), None, "{bad}");
    }
}

#[test]
fn a_length_beside_a_coding_is_dropped_from_a_response() {
    let mut map = headers(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
    prepare_response(&mut map, false);
    assert!(map.is_empty(), "{map:?}");
    let mut map = headers(&[("content-length", "5")]);
    prepare_response(&mut map, false);
    assert_eq!(map["content-length"], "5");
}

#[test]
fn the_backends_word_on_idle_connections_is_read() {
    let said = |text| keep_alive_seconds(&headers(&[("keep-alive", text)]));
    assert_eq!(said("timeout=5, max=100"), Some(5));
    assert_eq!(said("max=100,timeout=15"), Some(15));
    assert_eq!(said("timeout=-1"), None);
    assert_eq!(said("whatever"), None);
}
