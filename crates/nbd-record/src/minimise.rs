//! Which of the requests are needed for a crash: the shortest beginning that still crashes the
//! program, and then as few of those as possible.
//!
//! Leaves out ever smaller parts of what is left and keeps each step after which the program still
//! ends in the same way (Zeller's delta debugging). What remains crashes it, and without any one of
//! the requests that remain it does not, as far as it does the same thing each time.

/// An attempt with some of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// How the program ended before its time, if it did.
    pub crash: Option<String>,
    /// Which requests were sent until then.
    pub sent: Vec<bool>,
    /// Which of those were not answered.
    pub in_flight: Vec<usize>,
}

/// Looks for the fewest requests with which the program crashes as it does with all of `count`:
/// `None` if it does not. `attempt` tries some of them, `better` is told of each step.
pub fn minimise<E>(
    count: usize,
    mut attempt: impl FnMut(&[bool]) -> Result<Attempt, E>,
    mut better: impl FnMut(&[bool]) -> Result<(), E>,
) -> Result<Option<Vec<bool>>, E> {
    let first = attempt(&vec![true; count])?;
    let Some(crash) = first.crash else {
        return Ok(None);
    };
    // What was sent is the shortest beginning: what had not been sent by then did not crash it.
    let mut best = indices(&first.sent);
    better(&first.sent)?;
    let mut crashes = |some: &[usize], best: &mut Vec<usize>| -> Result<bool, E> {
        let tried = attempt(&chosen(count, some))?;
        let same = tried.crash.as_ref() == Some(&crash);
        if same {
            *best = indices(&tried.sent);
            better(&tried.sent)?;
        }
        Ok(same)
    };
    // More often than not one of those that it was executing does it alone.
    if first.in_flight.len() < best.len() {
        crashes(&first.in_flight, &mut best)?;
    }
    let mut size = best.len().div_ceil(2);
    while best.len() > 1 {
        let before = best.len();
        let mut start = 0;
        while start < best.len() {
            let end = (start + size).min(best.len());
            let rest: Vec<usize> = [&best[..start], &best[end..]].concat();
            if rest.is_empty() || !crashes(&rest, &mut best)? {
                start = end;
            }
        }
        if size == 1 && best.len() == before {
            break;
        }
        // What could not be left out before may be of no use now.
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
