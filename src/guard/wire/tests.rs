//! The bytes stand still, and no bytes do harm.

use proptest::prelude::*;

use super::*;

fn protected() -> Protected {
    Protected {
        group: ProcessGroup { service: ServiceId::from_bytes([1; 16]), leader: 2, start_ticks: 3 },
        epoch: Epoch::new(4, 5),
        freeze_at: BootTime::from_duration(Duration::from_nanos(6)),
        deadline: BootTime::NEVER,
    }
}

fn extension() -> Extension {
    Extension {
        service: ServiceId::from_bytes([1; 16]),
        epoch: Epoch::new(4, 5),
        freeze_at: BootTime::from_duration(Duration::from_nanos(6)),
        deadline: BootTime::from_duration(Duration::from_nanos(7)),
        keep_frozen: true,
        resume: false,
    }
}

const ID: &str = "01010101010101010101010101010101";

#[test]
fn requests_keep_their_bytes() {
    let golden = [
        (Request::Hello(Incarnation(9)), "0a00000001010900000000000000".to_owned()),
        (
            Request::Protect(protected()),
            format!(
                "3a0000000102{ID}02000000030000000000000004000000050000000000000006000000000000\
                 00ffffffffffffffff"
            ),
        ),
        (
            Request::Extend(vec![extension()]),
            format!(
                "33000000010301000000{ID}040000000500000000000000060000000000000007000000000000\
                 0001"
            ),
        ),
        (Request::Release(protected().group.service), format!("120000000104{ID}")),
        (Request::List, "020000000105".to_owned()),
        (Request::Ping, "020000000106".to_owned()),
        (Request::Watch("/dev/w".into()), "0800000001072f6465762f77".to_owned()),
    ];
    for (request, bytes) in golden {
        let frame = request.to_frame();
        assert_eq!(data_encoding::HEXLOWER.encode(&frame), bytes, "{request:?}");
        let (payload, taken) = split_frame(&frame, 100).expect("short").expect("whole");
        assert_eq!(taken, frame.len());
        assert_eq!(Request::from_payload(payload), Ok(request));
    }
}

#[test]
fn replies_keep_their_bytes() {
    let golden = [
        (Reply::Done, "020000000181".to_owned()),
        (Reply::Refused("no".to_owned()), "0400000001826e6f".to_owned()),
        (Reply::Extended(vec![protected().group.service]), format!("16000000018301000000{ID}")),
        (
            Reply::Held(vec![(protected(), Phase::Frozen)]),
            format!(
                "3f000000018401000000{ID}020000000300000000000000040000000500000000000000060000\
                 0000000000ffffffffffffffff01"
            ),
        ),
    ];
    for (reply, bytes) in golden {
        let frame = reply.to_frame();
        assert_eq!(data_encoding::HEXLOWER.encode(&frame), bytes, "{reply:?}");
        assert_eq!(Reply::from_payload(&frame[4..]), Ok(reply));
    }
}

#[test]
fn the_largest_messages_fit_their_frames() {
    let extend = Request::Extend(vec![extension(); MOST_EXTENSIONS]);
    assert!(extend.to_frame().len() <= MOST_REQUEST_BYTES);
    let held = vec![(protected(), Phase::Running); super::super::table::MOST_PROTECTED];
    assert!(Reply::Held(held).to_frame().len() <= MOST_REPLY_BYTES);
}

#[test]
fn what_is_off_by_anything_is_refused() {
    let good = Request::Protect(protected()).to_frame()[4..].to_vec();
    for cut in 0..good.len() {
        assert!(Request::from_payload(&good[..cut]).is_err(), "cut at {cut}");
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert_eq!(Request::from_payload(&longer), Err(WireError::Malformed));
    assert_eq!(Request::from_payload(&[2, 6]), Err(WireError::Version(2)));
    assert_eq!(Request::from_payload(&[1, 77]), Err(WireError::Kind(77)));
    let huge = u32::try_from(MOST_REQUEST_BYTES + 1).expect("fits").to_le_bytes();
    assert!(matches!(split_frame(&huge, MOST_REQUEST_BYTES), Err(WireError::TooLong(_))));
    assert_eq!(split_frame(&[5, 0, 0, 0, 1], 10), Ok(None));
    let claims_many = [&[1, 3][..], &u32::MAX.to_le_bytes()].concat();
    assert_eq!(Request::from_payload(&claims_many), Err(WireError::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = Request::from_payload(&bytes) {
            prop_assert_eq!(&request.to_frame()[4..], bytes.as_slice());
        }
        let _ = Reply::from_payload(&bytes);
        let _ = split_frame(&bytes, 100);
    }
}
