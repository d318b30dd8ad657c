//! The library's tests and the page in a browser, and the same tests on this machine's own adapter.

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use adamod_web::demo::{Demo, Numbers};
use adamod_web::gpu::Gpu;
use adamod_web::suite::{self, Extent, Outcome};
use anyhow::{Context, anyhow, bail};

use super::browser::Browser;
use super::server::Server;

/// A browser that says nothing for so long hangs.
const LONGEST_SILENCE: Duration = Duration::from_secs(240);

/// Everything that one side found.
#[derive(Default)]
struct Findings {
    adapter: String,
    numbers: Vec<Numbers>,
    outcomes: Vec<Outcome>,
    /// Errors besides those of the outcomes.
    errors: Vec<String>,
    seconds: f64,
}

/// Runs the check and prints a verdict.
pub fn run(folder: &Path, all: bool) -> anyhow::Result<ExitCode> {
    let extent = if all { Extent::All } else { Extent::Sample };
    // Both mostly compile kernels, each in one thread.
    let (here, there) = std::thread::scope(|scope| {
        let here = scope.spawn(|| here(extent));
        let there = browser(folder, all);
        (here.join(), there)
    });
    let here = here.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let there = there?;
    println!("On {} in {:.0} s: {}", here.adapter, here.seconds, count(&here.outcomes));
    println!("In Chromium on {} in {:.0} s: {}", there.adapter, there.seconds, count(&there.outcomes));
    let failures = failures(&here, &there);
    for failure in &failures {
        println!("failed: {failure}");
    }
    if failures.is_empty() {
        println!(
            "The check passed: all tests, the page, and the same bits in the browser as on {}.",
            here.adapter
        );
        Ok(ExitCode::SUCCESS)
    } else {
        println!("The check failed: {} of its parts.", failures.len());
        Ok(ExitCode::FAILURE)
    }
}

fn count(outcomes: &[Outcome]) -> String {
    let failed = outcomes.iter().filter(|outcome| outcome.error.is_some()).count();
    format!("{} tests, {failed} failed", outcomes.len())
}

/// The tests on this machine's adapter.
fn here(extent: Extent) -> anyhow::Result<Findings> {
    let start = Instant::now();
    let mut findings = Findings::default();
    let tested = async {
        let gpu = Gpu::open().await?;
        findings.adapter.clone_from(&gpu.adapter.name);
        Demo::short_races(&gpu, |numbers| findings.numbers.push(numbers)).await?;
        suite::run(&gpu, extent, |outcome| findings.outcomes.push(outcome)).await;
        Ok(())
    };
    pollster::block_on(tested).map_err(|error: Box<dyn std::error::Error>| anyhow!("{error}"))?;
    findings.seconds = start.elapsed().as_secs_f64();
    Ok(findings)
}

/// The tests and the page in a browser.
fn browser(folder: &Path, all: bool) -> anyhow::Result<Findings> {
    let server = Server::new(folder, 0)?;
    let address = format!("{}check.html{}", server.address(), if all { "?all" } else { "" });
    let (sender, posts) = mpsc::channel();
    std::thread::spawn(move || {
        server.serve(move |kind, json| {
            // The check may have ended.
            let _ = sender.send((kind.to_owned(), json.to_owned()));
        })
    });
    let mut browser = Browser::open(&address)?;
    let start = Instant::now();
    let mut findings = Findings::default();
    let mut silent_since = start;
    loop {
        let (kind, json) = match posts.recv_timeout(Duration::from_secs(1)) {
            Ok(post) => post,
            Err(RecvTimeoutError::Timeout) if browser.has_ended() => {
                bail!("Chromium ended before the check did")
            }
            Err(RecvTimeoutError::Timeout) if silent_since.elapsed() < LONGEST_SILENCE => continue,
            Err(_) => {
                let last = findings.outcomes.last().map_or("any test", |outcome| outcome.name.as_str());
                bail!("the page has said nothing for {} s after {last}", LONGEST_SILENCE.as_secs())
            }
        };
        silent_since = Instant::now();
        let context = || format!("could not read what the page posted about {kind}: {json:.200}");
        match kind.as_str() {
            "adapter" => findings.adapter = serde_json::from_str(&json).with_context(context)?,
            "numbers" => findings.numbers.push(serde_json::from_str(&json).with_context(context)?),
            "outcome" => findings.outcomes.push(serde_json::from_str(&json).with_context(context)?),
            "uncaught" => findings.errors = serde_json::from_str(&json).with_context(context)?,
            "progress" | "page" => {}
            "done" => break,
            _ => {
                findings.errors.push(json);
                break;
            }
        }
    }
    findings.seconds = start.elapsed().as_secs_f64();
    Ok(findings)
}

/// What is wrong with either side, and where they differ.
fn failures(here: &Findings, there: &Findings) -> Vec<String> {
    let mut failures = Vec::new();
    for (side, findings) in [("here", here), ("in the browser", there)] {
        failures.extend(findings.errors.iter().map(|error| format!("{side}: {error}")));
        let failed = findings.outcomes.iter().filter_map(|of| Some((&of.name, of.error.as_ref()?)));
        failures.extend(failed.map(|(name, error)| format!("{side}: {name}: {error}")));
    }
    if there.numbers != here.numbers {
        failures.push("the demo's numbers in the browser are not those of here".into());
    }
    for outcome in &here.outcomes {
        match there.outcomes.iter().find(|other| other.name == outcome.name) {
            None => failures.push(format!("in the browser: {}: was not tested", outcome.name)),
            Some(other)
                if outcome.error.is_none() && other.error.is_none() && other.digest != outcome.digest =>
            {
                failures.push(format!("{}: the bits in the browser are not those of here", outcome.name));
            }
            Some(_) => {}
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, digest: Option<&str>, error: Option<&str>) -> Outcome {
        Outcome { name: name.into(), digest: digest.map(Into::into), error: error.map(Into::into) }
    }

    fn findings(outcomes: &[Outcome]) -> Findings {
        Findings { outcomes: outcomes.to_vec(), ..Findings::default() }
    }

    #[test]
    fn what_differs_or_is_missing_fails() {
        let good = [outcome("a", Some("1"), None), outcome("b", None, None)];
        assert!(failures(&findings(&good), &findings(&good)).is_empty());
        let count = |there: &[Outcome]| failures(&findings(&good), &findings(there)).len();
        assert_eq!(count(&good[..1]), 1);
        assert_eq!(count(&[outcome("a", Some("2"), None), good[1].clone()]), 1);
        assert_eq!(count(&[outcome("a", None, Some("wrong")), good[1].clone()]), 1);
        let more = [good[0].clone(), good[1].clone(), outcome("compile", None, Some("refused"))];
        assert_eq!(count(&more), 1);
        let numbers = Numbers { losses: Vec::new(), recognised: 7, rates: None };
        let there = Findings { numbers: vec![numbers], ..findings(&good) };
        assert_eq!(failures(&findings(&good), &there).len(), 1);
    }
}
