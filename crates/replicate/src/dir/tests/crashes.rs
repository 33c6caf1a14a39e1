//! Every step on the disk fails once, as on a full disk or in a crash; then the process starts
//! again. What was promised before must be there, and the work must go on.

use std::io;

use super::*;

/// Runs the work with its first, second, third ... step on the disk failing, until none fails.
/// After each failure `check` looks at a backend opened afresh.
fn with_each_step_failing(
    kind: io::ErrorKind,
    prepare: impl Fn() -> Fresh,
    work: impl Fn(&Fresh) -> Result<()>,
    check: impl Fn(&Fresh, u32),
) -> u32 {
    for after in 0..10_000 {
        let fresh = prepare();
        crash::arm(after, kind);
        let result = work(&fresh);
        let failed = crash::disarm();
        if !failed {
            result.expect("nothing failed");
            return after;
        }
        assert!(result.is_err(), "a failed step {after} is not passed over");
        let fresh = fresh.reopen();
        check(&fresh, after);
        work(&fresh).expect("the second attempt succeeds");
    }
    panic!("too many steps");
}

fn changed_master() -> Fresh {
    let (master, live) = Fresh::master();
    fs::write(live.join("a"), noise(1, 100_000)).expect("write");
    fs::create_dir(live.join("folder")).expect("folder");
    master.take(1).expect("first");
    fs::write(live.join("a"), noise(2, 120_000)).expect("write");
    fs::write(live.join("folder/b"), noise(3, 10)).expect("write");
    master
}

fn snapshot(fresh: &Fresh, number: u8) -> Result<()> {
    let now = WallTime::default();
    fresh.backend.snapshot(V, Epoch::new(0, 1), now, [number; 16], &Still).map(|_taken| ())
}

#[test]
fn a_snapshot_that_fails_anywhere_leaves_the_last_one_intact() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        let steps = with_each_step_failing(
            kind,
            changed_master,
            |master| snapshot(master, 2),
            |master, _| {
                let line = master.backend.list(V).expect("list");
                assert_eq!(line[0].guid, [1; 16]);
                let out = tempfile::tempdir().expect("folder");
                master.backend.export(V, [1; 16], &out.path().join("x")).expect("whole");
                assert_eq!(fs::read(out.path().join("x/a")).expect("read"), noise(1, 100_000));
            },
        );
        assert!(steps >= 8, "{steps} steps were tried");
    }
}

#[test]
fn a_receipt_that_fails_anywhere_shows_nothing_and_goes_on() {
    let (master, live) = Fresh::master();
    fs::write(live.join("a"), noise(1, 300_000)).expect("write");
    fs::create_dir(live.join("folder")).expect("folder");
    fs::write(live.join("folder/b"), "b").expect("write");
    master.take(1).expect("first");
    let first = master.stream(None);
    fs::write(live.join("a"), noise(2, 320_000)).expect("write");
    fs::remove_dir_all(live.join("folder")).expect("remove");
    fs::write(live.join("folder"), "now a file").expect("write");
    master.take(2).expect("second");
    let (header, bytes) = master.stream(Some([1; 16]));
    let prepare = || {
        let replica = fresh();
        replica.backend.receive(&first.0, 0, &mut first.1.as_slice()).expect("receive");
        replica.backend.settle(V).expect("settle");
        replica
    };
    let work = |replica: &Fresh| {
        if replica.newest() != Some([2; 16]) {
            let offset = replica.backend.received(&header)?;
            let rest = usize::try_from(offset).expect("small");
            replica.backend.receive(&header, offset, &mut &bytes[rest..])?;
        }
        replica.backend.settle(V)
    };
    let seen = std::cell::Cell::new((0, 0));
    let steps = with_each_step_failing(io::ErrorKind::StorageFull, prepare, work, |replica, _| {
        let (mut before, mut after) = seen.get();
        match replica.newest() {
            Some(guid) if guid == [2; 16] => after += 1,
            Some(guid) if guid == [1; 16] => before += 1,
            other => panic!("neither snapshot is there: {other:?}"),
        }
        seen.set((before, after));
        let out = tempfile::tempdir().expect("folder");
        for info in replica.backend.list(V).expect("list") {
            let into = out.path().join(short_name(&info));
            replica.backend.export(V, info.guid, &into).expect("what is listed is whole");
        }
    });
    let (before, after) = seen.get();
    assert!(before > 10 && after > 5, "{steps} steps: {before} before, {after} after the commit");
}

#[test]
fn after_any_crash_on_the_way_the_live_folder_still_reaches_the_newest_snapshot() {
    let (master, live) = Fresh::master();
    fs::write(live.join("a"), noise(1, 300_000)).expect("write");
    fs::hard_link(live.join("a"), live.join("linked")).expect("link");
    fs::create_dir(live.join("folder")).expect("folder");
    fs::write(live.join("folder/b"), "b").expect("write");
    symlink("a", live.join("s")).expect("link");
    master.take(1).expect("first");
    let first = master.stream(None);
    fs::write(live.join("a"), noise(2, 320_000)).expect("write");
    fs::rename(live.join("folder"), live.join("moved")).expect("rename");
    fs::remove_file(live.join("s")).expect("remove");
    symlink("b", live.join("s")).expect("link");
    master.take(2).expect("second");
    let second = master.stream(Some([1; 16]));
    let prepare = || {
        let replica = fresh();
        for (header, bytes) in [&first, &second] {
            replica.backend.receive(header, 0, &mut bytes.as_slice()).expect("receive");
            if header == &first.0 {
                replica.backend.settle(V).expect("settle");
            }
        }
        replica
    };
    let steps = with_each_step_failing(
        io::ErrorKind::Other,
        prepare,
        |replica| replica.backend.settle(V),
        |replica, _| {
            let copy = replica.backend.promote(V).expect("promote after the crash");
            trees::assert_same(&live, &copy);
            replica.backend.demote(V, &keep(9)).expect("demote");
        },
    );
    assert!(steps > 10, "{steps} steps were tried");
}

#[test]
fn pruning_that_fails_anywhere_loses_nothing() {
    let prepare = || {
        let (master, live) = Fresh::master();
        for number in 1..=6 {
            fs::write(live.join("a"), noise(u64::from(number), 60_000)).expect("write");
            if number == 1 {
                fs::write(live.join("kept"), noise(50, 20_000)).expect("write");
            }
            master.take(number).expect("snapshot");
        }
        master
    };
    let retention = Retention { newest: 2, ..Retention::default() };
    with_each_step_failing(
        io::ErrorKind::StorageFull,
        prepare,
        |master| master.backend.prune(V, &retention).map(|_gone| ()),
        |master, _| {
            let line = master.backend.list(V).expect("list");
            assert_eq!(line.last().map(|info| info.guid), Some([6; 16]));
            let out = tempfile::tempdir().expect("folder");
            for info in line {
                let into = out.path().join(short_name(&info));
                master.backend.export(V, info.guid, &into).expect("what is listed is whole");
                assert_eq!(fs::read(into.join("kept")).expect("read"), noise(50, 20_000));
            }
        },
    );
}

#[test]
fn a_roll_back_or_a_demotion_that_is_interrupted_keeps_the_tail() {
    let prepare = || {
        let master = changed_master();
        master.take(2).expect("second");
        let live = master.backend.promote(V).expect("promote");
        fs::write(live.join("tail"), "never snapshotted").expect("write");
        master
    };
    let has_tail = |master: &Fresh| {
        let live = master.backend.volume(V).expect("volume").path("live/tail");
        let branches = master.backend.branches(V).expect("branches");
        let out = tempfile::tempdir().expect("folder");
        let kept = branches.iter().flat_map(|branch| &branch.snapshots).any(|info| {
            let into = out.path().join(short_name(info));
            master.backend.export(V, info.guid, &into).is_ok() && into.join("tail").exists()
        });
        live.exists() || kept
    };
    let rolled = |master: &Fresh| -> Result<()> {
        if master.newest() == Some([2; 16]) {
            master.backend.rollback(V, [1; 16], [8; 16], &keep(9))?;
        }
        master.backend.promote(V).map(|_live| ())
    };
    with_each_step_failing(io::ErrorKind::Other, prepare, rolled, |master, step| {
        assert!(has_tail(master), "step {step}");
    });
    let demoted = |master: &Fresh| master.backend.demote(V, &keep(9)).map(|_branch| ());
    with_each_step_failing(io::ErrorKind::Other, prepare, demoted, |master, step| {
        assert!(has_tail(master), "step {step}");
    });
}

#[test]
fn what_a_power_cut_left_unwritten_of_a_kept_stream_comes_again() {
    let (master, live) = Fresh::master();
    fs::write(live.join("a"), noise(1, 500_000)).expect("write");
    master.take(1).expect("first");
    let (header, bytes) = master.stream(None);
    let replica = fresh();
    let half = bytes.len() / 2;
    let cut = replica.backend.receive(&header, 0, &mut &bytes[..half]);
    assert!(matches!(cut, Err(BackendError::Cut { .. })));
    // The tail of the file reads as zeros after the crash.
    let part = replica.backend.volume(V).expect("volume").path("incoming/part");
    let file = File::options().write(true).open(&part).expect("open");
    let len = file.metadata().expect("stat").len();
    file.write_all_at(&vec![0; 100_000], len - 100_000).expect("write");
    let replica = replica.reopen();
    let mut attempts = 0;
    while replica.newest().is_none() {
        attempts += 1;
        assert!(attempts < 5, "it gets through");
        let offset = replica.backend.received(&header).expect("received");
        let rest = usize::try_from(offset).expect("small");
        let result = replica.backend.receive(&header, offset, &mut &bytes[rest..]);
        if let Err(error) = result {
            assert!(
                matches!(error, BackendError::Cut { .. } | BackendError::BadStream { .. }),
                "{error}"
            );
        }
    }
    assert!(attempts > 1);
    trees::assert_same(&live, &replica.backend.promote(V).expect("promote"));
}
