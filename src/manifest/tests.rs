//! Deployment files as users write them, right and wrong.

use proptest::prelude::*;

use super::*;

const SHOP: &str = "\
services:
  shop:
    command: [flocker, tally]
    environment:
      GREETING: hello ${WHO:-world}
      VERSION: 1.10
      EMPTY:
    volumes: ['shop-data:/data']
    stop_grace_period: 1m30s
    x-flocker:
      engine: process
      health: /healthz
      routes: ['http://Shop.example.com/']
volumes:
  shop-data:
    x-flocker:
      replicas: 2
      remote-replicas: 0
      snapshot-every: 500ms
      lag-limit: 1h
      failover: manual
";

fn nothing(_: &str) -> Option<String> {
    None
}

fn read(text: &str) -> Result<Deployment, Fault> {
    parse("shop.yaml", text.as_bytes(), &nothing)
}

#[test]
fn a_whole_file_is_read() {
    let deployment = read(SHOP).expect("reads");
    let [service] = &deployment.services[..] else { panic!("one service") };
    assert_eq!(service.command, ["flocker", "tally"]);
    assert_eq!(service.environment["GREETING"], "hello world");
    assert_eq!(service.environment["VERSION"], "1.10");
    assert_eq!(service.environment["EMPTY"], "");
    assert_eq!((service.volume.as_str(), service.volume_path.as_str()), ("shop-data", "/data"));
    assert_eq!(service.stop_grace(), Duration::from_secs(90));
    assert_eq!(service.health_path.as_deref(), Some("/healthz"));
    let policy = deployment.volumes[0].policy();
    assert_eq!((policy.local_replicas, policy.remote_replicas), (2, 0));
    assert_eq!(policy.snapshot_interval, Duration::from_millis(500));
    assert_eq!(policy.lag_limit, Duration::from_secs(3600));
    assert_eq!(policy.failover, Failover::Manual);
    assert_eq!(deployment.routes[0].to_string(), "http://shop.example.com");
    let json = serde_json::to_string(&deployment).expect("JSON");
    assert_eq!(serde_json::from_str::<Deployment>(&json).expect("reads"), deployment);
}

#[test]
fn the_other_forms_say_the_same() {
    let other = "\
x-common: &common
  stop_grace_period: 90s
name: shop
volumes: {shop-data: {x-flocker: {replicas: 2, remote-replicas: 0, snapshot-every: 500ms, lag-limit: 60m, failover: manual}}}
services:
  shop:
    <<: *common
    command: flocker 'tally'
    environment: ['GREETING=hello world', VERSION=1.10, EMPTY=]
    volumes: [{type: volume, source: shop-data, target: /data}]
    x-flocker: {health: /healthz, routes: [http://shop.example.com]}
";
    assert_eq!(read(other).expect("reads"), read(SHOP).expect("reads"));
}

#[test]
fn defaults_are_those_of_the_model() {
    let text = "services: {a: {command: x, volumes: [v:/v]}}\nvolumes: {v: }\n";
    let deployment = read(text).expect("reads");
    assert_eq!(deployment.volumes[0].policy(), VolumePolicy::default());
    assert_eq!(deployment.services[0].stop_grace(), Duration::from_secs(10));
}

#[test]
fn a_misspelt_key_is_named_with_the_right_one() {
    for (wrong, right, line, path) in [
        ("replcas: 2", "replicas", 17, "volumes.shop-data.x-flocker.replcas"),
        (
            "remote_replicas: 2",
            "remote-replicas",
            17,
            "volumes.shop-data.x-flocker.remote_replicas",
        ),
        ("Replicas: 2", "replicas", 17, "volumes.shop-data.x-flocker.Replicas"),
        ("snapshot_evry: 2s", "snapshot-every", 17, "volumes.shop-data.x-flocker.snapshot_evry"),
    ] {
        let fault = read(&SHOP.replace("replicas: 2\n", &format!("{wrong}\n"))).expect_err(wrong);
        assert_eq!((fault.line, fault.path.as_str()), (line, path));
        assert!(fault.what.starts_with("unknown key"), "{fault}");
        assert_eq!(fault.hint, format!("did you mean '{right}'?"));
    }
    let fault = read(&SHOP.replace("    command:", "    comand:")).expect_err("refused");
    assert_eq!(fault.to_string(), "shop.yaml:3: services.shop.comand: unknown key 'comand'");
    assert_eq!(fault.hint, "did you mean 'command'?");
    let fault = read(&SHOP.replace("services:", "servces:")).expect_err("refused");
    assert_eq!(fault.hint, "did you mean 'services'?");
}

#[test]
fn what_can_not_be_deployed_is_refused_with_its_place_and_a_hint() {
    for (from, to, says) in [
        ("command: [flocker, tally]", "image: nginx", "'image' is not supported"),
        ("command: [flocker, tally]", "command: []", "names no program"),
        ("command: [flocker, tally]", "command: \"a 'b\"", "not closed"),
        ("    command: [flocker, tally]\n", "", "no 'command'"),
        ("['shop-data:/data']", "['shop-dta:/data']", "no volume 'shop-dta'"),
        ("['shop-data:/data']", "['./data:/data']", "folder of one machine"),
        ("['shop-data:/data']", "['shop-data:data']", "not an absolute path"),
        ("['shop-data:/data']", "['shop-data:/a/../b']", "not an absolute path"),
        ("['shop-data:/data']", "['shop-data:/data:ro']", "mode 'ro'"),
        ("['shop-data:/data']", "[a:/a, b:/b]", "exactly one volume"),
        ("    volumes: ['shop-data:/data']\n", "", "has no volume"),
        ("1m30s", "soon", "not a time"),
        ("1m30s", "2days", "out of range"),
        ("500ms", "2h", "smaller than 'snapshot-every'"),
        ("replicas: 2\n", "replicas: 200\n", "not a number"),
        ("replicas: 2\n", "replicas: -1\n", "not a number"),
        ("failover: manual", "failover: manul", "not a choice"),
        ("engine: process", "engine: docker", "not a choice"),
        ("/healthz", "healthz", "not the path of a URL"),
        ("http://Shop.example.com/", "https://shop", "begin with 'http://'"),
        ("http://Shop.example.com/", "http://shop/a", "whole host"),
        ("http://Shop.example.com/", "http://shop:80", "port"),
        ("http://Shop.example.com/", "http://sh op", "DNS name"),
        ("http://Shop.example.com/", "http://a', 'http://A", "given to 'shop' as well"),
        ("GREETING: hello", "PORT: hello", "given by flocker"),
        ("GREETING: hello", "A-B: hello", "name of a variable"),
        ("${WHO:-world}", "${WHO}", "WHO is not set"),
        ("  shop:\n", "  Shop_1:\n", "not a name"),
        ("volumes:\n  shop-data:", "networks: {}\nvolumes:\n  shop-data:", "'networks'"),
    ] {
        let text = SHOP.replacen(from, to, 1);
        assert_ne!(text, SHOP, "{from}");
        let fault = read(&text).expect_err(says);
        assert!(fault.to_string().contains(says), "{says}: {fault}");
        assert!(fault.line > 0 && !fault.path.is_empty(), "{says}: {fault:?}");
        assert!(!fault.hint.is_empty() || fault.what.contains("not a name"), "{fault:?}");
    }
}

#[test]
fn a_volume_has_one_service() {
    let text = "services:\n  a: {command: x, volumes: [v:/v]}\n  b: {command: x, volumes: [v:/v]}\nvolumes: {v: {}}\n";
    let fault = read(text).expect_err("refused");
    assert_eq!(
        fault.to_string(),
        "shop.yaml:3: services.b.volumes[0]: the volume 'v' is used by 'a' as well"
    );
}

#[test]
fn files_that_are_no_text_or_too_large_are_refused() {
    let fault = parse("f", b"a: 1\nb: \xff\n", &nothing).expect_err("refused");
    assert_eq!((fault.line, fault.what.as_str()), (2, "not UTF-8 text"));
    let fault = parse("f", &vec![b'#'; MAX_BYTES + 1], &nothing).expect_err("refused");
    assert!(fault.what.contains("larger than"), "{fault}");
    let many: String =
        (0..1001).map(|i| format!("  s{i}: {{command: x, volumes: [v:/v]}}\n")).collect();
    let fault = read(&format!("services:\n{many}")).expect_err("refused");
    assert!(fault.what.contains("too many"), "{fault}");
    assert!(matches!(load(Path::new("/no/such/file")), Err(ManifestError::Missing(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any damage to a good file gives a deployment or a fault that names the file.
    #[test]
    fn damaged_files_are_read_or_refused(cut in 0..SHOP.len(), length in 0..40_usize,
            junk in "[-a-z:{}\\[\\]&*!|>'\"#?$ \n,~<0-9]{0,30}") {
        let mut text = SHOP.to_owned();
        let end = (cut + length).min(text.len());
        text.replace_range(cut..end, &junk);
        if let Err(fault) = read(&text) {
            prop_assert!(fault.to_string().starts_with("shop.yaml:"), "{}", fault);
            prop_assert!(!fault.hint.is_empty() || !fault.what.is_empty());
        }
    }

    #[test]
    fn any_bytes_are_refused_in_order(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse("f", &bytes, &nothing).is_err());
    }

    /// What is written in any environment value comes out as written, once `$` is doubled.
    #[test]
    fn values_survive(value in "\\PC{0,40}") {
        let quoted = serde_json::to_string(&value.replace('$', "$$")).expect("JSON");
        let text = SHOP.replace("hello ${WHO:-world}", &quoted);
        prop_assert_eq!(&read(&text).expect("reads").services[0].environment["GREETING"], &value);
    }
}
