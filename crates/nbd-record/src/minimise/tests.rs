use super::*;

/// A program that crashes once it has been sent all of `needed`, and is executing the last one then.
fn program(needed: &[usize]) -> impl FnMut(&[bool]) -> Result<Attempt, ()> {
    move |chosen| {
        let all = needed.iter().all(|&index| chosen[index]);
        let last = needed.iter().copied().max().filter(|_| all);
        let sent = chosen.iter().enumerate();
        let sent = sent.map(|(index, is)| *is && last.is_none_or(|last| index <= last)).collect();
        let crash = last.map(|_| "killed by SIGABRT".into());
        Ok(Attempt { crash, sent, in_flight: last.into_iter().collect() })
    }
}

fn minimised(count: usize, needed: &[usize]) -> (Vec<usize>, usize) {
    let (mut attempts, mut last) = (0, Vec::new());
    let mut program = program(needed);
    let found = minimise(
        count,
        |chosen| {
            attempts += 1;
            program(chosen)
        },
        |chosen| {
            last = indices(chosen);
            Ok::<(), ()>(())
        },
    );
    let found = indices(&found.unwrap().unwrap());
    assert_eq!(found, last, "the last step is the result");
    (found, attempts)
}

#[test]
fn the_needed_requests_remain() {
    for needed in [&[0][..], &[99], &[3, 50], &[0, 1, 2, 3, 98, 99], &[7, 8, 9]] {
        let (found, attempts) = minimised(100, needed);
        assert_eq!(found, needed);
        assert!(attempts < 200, "{attempts} for {needed:?}");
    }
    assert_eq!(minimised(1, &[0]), (vec![0], 1));
}

#[test]
fn one_request_alone_is_found_at_the_second_attempt() {
    assert_eq!(minimised(1000, &[700]), (vec![700], 2));
}

#[test]
fn no_crash_is_not_minimised() {
    let never = |chosen: &[bool]| {
        Ok::<_, ()>(Attempt { crash: None, sent: chosen.to_vec(), in_flight: Vec::new() })
    };
    assert_eq!(minimise(10, never, |_| panic!("no step")), Ok(None));
}

/// Another crash is another matter.
#[test]
fn a_different_crash_is_not_kept() {
    let mut of_all = program(&[2, 5]);
    let attempt = |chosen: &[bool]| {
        let mut tried = of_all(chosen)?;
        if tried.crash.is_none() && chosen[7] {
            tried.crash = Some("exited with status 1".into());
        }
        Ok(tried)
    };
    let found = minimise(10, attempt, |_| Ok::<(), ()>(())).unwrap().unwrap();
    assert_eq!(indices(&found), [2, 5]);
}
