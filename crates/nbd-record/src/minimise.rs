//! Finds the requests that a crash needs: the shortest beginning that still crashes the program, and
//! then as few of its requests as possible.
//!
//! Leaves out ever smaller parts of what is left and keeps each step after which the program still
//! ends in the same way (Zeller's delta debugging). The result crashes the program, and without any
//! one of its requests the program does not crash, provided that it is deterministic.

/// An attempt with some of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// How the program crashed, if it did.
    pub crash: Option<String>,
    /// Which requests were sent until then.
    pub sent: Vec<bool>,
    /// Which of those were not answered.
    pub in_flight: Vec<usize>,
}

/// Finds the fewest requests with which the program crashes as it does with all of `count`; `None` if
/// it does not crash. `attempt` tries some of them; `on_progress` gets each smaller set.
///
/// # Errors
///
/// The first error of `attempt` or `on_progress`.
pub fn minimise<E>(
    count: usize,
    mut attempt: impl FnMut(&[bool]) -> Result<Attempt, E>,
    mut on_progress: impl FnMut(&[bool]) -> Result<(), E>,
) -> Result<Option<Vec<bool>>, E> {
    let first = attempt(&vec![true; count])?;
    let Some(crash) = first.crash else {
        return Ok(None);
    };
    // The shortest beginning: requests that had not been sent by then did not crash it.
    let mut best = indices(&first.sent);
    on_progress(&first.sent)?;
    let mut crashes = |some: &[usize], best: &mut Vec<usize>| -> Result<bool, E> {
        let tried = attempt(&chosen(count, some))?;
        let same = tried.crash.as_ref() == Some(&crash);
        if same {
            *best = indices(&tried.sent);
            on_progress(&tried.sent)?;
        }
        Ok(same)
    };
    // In most cases one of the requests that it was executing crashes it alone.
    if first.in_flight.len() < best.len() {
        crashes(&first.in_flight, &mut best)?;
    }
    let mut size = best.len().div_ceil(2);
    while best.len() > 1 {
        let before = best.len();
        let mut start = 0;
        while start < best.len() {
            let end = (start + size).min(best.len());
            let others: Vec<usize> = [&best[..start], &best[end..]].concat();
            if others.is_empty() || !crashes(&others, &mut best)? {
                start = end;
            }
        }
        if size == 1 && best.len() == before {
            break;
        }
        // A request that was needed together with others may be superfluous now.
        size = size.div_ceil(2).min(best.len());
    }
    Ok(Some(chosen(count, &best)))
}

fn indices(chosen: &[bool]) -> Vec<usize> {
    chosen.iter().enumerate().filter(|(_, is)| **is).map(|(index, _)| index).collect()
}

fn chosen(count: usize, indices: &[usize]) -> Vec<bool> {
    let mut chosen = vec![false; count];
    indices.iter().for_each(|&index| chosen[index] = true);
    chosen
}

#[cfg(test)]
mod tests;
