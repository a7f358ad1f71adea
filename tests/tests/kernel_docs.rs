//! Every command in README.md and docs/*.md does what the page says. How a page says so is told
//! in `page.rs`. NBD_PAGE names the one page to look at.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use nbd_tests::ctl::require_machine;
use nbd_tests::page::{blocks, pages, root};
use nbd_tests::report;
use nbd_tests::session::Session;

#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn every_command_does_what_the_page_says() {
    require_machine();
    let only = std::env::var("NBD_PAGE").ok();
    let (mut ran, mut not_run, mut wrong) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for page in pages().iter().filter(|page| only.as_ref().is_none_or(|only| page.ends_with(only)))
    {
        let (before, began) = (ran, Instant::now());
        wrong.extend(run_page(page, &mut ran, &mut not_run));
        if ran > before {
            let took = began.elapsed().as_secs_f64();
            report(&format!("{}: {} commands in {took:.1} s", page.display(), ran - before));
        }
    }
    for (reason, count) in not_run {
        report(&format!("{count} commands were not run: {reason}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(ran > 0, "no command was run");
}

/// A page's commands up to the first that is wrong, as the others may depend on it.
fn run_page(page: &Path, ran: &mut usize, not_run: &mut BTreeMap<String, usize>) -> Option<String> {
    let text = fs::read_to_string(root().join(page)).expect("a page");
    let mut session = None;
    for block in blocks(&text).iter().filter(|block| block.has_commands()) {
        if let Some(reason) = &block.no_run {
            *not_run.entry(reason.replace('-', " ")).or_default() += block.steps().len();
            continue;
        }
        let session = session.get_or_insert_with(Session::new);
        for step in block.steps() {
            *ran += 1;
            if let Err(error) = session.step(&step) {
                return Some(format!("{}:{}: {error}", page.display(), step.line));
            }
        }
    }
    None
}
