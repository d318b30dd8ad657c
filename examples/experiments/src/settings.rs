//! The arguments of an experiment as its runs record them, so that a run goes on only with the same ones. Arguments that choose which runs
//! there are may differ: the folder then has more runs, or has some that the report leaves out.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};

use crate::store;

/// Arguments that do not change any number, and the device, which [`Common::report`](crate::common::Common::report) records.
const OF_THE_CALL: [&str; 9] =
    ["output", "redraw", "device", "hours", "resume", "restart", "jobs", "worker", "python"];
/// Arguments that choose runs. What is different between two runs is in their names.
const OF_THE_CHOICE: [&str; 11] = [
    "seeds",
    "networks",
    "learning_rates",
    "beta3",
    "other_beta3",
    "no_other_beta3",
    "formats",
    "packages",
    "growing_start",
    "growing_fraction",
    "growing_beta3",
];
/// The names of packages' versions begin with it. Only calls that use a package have them.
const PACKAGE: &str = "package ";
const FILE: &str = "arguments.json";
const LOCK: &str = "arguments.lock";

/// What determines the numbers of all runs, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// The arguments of a subcommand, defaults included.
    pub fn new(command: &Command, matches: &ArgMatches) -> Self {
        let value = |id: &str| {
            let values = matches.try_get_raw(id).ok().flatten();
            values.map(|values| values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","))
        };
        let is_free = |name: &str| OF_THE_CALL.contains(&name) || OF_THE_CHOICE.contains(&name);
        let arguments = command.get_arguments().filter(|argument| !is_free(argument.get_id().as_str()));
        let named = arguments.filter_map(|argument| {
            let name = format!("--{}", argument.get_long()?);
            Some((name, value(argument.get_id().as_str())?))
        });
        Self(named.collect())
    }

    /// Adds what else determines the numbers.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Adds the versions of packages that take the steps of some runs, by the package's name.
    #[must_use]
    pub fn with_packages(self, versions: &[(&str, String)]) -> Self {
        let named = versions.iter().map(|(name, versions)| (format!("{PACKAGE}{name}"), versions));
        named.fold(self, |settings, (name, versions)| settings.with(&name, versions))
    }

    /// Records the settings in the folder of runs. If it has some, they have to be the same. A package that no call has used yet is added.
    ///
    /// # Errors
    /// If they differ. The error names what differs.
    pub fn record(&self, runs: &Path) -> anyhow::Result<()> {
        let path = runs.join(FILE);
        let could_not = || format!("could not create {}", runs.display());
        std::fs::create_dir_all(runs).with_context(could_not)?;
        // Of several processes that start at once, one records.
        let lock = File::create(runs.join(LOCK)).with_context(could_not)?;
        lock.lock().with_context(|| format!("could not lock {}", runs.join(LOCK).display()))?;
        let replace =
            |settings: &Self| store::replace(&path, serde_json::to_string_pretty(settings)?.as_bytes());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return replace(self),
            Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
        };
        let damaged = || format!("{} is not the record of an experiment's arguments", path.display());
        let recorded: Self = serde_json::from_str(&text).with_context(damaged)?;
        let mut all = recorded.clone();
        all.0.extend(self.0.clone());
        let is_optional = |name: &str| name.starts_with(PACKAGE);
        let in_both = |name: &String| self.0.contains_key(name) && recorded.0.contains_key(name);
        let names = all.0.keys().filter(|name| !is_optional(name) || in_both(name));
        let differences = names.filter_map(|name| {
            let (found, expected) = (self.0.get(name), recorded.0.get(name));
            let text =
                |value: Option<&String>| value.map_or("the default".to_owned(), |value| format!("{value:?}"));
            (found != expected).then(|| format!("{name} is {}, expected {}", text(found), text(expected)))
        });
        let differences: Vec<_> = differences.collect();
        if !differences.is_empty() {
            bail!("the runs in {} have other arguments: {}", runs.display(), differences.join("; "));
        }
        if all == recorded { Ok(()) } else { replace(&all) }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(long, default_value_t = 3)]
        layers: u64,
        #[arg(long)]
        steps: Option<u64>,
        #[arg(long)]
        quick: bool,
        #[arg(long)]
        output: Option<String>,
    }

    fn settings(line: &str) -> Settings {
        let matches = Line::command().get_matches_from(["x"].into_iter().chain(line.split_whitespace()));
        Settings::new(&Line::command(), &matches).with("data", "12 pairs")
    }

    #[test]
    fn settings_that_differ_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("deep/runs");
        settings("--steps 5").record(&runs).unwrap();
        settings("--steps 5 --layers 3 --output x").record(&runs).unwrap();
        let error = |settings: Settings| settings.record(&runs).unwrap_err().to_string();
        let found = error(settings("--steps 6 --layers 2"));
        assert!(found.contains("--steps is \"6\", expected \"5\""), "{found}");
        assert!(found.contains("--layers is \"2\", expected \"3\""), "{found}");
        let found = error(settings(""));
        assert!(
            found.contains("--steps is the default, expected \"5\"") && !found.contains("--layers"),
            "{found}"
        );
        let found = error(settings("--steps 5").with("data", "13 pairs"));
        assert!(found.contains("data is \"13 pairs\""), "{found}");
        assert!(error(settings("--steps 5 --quick")).contains("--quick"));

        // A package keeps the version that was recorded first, and calls without it change nothing.
        let with = |version: &str| settings("--steps 5").with_packages(&[("p", version.to_owned())]);
        for settings in [with("p 1"), settings("--steps 5"), with("p 1")] {
            settings.record(&runs).unwrap();
        }
        let found = error(with("p 2"));
        assert!(found.contains("package p is \"p 2\", expected \"p 1\""), "{found}");
        with("p 1").record(&runs).unwrap();
        // Threads instead of processes.
        let others = folder.path().join("others");
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| settings("--steps 5").record(&others))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        });
        std::fs::write(runs.join(FILE), "x").unwrap();
        assert!(error(settings("")).contains("is not the record"));
    }
}
