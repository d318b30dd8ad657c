//! The declarations of a rule's WGSL: which names they have, and in which lines.

/// A declaration outside functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// `fn`, `struct`, `const`, `alias`; or what a rule cannot have.
    pub keyword: String,
    pub name: String,
    /// From 1.
    pub line: usize,
}

const KEYWORDS: [&str; 6] = ["fn", "struct", "const", "alias", "var", "override"];

/// The declarations of a text, in their order. The text may not be valid.
pub fn declarations(wgsl: &str) -> Vec<Declaration> {
    let code = without_comments(wgsl);
    let (mut found, mut depth) = (Vec::new(), 0_usize);
    let mut words = words(&code).peekable();
    while let Some((offset, word)) = words.next() {
        match word {
            "{" | "(" => depth += 1,
            "}" | ")" => depth = depth.saturating_sub(1),
            keyword if depth == 0 && KEYWORDS.contains(&keyword) => {
                // Of `var<storage, read> name` the name comes last.
                if words.next_if(|(_, next)| *next == "<").is_some() {
                    words.by_ref().take_while(|(_, next)| *next != ">").for_each(drop);
                }
                if let Some((_, name)) = words.peek() {
                    let line = 1 + code[..offset].matches('\n').count();
                    found.push(Declaration { keyword: keyword.to_owned(), name: (*name).to_owned(), line });
                }
            }
            _ => {}
        }
    }
    found
}

/// The same text with spaces in place of comments.
fn without_comments(wgsl: &str) -> String {
    let (mut code, mut rest, mut depth) = (String::with_capacity(wgsl.len()), wgsl, 0_usize);
    while let Some(first) = rest.chars().next() {
        let len = match () {
            () if rest.starts_with("/*") => {
                depth += 1;
                2
            }
            () if depth > 0 && rest.starts_with("*/") => {
                depth -= 1;
                2
            }
            () if depth == 0 && rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            () if depth == 0 => {
                code.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
            () => first.len_utf8(),
        };
        // Bytes and lines keep their places.
        code.extend(rest[..len].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        rest = &rest[len..];
    }
    code
}

/// Identifiers, and all other characters one by one, with their places.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_of_word = |character: char| character.is_alphanumeric() || character == '_';
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = code[start..].trim_start();
        let offset = code.len() - rest.len();
        let first = rest.chars().next()?;
        let len = match rest.find(|character| !is_of_word(character)) {
            Some(0) => first.len_utf8(),
            Some(len) => len,
            None => rest.len(),
        };
        start = offset + len;
        Some((offset, &rest[..len]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_found_outside_functions_and_comments() {
        let wgsl = "// fn a()\n/* fn b() /* nested */ \n fn c() */ const ONE = 1.0;\n\nstruct S {\n    var: f32,\n}\n\
            @group(0) @binding(0) var<storage, read> buffer: array<u32>;\nfn step(x: f32) -> f32 {\n    \
            var y = x; const z = 1;\n    return y;\n}\nalias F = f32;";
        let found: Vec<_> = declarations(wgsl).into_iter().map(|of| (of.keyword, of.name, of.line)).collect();
        let expected = [
            ("const", "ONE", 3),
            ("struct", "S", 5),
            ("var", "buffer", 8),
            ("fn", "step", 9),
            ("alias", "F", 13),
        ];
        assert_eq!(found, expected.map(|(keyword, name, line)| (keyword.to_owned(), name.to_owned(), line)));
    }
}
