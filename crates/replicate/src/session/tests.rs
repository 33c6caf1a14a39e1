//! The wire form of a session's messages.

use flocker_base::{Epoch, Head, VolumeId, WallTime};

use super::wire::{Frame, Link, Message, Purpose};
use super::{Reason, SessionConfig, SessionError};
use crate::model::{Ancestor, MAX_DETAIL, MAX_LINEAGE, SnapshotInfo, StreamHeader};

fn header() -> StreamHeader {
    let head = Head::new(Epoch::new(1, 2), 3);
    StreamHeader {
        snapshot: SnapshotInfo {
            volume: VolumeId::from_bytes([1; 16]),
            head,
            guid: [2; 16],
            parent: Some([3; 16]),
            taken_at: WallTime::from_millis(4),
            bytes: 5,
            files: 6,
        },
        base: None,
        lineage: vec![Ancestor { guid: [2; 16], head }],
        length: 7,
        detail: vec![8],
    }
}

fn hex(message: &Message) -> String {
    let bytes = postcard::to_stdvec(message).expect("encodes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn messages_keep_their_bytes() {
    let ones = "01".repeat(16);
    let twos = "02".repeat(16);
    let threes = "03".repeat(16);
    let hello = Message::Hello {
        version: 1,
        purpose: Purpose::Pull,
        volume: VolumeId::from_bytes([1; 16]),
        epoch: Epoch::new(1, 2),
        backend: "dir".into(),
    };
    assert_eq!(hex(&hello), format!("00010110{ones}010203646972"));
    let refused = Message::Refused { reason: Reason::NotHeld, text: "x".into() };
    assert_eq!(hex(&refused), "01030178");
    let have = Message::Have { held: Vec::new(), partial: Some((None, [2; 16])) };
    assert_eq!(hex(&have), format!("02000100{twos}"));
    let offer = format!("0310{ones}010203{twos}01{threes}0405060001{twos}010203070108");
    assert_eq!(hex(&Message::Offer(Box::new(header()))), offer);
    assert_eq!(hex(&Message::Want { offset: 300 }), "04ac02");
    assert_eq!(hex(&Message::End { checksum: [2; 32] }), format!("05{twos}{twos}"));
    let ack = Message::Ack { guid: [2; 16], head: Head::new(Epoch::new(1, 2), 3) };
    assert_eq!(hex(&ack), format!("06{twos}010203"));
    assert_eq!(hex(&Message::Done), "07");
}

#[tokio::test]
async fn the_largest_messages_fit_in_a_frame() {
    let (near, far) = tokio::io::duplex(1024);
    let head = Head::new(Epoch::new(u32::MAX, u64::MAX), u64::MAX);
    let mut largest = header();
    largest.lineage = vec![Ancestor { guid: [255; 16], head }; MAX_LINEAGE];
    largest.detail = vec![255; MAX_DETAIL];
    let held = vec![Ancestor { guid: [255; 16], head }; super::wire::HAVE_MAX];
    let messages = [
        Message::Offer(Box::new(largest)),
        Message::Have { held, partial: Some((Some([255; 16]), [255; 16])) },
    ];
    let (mut near, mut far) =
        (Link::new(near, SessionConfig::default()), Link::new(far, SessionConfig::default()));
    for message in messages {
        let (sent, came) = tokio::join!(
            near.send(&message),
            far.message(std::time::Duration::from_secs(5), "reading")
        );
        sent.expect("sent");
        assert_eq!(came.expect("came"), message);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up() {
    let (near, _far) = tokio::io::duplex(16);
    let mut link = Link::new(near, SessionConfig::default());
    let waited = link.next(std::time::Duration::from_secs(9), "waiting").await;
    assert!(matches!(waited, Err(SessionError::TimedOut(..))), "{waited:?}");
    let stuck = link.data(&[0; 1000]).await;
    assert!(matches!(stuck, Err(SessionError::TimedOut(..))), "{stuck:?}");
}

#[tokio::test]
async fn data_comes_as_it_went() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut near, mut far) =
        (Link::new(near, SessionConfig::default()), Link::new(far, SessionConfig::default()));
    let data = vec![9; super::wire::DATA_MAX];
    near.data(&data).await.expect("sent");
    match far.next(std::time::Duration::from_secs(5), "reading").await.expect("came") {
        Frame::Data(came) => assert_eq!(came, data),
        Frame::Message(message) => panic!("{message:?}"),
    }
}
