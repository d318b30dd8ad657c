//! Pairs of short texts from programs' message catalogues: what an English program says, and how its German translators say it.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use regex::Regex;
use walkdir::WalkDir;

use super::corpus::Pair;
use crate::data::catalogue::{self, Message};

/// Below it lie the catalogues of a language.
const LANGUAGE: &str = "de";
const CATEGORY: &str = "LC_MESSAGES";
/// Longer texts are mostly help pages and licences.
const LONGEST_CHARACTERS: usize = 200;
/// The longer text of a pair has at most [`RATIO`] times the characters of the shorter one and [`SLACK_CHARACTERS`] more.
const RATIO: usize = 3;
const SLACK_CHARACTERS: usize = 10;
/// A text with fewer letters is no word.
const FEWEST_LETTERS: usize = 2;
/// If neither text has as many, they are the name of something, which cannot be known from other names.
const FEWEST_WORDS: usize = 3;
/// Stands for everything that a program fills in.
const DIRECTIVE: &str = "%";
/// Characters that a letter follows which opens a menu entry: of GTK, of Qt, of LibreOffice.
const ACCELERATORS: [char; 3] = ['_', '&', '~'];

/// From which language into which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From German into English, as in IWSLT'14
    #[value(name = "de-en")]
    GermanEnglish,
    /// From English into German
    #[value(name = "en-de")]
    EnglishGerman,
}

/// Cleaned pairs of a folder, each source sentence once, in the order of their sources.
pub struct Collected {
    pub pairs: Vec<Pair>,
    catalogues: usize,
    /// Texts with a translation.
    texts: usize,
    left_out: BTreeMap<Reason, usize>,
}

/// Why a pair is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    NoWords,
    SameText,
    TooShort,
    TooLong,
    DifferentLengths,
    DifferentDirectives,
    Markup,
    OtherLetters,
    Address,
    Context,
    SourceAgain,
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::NoWords => "without words",
            Reason::SameText => "with the same text in both languages",
            Reason::TooShort => "too short",
            Reason::TooLong => "too long",
            Reason::DifferentLengths => "with very different lengths",
            Reason::DifferentDirectives => "with different directives",
            Reason::Markup => "with other markup",
            Reason::OtherLetters => "with letters of another alphabet",
            Reason::Address => "with an address",
            Reason::Context => "with a context in their text",
            Reason::SourceAgain => "whose source is there already",
        })
    }
}

impl Display for Collected {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { pairs, catalogues, texts, left_out } = self;
        write!(f, "{} pairs of {texts} texts in {catalogues} catalogues; left out:", pairs.len())?;
        for (index, (reason, count)) in left_out.iter().enumerate() {
            write!(f, "{} {count} {reason}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Reads all `de/LC_MESSAGES/*.mo` below a folder.
pub fn collect(folder: &Path, direction: Direction) -> anyhow::Result<Collected> {
    let paths = catalogues_below(folder)?;
    ensure!(
        !paths.is_empty(),
        "{} has no message catalogues: expected {LANGUAGE}/{CATEGORY}/*.mo in it or below it",
        folder.display()
    );
    let mut messages = Vec::new();
    for path in &paths {
        let bytes = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
        let read = catalogue::parse(&bytes);
        messages.extend(read.with_context(|| format!("{} is not a message catalogue", path.display()))?);
    }
    let mut collected = pairs_of(&messages, direction);
    collected.catalogues = paths.len();
    ensure!(!collected.pairs.is_empty(), "{} has no pairs: {collected}", folder.display());
    Ok(collected)
}

/// In the order of their paths.
fn catalogues_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_catalogue = |path: &Path| {
        let mut parents = path.ancestors().skip(1).filter_map(Path::file_name);
        path.extension().is_some_and(|extension| extension == "mo")
            && parents.next().is_some_and(|name| name == CATEGORY)
            && parents.next().is_some_and(|name| name == LANGUAGE)
    };
    let mut found = Vec::new();
    // With its whole path, a folder that lies in `de` is found as well.
    let folder = folder.canonicalize().with_context(|| format!("could not read {}", folder.display()))?;
    for entry in WalkDir::new(&folder).follow_links(true).sort_by_file_name() {
        let entry = entry.with_context(|| format!("could not read {}", folder.display()))?;
        if entry.file_type().is_file() && is_catalogue(entry.path()) {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

fn pairs_of(messages: &[Message], direction: Direction) -> Collected {
    let mut collected = Collected { pairs: Vec::new(), catalogues: 0, texts: 0, left_out: BTreeMap::new() };
    // How often each pair occurs, by the letters of its source: "Open" and "Open..." are one source.
    let mut votes: BTreeMap<String, BTreeMap<(String, String), usize>> = BTreeMap::new();
    for (english, german) in messages.iter().flat_map(texts) {
        collected.texts += 1;
        match clean(english, german) {
            Ok((english, german)) => {
                let pair = match direction {
                    Direction::GermanEnglish => (german, english),
                    Direction::EnglishGerman => (english, german),
                };
                *votes.entry(letters(&pair.0)).or_default().entry(pair).or_default() += 1;
            }
            Err(reason) => *collected.left_out.entry(reason).or_default() += 1,
        }
    }
    for pairs in votes.into_values() {
        let all: usize = pairs.values().sum();
        *collected.left_out.entry(Reason::SourceAgain).or_default() += all - 1;
        // Of equally frequent pairs the first in the alphabet.
        let best = pairs.into_iter().rev().max_by_key(|(_, count)| *count);
        collected.pairs.extend(best.map(|((source, target), _)| Pair { source, target }));
    }
    collected
}

/// The text for one and that for many with their translations.
fn texts(message: &Message) -> impl Iterator<Item = (&str, &str)> {
    let first = message.translations.first().map(|translation| (&message.singular[..], &translation[..]));
    let plural = message.plural.as_deref().filter(|_| message.translations.len() > 1);
    let last =
        plural.zip(message.translations.last()).map(|(plural, translation)| (plural, &translation[..]));
    first.into_iter().chain(last).filter(|(_, translation)| !translation.is_empty())
}

/// Both texts as sentences in lower case, without markup and accelerators.
fn clean(english: &str, german: &str) -> Result<(String, String), Reason> {
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| regex(r"\S@\S+\.\S|[a-z]+://|www\."));
    static MARKUP: LazyLock<Regex> = LazyLock::new(|| regex(r"&#?\w+;|\p{C}|\u{fffd}"));
    static OTHER_LETTERS: LazyLock<Regex> = LazyLock::new(|| regex(r"[\p{L}--\p{Latin}]"));
    let bars = |text: &str| text.matches('|').count();
    if english.starts_with("_:") || bars(english) != bars(german) {
        return Err(Reason::Context);
    }
    let ((english, directives), (german, other_directives)) = (plain(english), plain(german));
    let lower = [without_accelerators(&english, &german), without_accelerators(&german, &english)]
        .map(|text| text.to_lowercase());
    let words = lower.each_ref().map(|text| letters(text));
    let characters = lower.each_ref().map(|text| text.chars().count());
    let (shorter, longer) = (characters[0].min(characters[1]), characters[0].max(characters[1]));
    let reasons = [
        (
            words.iter().any(|word| word.chars().filter(|c| c.is_alphabetic()).count() < FEWEST_LETTERS),
            Reason::NoWords,
        ),
        (words[0] == words[1], Reason::SameText),
        (lower.iter().all(|text| text.split(' ').count() < FEWEST_WORDS), Reason::TooShort),
        (longer > LONGEST_CHARACTERS, Reason::TooLong),
        (longer > RATIO * shorter + SLACK_CHARACTERS, Reason::DifferentLengths),
        (directives != other_directives, Reason::DifferentDirectives),
        ([&english, &german].into_iter().any(|text| MARKUP.is_match(text)), Reason::Markup),
        (lower.iter().any(|text| OTHER_LETTERS.is_match(text)), Reason::OtherLetters),
        (lower.iter().any(|text| ADDRESS.is_match(text)), Reason::Address),
    ];
    match reasons.into_iter().find(|(holds, _)| *holds) {
        Some((_, reason)) => Err(reason),
        None => Ok(lower.into()),
    }
}

/// Letters and digits only, in lower case.
fn letters(text: &str) -> String {
    text.chars().filter(|character| character.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern that is constant")
}

/// A text without markup, its quotation marks and spaces as on a typewriter, and the number of its directives, each of which is now
/// [`DIRECTIVE`].
fn plain(text: &str) -> (String, usize) {
    // GCC's directives for quotation marks.
    static QUOTES: LazyLock<Regex> = LazyLock::new(|| regex("%[<>]"));
    static DIRECTIVES: LazyLock<Regex> = LazyLock::new(|| {
        regex(concat!(
            r"%%",
            // LibreOffice: %PRODUCTNAME
            r"|%[A-Z_]{3,}%?",
            // Python: %(name)s
            r"|%\(\w+\)[-+#0 ]*\d*(?:\.\d+)?[a-z]",
            // Qt: %L1
            r"|%L\d+",
            // C and GCC: %s, %1$s, %-20.3lf, %qE
            r"|%(?:\d+\$)?[-+#0'I]*(?:\*(?:\d+\$)?|\d+)?(?:\.(?:\*|\d+)?)?[hlzjtLqw]*[A-Za-z]",
            // Qt: %1
            r"|%\d+",
            // Python's format, shell: {name}, ${name}, $(name), $name
            r"|\$?\{[^{}\s]*\}|\$\(\w+\)|\$[A-Za-z]\w*",
        ))
    });
    // Tags of HTML, Pango, DocBook and KDE. Others are texts, such as <file> in a command's usage.
    static BREAKS: LazyLock<Regex> = LazyLock::new(|| {
        regex(
            r"(?i)</?(?:br|p|para|div|li|item|list|ul|ol|table|tr|td|th|h[1-6]|hr|img|title|subtitle|nl|body|head|html|qt)\b[^<>]*>",
        )
    });
    static TAGS: LazyLock<Regex> = LazyLock::new(|| {
        regex(concat!(
            r"(?i)</?(?:b|i|u|s|tt|em|strong|big|small|sub|sup|span|a|code|pre|kbd|var|font|center|nobr|filename|application|command",
            r"|resource|icode|bcode|shortcut|interface|emphasis|email|link|message|note|warning|placeholder|numid|envar|guilabel)\b[^<>]*>",
        ))
    });
    let text = QUOTES.replace_all(text, "\"");
    let text = TAGS.replace_all(&text, "");
    let text = BREAKS.replace_all(&text, " ");
    let mut directives = 0;
    let text = DIRECTIVES.replace_all(&text, |found: &regex::Captures<'_>| {
        directives += usize::from(&found[0] != "%%");
        DIRECTIVE
    });
    // The ampersand last: &amp;lt; is &lt;, not <.
    let entities =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    let text = entities.into_iter().fold(text.into_owned(), |text, (from, to)| text.replace(from, to));
    let mut typed = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '“' | '”' | '„' | '‟' | '«' | '»' => typed.push('"'),
            '‘' | '’' | '‚' | '‛' | '‹' | '›' | '`' | '´' => typed.push('\''),
            '–' | '—' | '‐' | '‑' | '−' => typed.push('-'),
            '…' => typed.push_str("..."),
            // Soft hyphen, and characters without width.
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => {}
            _ => typed.push(character),
        }
    }
    (typed.split_whitespace().collect::<Vec<_>>().join(" "), directives)
}

/// Removes the marks of accelerators: those before a word, and one within a word if the other language does not have the word, too, which then
/// is a name such as snake_case or AT&T.
fn without_accelerators(text: &str, other: &str) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    for mark in ACCELERATORS {
        let only = text.matches(mark).count() == 1;
        for word in &mut words {
            let Some((before, after)) = word.split_once(mark) else { continue };
            let alone = !after.contains(mark) && after.starts_with(char::is_alphanumeric);
            let starts = !before.ends_with(char::is_alphanumeric);
            let is_name = || other.split(' ').any(|other| other == word);
            if alone && (starts || only && !is_name()) {
                *word = format!("{before}{after}");
            }
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::catalogue::testing;

    fn cleaned(english: &str, german: &str) -> (String, String) {
        clean(english, german).unwrap_or_else(|reason| panic!("{english:?}, {german:?}: {reason}"))
    }

    #[track_caller]
    fn assert_cleaned(english: [&str; 2], german: [&str; 2]) {
        assert_eq!(cleaned(english[0], german[0]), (english[1].to_owned(), german[1].to_owned()));
    }

    fn message(singular: &str, translation: &str) -> Message {
        let translations = vec![translation.to_owned()];
        Message { context: None, singular: singular.into(), plural: None, translations }
    }

    #[test]
    fn accelerators_go_and_names_stay() {
        assert_cleaned(["_Open this File", "open this file"], ["Diese Datei ö_ffnen", "diese datei öffnen"]);
        assert_cleaned(["Save &As...", "save as..."], ["Speichern &unter …", "speichern unter ..."]);
        assert_cleaned(["E~xit it now", "exit it now"], ["Jetzt ~Beenden", "jetzt beenden"]);
        assert_cleaned(
            ["_Edit > _Undo", "edit > undo"],
            ["_Bearbeiten > _Rückgängig", "bearbeiten > rückgängig"],
        );
        assert_cleaned(
            ["set max_size first", "set max_size first"],
            ["zuerst max_size setzen", "zuerst max_size setzen"],
        );
        assert_cleaned(["Drag & Drop", "drag & drop"], ["Ziehen & Ablegen", "ziehen & ablegen"]);
        assert_cleaned(["AT&T users", "at&t users"], ["Benutzer von AT&T", "benutzer von at&t"]);
        assert_cleaned(
            ["call __init__ now", "call __init__ now"],
            ["jetzt __init__ rufen", "jetzt __init__ rufen"],
        );
    }

    #[test]
    fn markup_and_typography_become_plain() {
        assert_cleaned(
            ["<b>Bold</b> &amp; big<br/>text", "bold & big text"],
            ["<b>Fett</b> &amp; groß<br>er", "fett & groß er"],
        );
        assert_cleaned(
            ["a “quoted”\n\tword", "a \"quoted\" word"],
            ["ein „zitiertes“\u{a0}Wort", "ein \"zitiertes\" wort"],
        );
        assert_cleaned(
            ["write to <file>", "write to <file>"],
            ["in <Datei> schreiben", "in <datei> schreiben"],
        );
        assert_eq!(clean("half &frac12; done", "halb &frac12; fertig"), Err(Reason::Markup));
        assert_eq!(clean("bell \u{7} rings", "glocke \u{7} läutet"), Err(Reason::Markup));
    }

    #[test]
    fn directives_become_one_sign() {
        for directive in [
            "%s",
            "%1$s",
            "%-20.3lf",
            "%lu",
            "%*d",
            "%qE",
            "%1",
            "%L1",
            "%(name)s",
            "{0}",
            "{}",
            "${x}",
            "$name",
            "%PRODUCTNAME",
        ] {
            let (english, german) =
                (format!("cannot open {directive} now"), format!("kann {directive} nicht öffnen"));
            assert_cleaned([&english, "cannot open % now"], [&german, "kann % nicht öffnen"]);
        }
        assert_cleaned(
            ["100%% of %d files", "100% of % files"],
            ["100 %% von %d Dateien", "100 % von % dateien"],
        );
        assert_cleaned(
            ["use %<new%> here", "use \"new\" here"],
            ["hier %<new%> benutzen", "hier \"new\" benutzen"],
        );
        assert_eq!(clean("there are %d files", "eine Datei ist da"), Err(Reason::DifferentDirectives));
    }

    #[test]
    fn what_is_no_pair_is_left_out_for_its_reason() {
        for (english, german, reason) in [
            ("%s: %d", "%s: %d", Reason::NoWords),
            ("", "leer", Reason::NoWords),
            ("Name:", "Name", Reason::SameText),
            (&"long ".repeat(50), &"lang ".repeat(50), Reason::TooLong),
            ("Apply now", "Die neuen Einstellungen werden jetzt angewandt", Reason::DifferentLengths),
            ("Input Method", "Eingabemethode", Reason::TooShort),
            ("the word мир", "das Wort мир", Reason::OtherLetters),
            ("Mail to me@example.org", "Post an me@example.org", Reason::Address),
            ("See https://example.org now", "Siehe https://example.org jetzt", Reason::Address),
            ("Stock label|_Add", "_Hinzufügen", Reason::Context),
            ("_: comment\nAdd", "Hinzufügen", Reason::Context),
        ] {
            assert_eq!(clean(english, german), Err(reason), "{english:?}");
        }
    }

    #[test]
    fn a_source_has_its_most_frequent_translation() {
        let messages = [
            message("Remove the file", "Datei entfernen"),
            message("Delete the file", "Datei löschen"),
            message("delete the file...", "datei löschen"),
            message("Delete the file", "Datei entfernen"),
            message("&Delete the file", "Datei &löschen"),
        ];
        let pairs = |direction| -> Vec<(String, String)> {
            let collected = pairs_of(&messages, direction);
            collected.pairs.into_iter().map(|pair| (pair.source, pair.target)).collect()
        };
        let expected = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(source, target)| ((*source).into(), (*target).into())).collect()
        };
        assert_eq!(
            pairs(Direction::EnglishGerman),
            expected(&[("delete the file", "datei löschen"), ("remove the file", "datei entfernen")])
        );
        // Each of the two translations of "datei entfernen" occurs once: the first in the alphabet.
        let expected =
            expected(&[("datei entfernen", "delete the file"), ("datei löschen", "delete the file")]);
        assert_eq!(pairs(Direction::GermanEnglish), expected);
        let shown = pairs_of(&messages, Direction::EnglishGerman).to_string();
        assert_eq!(shown, "2 pairs of 5 texts in 0 catalogues; left out: 3 whose source is there already");
    }

    #[test]
    fn one_and_many_are_two_texts() {
        let mut files = message("%d file", "%d Datei");
        files.plural = Some("%d files".into());
        assert_eq!(texts(&files).collect::<Vec<_>>(), [("%d file", "%d Datei")]);
        files.translations.push("%d Dateien".into());
        assert_eq!(texts(&files).collect::<Vec<_>>(), [("%d file", "%d Datei"), ("%d files", "%d Dateien")]);
        files.translations = vec![String::new(); 2];
        assert_eq!(texts(&files).count(), 0);
    }

    #[test]
    fn german_catalogues_below_a_folder_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        let error =
            |path: &Path| format!("{:#}", collect(path, Direction::GermanEnglish).err().expect("an error"));
        assert!(error(folder.path()).contains("has no message catalogues"));
        assert!(error(Path::new("/nowhere")).contains("/nowhere"));
        write("a/de/LC_MESSAGES/open.mo", &testing::utf_8(&[("Open the door", "Tür öffnen")]));
        write("b/locale/de/LC_MESSAGES/close.mo", &testing::utf_8(&[("Close the door", "Tür schließen")]));
        write("b/locale/fr/LC_MESSAGES/close.mo", &testing::utf_8(&[("Close the door", "Fermer")]));
        write("b/locale/de/close.mo", b"no catalogue");
        write("b/locale/de/LC_MESSAGES/README", b"no catalogue");
        for path in ["", "a/de/LC_MESSAGES"] {
            let collected = collect(&folder.path().join(path), Direction::GermanEnglish).unwrap();
            assert_eq!(collected.pairs.last().map(|pair| &pair.target[..]), Some("open the door"));
            assert_eq!(collected.catalogues, if path.is_empty() { 2 } else { 1 });
        }
        write("c/de/LC_MESSAGES/broken.mo", b"\xde\x12\x04\x95");
        assert!(error(folder.path()).contains("broken.mo is not a message catalogue: 4 bytes"));
        assert!(error(&folder.path().join("c")).contains("broken.mo"));
        write("d/de/LC_MESSAGES/same.mo", &testing::utf_8(&[("Name", "Name")]));
        assert!(error(&folder.path().join("d")).contains("has no pairs: 0 pairs of 1 texts in 1 catalogues"));
    }

    proptest! {
        #[test]
        fn cleaning_takes_any_text(english in any::<String>(), german in "[_&~%<>;{}$a-zß1 ]{0,30}") {
            if let Ok((english, german)) = clean(&english, &german) {
                prop_assert!(!english.is_empty() && !german.is_empty());
            }
        }
    }
}
