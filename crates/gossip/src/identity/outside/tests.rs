//! Certificates of an outside authority: which are taken, and what is said of the others.

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::*;

const NOW: WallTime = WallTime::from_millis(1_800_000_000_000);

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

struct Wish {
    name: String,
    usages: Vec<ExtendedKeyUsagePurpose>,
    until: i32,
}

fn store() -> StoreId {
    StoreId::from_bytes([7; 16])
}

fn wish() -> Wish {
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Wish { name: flocker_quic::server_name(store()), usages, until: 2040 }
}

fn ca(by: Option<&Ca>) -> Ca {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, format!("{}", by.is_some()));
    let cert = match by {
        None => params.self_signed(&key),
        Some(by) => params.signed_by(&key, &by.issuer),
    };
    Ca { pem: cert.expect("a certificate").pem(), issuer: Issuer::new(params, key) }
}

/// A certificate (PEM) and its key (PEM).
fn node(by: &Ca, wish: &Wish) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![wish.name.clone()]).expect("good names");
    params.extended_key_usages.clone_from(&wish.usages);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(wish.until, 1, 1);
    let cert = params.signed_by(&key, &by.issuer).expect("a certificate");
    (cert.pem(), key.serialize_pem())
}

fn read(ca: &str, chain: &str, key: &str) -> Result<Outside, OutsideError> {
    Outside::read(ca.as_bytes(), chain.as_bytes(), key.as_bytes(), store(), NOW)
}

#[test]
fn a_certificate_of_the_operators_authority_is_taken_with_what_is_between() {
    let root = ca(None);
    let (cert, key) = node(&root, &wish());
    let outside = read(&root.pem, &cert, &key).expect("direct");
    assert!(outside.intermediates.is_empty());
    assert!(read(&root.pem, &format!("{cert}{}", root.pem), &key).is_ok(), "the root, too");

    let between = ca(Some(&root));
    let (cert, key) = node(&between, &wish());
    let outside = read(&root.pem, &format!("{cert}{}", between.pem), &key).expect("a chain");
    assert_eq!(outside.intermediates.len(), 1);
    let alone = read(&root.pem, &cert, &key).expect_err("the one between is missing");
    assert!(matches!(alone, OutsideError::Untrusted(_)), "{alone}");
    assert_eq!(format!("{outside:?}"), "Outside { .. }");
}

#[test]
fn certificates_for_other_purposes_and_of_others_are_refused_by_name() {
    let root = ca(None);
    let refused = |wish: &Wish, says: &str| {
        let (cert, key) = node(&root, wish);
        let error = read(&root.pem, &cert, &key).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(&Wish { name: "www.example.com".to_owned(), ..wish() }, "www.example.com");
    let other = flocker_quic::server_name(StoreId::from_bytes([8; 16]));
    refused(&Wish { name: other.clone(), ..wish() }, &other);
    let [server, client] =
        [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    refused(&Wish { usages: vec![server], ..wish() }, "clientAuth");
    refused(&Wish { usages: vec![client], ..wish() }, "serverAuth");
    refused(&Wish { usages: Vec::new(), ..wish() }, "serverAuth");
    refused(&Wish { until: 2025, ..wish() }, "xpired");
    let (cert, key) = node(&ca(None), &wish());
    let error = read(&root.pem, &cert, &key).expect_err("another authority");
    assert!(matches!(error, OutsideError::Untrusted(_)), "{error}");
}

#[test]
fn files_of_another_form_are_refused_by_name() {
    let root = ca(None);
    let (cert, key) = node(&root, &wish());
    let two = format!("{}{}", root.pem, ca(None).pem);
    assert_eq!(read(&two, &cert, &key).expect_err("two"), OutsideError::Authority(2));
    assert_eq!(read("", &cert, &key).expect_err("none"), OutsideError::Authority(0));
    assert_eq!(read(&cert, &cert, &key).expect_err("a leaf"), OutsideError::NoAuthority);
    assert_eq!(read(&root.pem, "", &key).expect_err("none"), OutsideError::Chain(0));
    assert_eq!(read(&root.pem, &root.pem, &key).expect_err("none"), OutsideError::Chain(0));
    assert_eq!(read(&root.pem, &cert.repeat(5), &key).expect_err("many"), OutsideError::Chain(5));
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for bad in ["", encrypted.as_str(), cert.as_str()] {
        assert_eq!(read(&root.pem, &cert, bad).expect_err("no key"), OutsideError::Key);
    }
}

proptest! {
    #[test]
    fn hostile_files_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut pem = b"-----BEGIN CERTIFICATE-----\n".to_vec();
        pem.extend(data_encoding::BASE64.encode(&bytes).into_bytes());
        pem.extend(b"\n-----END CERTIFICATE-----\n");
        prop_assert!(Outside::read(&pem, &pem, &pem, store(), NOW).is_err());
        prop_assert!(Outside::read(&bytes, &bytes, &bytes, store(), NOW).is_err());
        prop_assert!(check(&bytes, &[], &bytes, store(), NOW).is_err());
    }
}
