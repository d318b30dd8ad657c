//! Tables, and the output folder of an experiment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;

/// A table in Markdown.
pub struct Table {
    pub title: String,
    pub columns: Vec<String>,
    /// The name of a row and its cells.
    pub rows: Vec<(String, Vec<String>)>,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}\n\n| | {} |", self.title, self.columns.join(" | "))?;
        writeln!(f, "| --- |{}", " --- |".repeat(self.columns.len()))?;
        self.rows.iter().try_for_each(|(name, cells)| writeln!(f, "| {name} | {} |", cells.join(" | ")))
    }
}

/// The output folder. Tables are also printed.
pub struct Report {
    folder: PathBuf,
    text: String,
    start: Instant,
    /// Whether tables and series are left as they are.
    pictures_only: bool,
}

impl Report {
    /// Creates the folder if it is missing.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
        Ok(Self { pictures_only: false, ..Self::pictures(folder) })
    }

    /// A report of which only the pictures are written, into a folder that exists.
    pub fn pictures(folder: &Path) -> Self {
        Self { folder: folder.into(), text: String::new(), start: Instant::now(), pictures_only: true }
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Adds a paragraph or table to `report.md` and prints it. Writes the file at once, so that an interrupted run leaves its results.
    pub fn say(&mut self, text: impl std::fmt::Display) -> anyhow::Result<()> {
        if self.pictures_only {
            return Ok(());
        }
        println!("\n{text}");
        writeln!(self.text, "{text}\n")?;
        self.write("report.md", &self.text)
    }

    /// Reports the time and the folder.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        self.say(format!("Took {seconds:.0} s."))?;
        println!("Wrote {}", self.folder.display());
        Ok(())
    }

    /// Writes a column for each series, with the header `<unit>,<name>,<name>` and so on. A series has a value every `interval` units of
    /// time, and its last value is at the unit `end`.
    pub fn write_series(
        &self,
        name: &str,
        unit: &str,
        interval: u64,
        end: u64,
        series: &[(String, &[impl std::fmt::Display])],
    ) -> anyhow::Result<()> {
        if self.pictures_only {
            return Ok(());
        }
        let mut text = unit.to_owned();
        for (name, _) in series {
            write!(text, ",{}", column_name(name))?;
        }
        let longest = series.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
        for row in 0..longest {
            write!(text, "\n{}", (interval * (row as u64 + 1)).min(end))?;
            for (_, values) in series {
                text.push(',');
                if let Some(value) = values.get(row) {
                    write!(text, "{value}")?;
                }
            }
        }
        text.push('\n');
        self.write(name, &text)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))
    }
}

/// A series' name, in which commas would separate columns.
fn column_name(name: &str) -> String {
    name.replace(',', ";")
}

/// Series of an earlier run, by name.
pub struct Saved(BTreeMap<String, Vec<f64>>);

impl Saved {
    /// Reads the files that [`Report::write_series`] wrote.
    pub fn read(files: impl IntoIterator<Item = PathBuf>) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for path in files {
            let file = || format!("could not read {}", path.display());
            let mut reader = csv::Reader::from_path(&path).with_context(file)?;
            let names = reader.headers().with_context(file)?.clone();
            let mut columns = vec![Vec::new(); names.len()];
            for record in reader.records() {
                let record = record.with_context(file)?;
                // A run that ended early has no more cells.
                for (column, cell) in columns.iter_mut().zip(&record).filter(|(_, cell)| !cell.is_empty()) {
                    column.push(cell.parse().with_context(file)?);
                }
            }
            all.extend(names.iter().map(str::to_owned).zip(columns));
        }
        Ok(Self(all))
    }

    /// The values of a series, which is missing if the run had other arguments.
    pub fn series(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        let series = self.0.get(&column_name(name)).cloned();
        series.with_context(|| format!("expected the series {name:?} in the earlier run's files"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown() {
        let table = Table {
            title: "BLEU".into(),
            columns: vec!["α 0.1".into(), "α 1".into()],
            rows: vec![("Adam".into(), vec!["1".into(), "2".into()])],
        };
        assert_eq!(table.to_string(), "BLEU\n\n| | α 0.1 | α 1 |\n| --- | --- | --- |\n| Adam | 1 | 2 |\n");
    }

    #[test]
    fn series_of_different_lengths_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let report = Report::create(&folder.path().join("new/deep")).unwrap();
        let series = [("a".into(), &[1.0, 2.0][..]), ("b,c".into(), &[0.5][..])];
        let written = |interval, end| {
            report.write_series("loss.csv", "step", interval, end, &series).unwrap();
            std::fs::read_to_string(report.path("loss.csv")).unwrap()
        };
        assert_eq!(written(1, 2), "step,a,b;c\n1,1,0.5\n2,2,\n");
        assert_eq!(written(10, 15), "step,a,b;c\n10,1,0.5\n15,2,\n");
        let saved = Saved::read([report.path("loss.csv")]).unwrap();
        assert_eq!((saved.series("a").unwrap(), saved.series("b,c").unwrap()), (vec![1.0, 2.0], vec![0.5]));
        assert!(saved.series("d").unwrap_err().to_string().contains("\"d\""));
        assert!(Saved::read([report.path("other.csv")]).is_err());

        // Of pictures that are drawn anew the numbers stay.
        let mut again = Report::pictures(&folder.path().join("new/deep"));
        again.say("nothing").unwrap();
        again.write_series("loss.csv", "step", 1, 2, &[("e".to_owned(), &[1.0][..])]).unwrap();
        assert!(!report.path("report.md").exists() && saved.series("a").is_ok());
        assert_eq!(
            std::fs::read_to_string(report.path("loss.csv")).unwrap(),
            "step,a,b;c\n10,1,0.5\n15,2,\n"
        );
    }
}
