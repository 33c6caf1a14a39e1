//! Identities: what is signed, what is refused, and what a file gives back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use flocker_base::durable;

use super::file::StoredIdentity;
use super::*;

const NOW: WallTime = WallTime::from_millis(1_800_000_000_000);

fn cluster() -> ClusterId {
    ClusterId::from_bytes([1; 16])
}

fn store(byte: u8) -> StoreId {
    StoreId::from_bytes([byte; 16])
}

fn founder() -> NodeIdentity {
    let authority = Authority::generate(cluster(), NOW).expect("authority");
    NodeIdentity::found(cluster(), store(7), authority, NOW).expect("identity")
}

#[test]
fn a_certificate_names_the_store_and_is_signed_by_the_authority() {
    let identity = founder();
    assert_eq!(flocker_quic::store_of_certificate(identity.cert_der()), Some(store(7)));
    let ca = parse(identity.authority().cert_der()).expect("parses");
    let cert = parse(identity.cert_der()).expect("parses");
    cert.verify_signature(Some(ca.public_key())).expect("signed by the authority");
    assert!(!cert.is_ca(), "a node's certificate signs nothing");
    assert!(ca.is_ca());
    assert_eq!(
        identity.authority().fingerprint(),
        <[u8; 32]>::from(Sha256::digest(identity.authority().cert_der()))
    );
}

#[test]
fn a_saved_identity_comes_back_and_only_its_owner_can_read_it() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().join("a/state");
    assert!(NodeIdentity::load(&state).expect("nothing there").is_none());
    let identity = founder();
    identity.save(&state).expect("saved");
    assert_eq!(NodeIdentity::load(&state).expect("loads"), Some(identity));
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join(FILE)), 0o600);
}

#[test]
fn a_state_folder_open_to_others_is_closed() {
    let folder = tempfile::tempdir().expect("folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    founder().save(folder.path()).expect("saved");
    let mode = fs::metadata(folder.path()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn damage_and_foreign_content_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    founder().save(folder.path()).expect("saved");
    let path = folder.path().join(FILE);
    let mut bytes = fs::read(&path).expect("read");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    durable::write_plain(&path, &bytes, 0o600).expect("damaged");
    let error = NodeIdentity::load(folder.path()).expect_err("refused").to_string();
    assert!(error.contains("identity") && error.contains("damaged"), "{error}");
    durable::write(&path, FILE_VERSION, b"something else").expect("written");
    assert!(matches!(NodeIdentity::load(folder.path()), Err(IdentityError::Malformed(_))));
}

#[test]
fn the_files_form_is_fixed() {
    let stored = StoredIdentity {
        cluster: ClusterId::from_bytes([1; 16]),
        store: StoreId::from_bytes([2; 16]),
        authority_cert: vec![3],
        authority_key: vec![4, 4],
        cert: vec![5],
        key: vec![6],
    };
    let bytes = postcard::to_stdvec(&stored).expect("encodes");
    let mut golden = vec![16];
    golden.extend([1; 16]);
    golden.push(16);
    golden.extend([2; 16]);
    golden.extend([1, 3, 2, 4, 4, 1, 5, 1, 6]);
    assert_eq!(bytes, golden);
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let (one, two) = (founder(), founder());
    let mixed_authority =
        Authority::from_parts(one.authority.cert_der.clone(), two.authority.key_der.clone());
    assert!(matches!(mixed_authority, Err(IdentityError::Inconsistent(_))));
    let leaf_as_authority = Authority::from_parts(one.cert_der.clone(), one.key_der.clone());
    assert!(matches!(leaf_as_authority, Err(IdentityError::Inconsistent(_))));
    let parts = |store, authority: &Authority, cert: &[u8], key: &Zeroizing<Vec<u8>>| {
        NodeIdentity::from_parts(cluster(), store, authority.clone(), cert.to_vec(), key.clone())
    };
    assert!(parts(store(7), &one.authority, &one.cert_der, &one.key_der).is_ok());
    assert!(parts(store(8), &one.authority, &one.cert_der, &one.key_der).is_err(), "store");
    assert!(parts(store(7), &two.authority, &one.cert_der, &one.key_der).is_err(), "authority");
    assert!(parts(store(7), &one.authority, &one.cert_der, &two.key_der).is_err(), "key");
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    let identity = founder();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let mut wish = CertificateParams::new(vec![flocker_quic::server_name(store(7))]).expect("name");
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = wish.serialize_request(&key).expect("request").der().to_vec();
    let cert = identity.authority.issue(&csr, store(9), NOW, NODE_VALIDITY).expect("issued");
    assert_eq!(flocker_quic::store_of_certificate(&cert), Some(store(9)));
    assert!(!parse(&cert).expect("parses").is_ca());
}

#[test]
fn weak_foreign_and_oversize_requests_are_refused() {
    let authority = founder().authority;
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
    let csr = CertificateParams::default().serialize_request(&other).expect("request");
    let refused = authority.issue(csr.der(), store(1), NOW, NODE_VALIDITY);
    assert!(matches!(refused, Err(IdentityError::Request(_))));
    let refused = authority.issue(&[0x30; MAX_CSR_BYTES + 1], store(1), NOW, NODE_VALIDITY);
    assert!(matches!(refused, Err(IdentityError::Request(_))));
}

#[test]
fn certificates_survive_wild_clocks_and_are_renewed_in_time() {
    let day = Duration::from_secs(24 * 3600);
    for now in [WallTime::default(), WallTime::from_millis(u64::MAX)] {
        let authority = Authority::generate(cluster(), now).expect("authority");
        NodeIdentity::found(cluster(), store(1), authority, now).expect("identity");
    }
    let identity = founder();
    assert!(!identity.needs_renewal(NOW).expect("read"));
    assert!(identity.needs_renewal(NOW + day * 122).expect("read"));
    for later in [day * 122, day * 300, day * 1000] {
        let renewed = identity.renewed(NOW + later).expect("renewed");
        assert!(!renewed.needs_renewal(NOW + later).expect("read"));
        assert_ne!(renewed.key_der, identity.key_der, "a new key");
        let left = renewed.validity().expect("read").left(NOW + later);
        assert!(left > NODE_VALIDITY - day, "{left:?}");
    }
    let behind = identity.renewed(WallTime::default()).expect("renewed");
    assert_eq!(behind.validity().expect("read"), identity.validity().expect("read"));
    let from = identity.validity().expect("read").from;
    assert!(from + day * 365 < NOW, "a peer whose clock is a year behind accepts it");
}

#[test]
fn no_certificate_outlasts_the_authority() {
    let authority = founder().authority;
    let end = authority.validity().expect("read").until;
    let near = WallTime::from_millis(end.as_millis() - 3_600_000);
    let identity = NodeIdentity::found(cluster(), store(7), authority, near).expect("identity");
    assert_eq!(identity.validity().expect("read").until, end);
    assert!(!identity.needs_renewal(near).expect("read"), "a new one would end at the same time");
}

#[test]
fn nothing_secret_is_printed() {
    let identity = founder();
    let printed = format!("{identity:?} {:?}", identity.authority());
    assert!(printed.len() < 200, "{printed}");
}

proptest! {
    #[test]
    fn hostile_requests_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let identity = founder();
        prop_assert!(identity.authority.issue(&bytes, store(1), NOW, NODE_VALIDITY).is_err());
    }

    #[test]
    fn a_flipped_bit_never_gives_another_key_a_certificate(position in 0_usize..2000) {
        let identity = founder();
        let request = KeyRequest::generate(store(2)).expect("request");
        let mut csr = request.csr_der.clone();
        let bit = position % (csr.len() * 8);
        csr[bit / 8] ^= 1 << (bit % 8);
        // Some bits are not covered by the signature (the encoding of its algorithm).
        if let Ok(cert) = identity.authority.issue(&csr, store(2), NOW, NODE_VALIDITY) {
            let key = KeyPair::try_from(request.key_der.as_slice()).expect("key");
            let cert = parse(&cert).expect("parses");
            prop_assert_eq!(public_key(&cert), key.der_bytes());
        }
    }
}
