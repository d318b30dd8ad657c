//! The layers of the library and of the tool: imports go down only, and no two files import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules of the library, the lowest first. A module imports from those before it and from itself.
const LAYERS: [&str; 14] = [
    "storage",
    "device",
    "rules",
    "options",
    "error",
    "hyperparameters",
    "kernels",
    "custom",
    "plan",
    "reference",
    "diagnostics",
    "checkpoint",
    "optimizer",
    "testing",
];

/// A file of a crate: its module path and what it imports from the crate.
#[derive(Debug)]
struct File {
    module: Vec<String>,
    imports: Vec<Vec<String>>,
}

/// All files below a folder, with the paths of the modules that they are.
fn files(root: &Path) -> Vec<File> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(read(root, &path));
            }
        }
    }
    found
}

fn read(root: &Path, path: &Path) -> File {
    let relative: PathBuf = path.strip_prefix(root).unwrap().with_extension("");
    let mut module: Vec<String> =
        relative.components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect();
    if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
        module.pop();
    }
    let text = std::fs::read_to_string(path).unwrap();
    // Tests at the end of a file may import what they like.
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let children: BTreeSet<&str> = code
        .lines()
        .filter_map(|line| {
            line.trim_start_matches("pub ").trim_start_matches("pub(crate) ").strip_prefix("mod ")
        })
        .map(|name| name.trim_end_matches([';', '{', ' ']))
        .collect();
    let imports = statements(code).into_iter().flat_map(|tree| expand(&tree)).filter_map(|path| {
        let (first, rest) = path.split_first()?;
        let mut resolved = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.clone(),
            "super" => module[..module.len() - 1].to_vec(),
            name if children.contains(name) => [module.clone(), vec![name.to_owned()]].concat(),
            _ => return None,
        };
        for part in rest {
            if part == "super" {
                resolved.pop();
            } else {
                resolved.push(part.clone());
            }
        }
        Some(resolved)
    });
    File { imports: imports.collect(), module: module.clone() }
}

/// The trees of all `use` statements.
fn statements(code: &str) -> Vec<String> {
    let mut trees = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find("use ") {
        let line_start = rest[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let before = rest[line_start..start].trim();
        let end = rest[start..].find(';').map_or(rest.len(), |end| start + end);
        if ["", "pub", "pub(crate)", "pub(super)"].contains(&before) {
            trees.push(rest[start + 4..end].split_whitespace().collect::<Vec<_>>().join(" "));
        }
        rest = &rest[end..];
    }
    trees
}

/// The paths of a tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some(brace) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree);
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let prefix: Vec<String> =
        tree[..brace].split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let inner = &tree[brace + 1..tree.rfind('}').unwrap()];
    let mut branches = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (index, character) in inner.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(&inner[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    branches.push(&inner[start..]);
    let branches = branches.into_iter().filter(|branch| !branch.trim().is_empty());
    branches.flat_map(expand).map(|path| [prefix.clone(), path].concat()).collect()
}

/// Which files each file imports from.
fn arrows(files: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeSet<&[String]> = files.iter().map(|file| file.module.as_slice()).collect();
    let name = |module: &[String]| module.join("::");
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let targets = arrows.entry(name(&file.module)).or_default();
        for import in &file.imports {
            // The longest prefix that is a file.
            let target =
                (0..=import.len()).rev().map(|len| &import[..len]).find(|path| modules.contains(path));
            if let Some(target) = target.filter(|target| *target != file.module.as_slice()) {
                targets.insert(name(target));
            }
        }
    }
    arrows
}

/// A circle of files, if there is one.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        file: &str,
        arrows: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = path.iter().position(|on_path| on_path == file) {
            return Some(path[start..].to_vec());
        }
        if !done.insert(file.to_owned()) {
            return None;
        }
        path.push(file.to_owned());
        let found = arrows.get(file).into_iter().flatten().find_map(|next| visit(next, arrows, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|file| visit(file, arrows, &mut Vec::new(), &mut done))
}

fn source(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// The files of the library without those of the tool.
fn library() -> Vec<File> {
    let mut files = files(&source("src"));
    files.retain(|file| file.module.first().is_none_or(|first| first != "bin"));
    files
}

#[test]
fn imports_of_the_library_go_down_only() {
    let layer = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    let mut seen = BTreeSet::new();
    for file in library() {
        let Some(own) = file.module.first() else { continue };
        let Some(own_layer) = layer(own) else {
            assert!(file.imports.is_empty(), "{own} has no layer: it imports {:?}", file.imports);
            continue;
        };
        seen.insert(own.clone());
        for import in &file.imports {
            let target = import.first().unwrap_or_else(|| panic!("{own} imports from lib.rs"));
            let target_layer =
                layer(target).unwrap_or_else(|| panic!("{own} imports {target}, which has no layer"));
            assert!(
                target_layer <= own_layer,
                "{} imports {}: {target} is a higher layer than {own}",
                file.module.join("::"),
                import.join("::")
            );
        }
    }
    assert_eq!(seen.len(), LAYERS.len(), "every layer has files: {seen:?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let library = arrows(&library());
    assert!(library.values().map(BTreeSet::len).sum::<usize>() > 100, "the imports are found");
    assert_eq!(circle(&library), None);
    let tool = arrows(&files(&source("src/bin/adamod")));
    assert!(tool.values().map(BTreeSet::len).sum::<usize>() > 20, "the imports are found");
    assert_eq!(circle(&tool), None);
}

#[test]
fn a_circle_and_an_import_in_braces_are_found() {
    assert_eq!(
        expand("a::{b, c::{d as e, f}}").iter().map(|path| path.join("::")).collect::<Vec<_>>(),
        ["a::b", "a::c::d", "a::c::f"]
    );
    let arrows = BTreeMap::from(
        [("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["b"])]
            .map(|(from, to)| (from.to_owned(), to.into_iter().map(str::to_owned).collect())),
    );
    assert_eq!(circle(&arrows), Some(vec!["b".to_owned(), "c".to_owned()]));
}
