//! Every row of `docs/faults.md` names a test that exists.

const DOCUMENT: &str = include_str!("../../docs/faults.md");

/// The file and name of the test in the last cell of each row, `file::name`.
fn rows() -> Vec<(&'static str, &'static str)> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| What");
    DOCUMENT
        .lines()
        .filter(is_row)
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 3, "{line}");
            let test = cells[2].trim_matches('`');
            test.split_once("::").unwrap_or_else(|| panic!("no test in {line}"))
        })
        .collect()
}

/// Whether a source has a test with this name: a function right below a `#[test]`, or a test of Python's unittest.
fn has_test(source: &str, name: &str) -> bool {
    if name.starts_with("test_") {
        let method = format!("    def {name}(self):");
        return source.lines().any(|line| line == method);
    }
    let function = format!("fn {name}(");
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let found = lines.iter().position(|line| line.starts_with(&function));
    found.is_some_and(|at| at > 0 && lines[..at].iter().rev().take(3).any(|line| *line == "#[test]"))
}

#[test]
fn every_row_names_a_test_that_exists() {
    let rows = rows();
    assert!(rows.len() >= 90, "{} rows", rows.len());
    for (file, name) in rows {
        let path = crate::common::package::folder().join(file);
        let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(has_test(&source, name), "{file} has no test {name}");
    }
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source = "#[test]\nfn one() {}\n\nfn two() {}\n\nfn three() {}\n";
    assert!(has_test(source, "one"));
    assert!(!has_test(source, "three"));
    assert!(!has_test(source, "on"));
    assert!(!has_test(source, "four"));
    let source = "class Tests(unittest.TestCase):\n    def test_one(self):\n        pass\n\ndef test_two(self):\n    pass\n";
    assert!(has_test(source, "test_one"));
    assert!(!has_test(source, "test_two"));
    assert!(!has_test(source, "test_on"));
}
