//! The binary message catalogues of GNU gettext, `.mo` files.
//!
//! The format is that of the manual's "The Format of GNU MO Files": seven words of 32 bits, a table of (length, offset) for the messages, one for
//! their translations, then the strings. The hash table and the system-dependent strings of minor revision 1 are not read.

use std::ops::Range;

use anyhow::{Context, bail, ensure};
use encoding_rs::{Encoding, UTF_8};

const MAGIC: u32 = 0x9504_12de;
/// Magic number, revision, number of strings, and where the two tables are.
const HEADER_BYTES: usize = 20;
/// Length and offset of a string.
const ENTRY_BYTES: usize = 8;
/// Stands between a context and its message.
const CONTEXT_END: char = '\u{4}';
/// Stands between the forms of a message.
const FORM_END: char = '\0';

/// A message and its translation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What tells it from others with the same text.
    pub context: Option<String>,
    pub singular: String,
    /// The text for other numbers than one, if the message depends on a number.
    pub plural: Option<String>,
    /// Translations: one, or one for each plural form of the language.
    pub translations: Vec<String>,
}

/// Reads all messages of a catalogue but its header.
pub fn parse(bytes: &[u8]) -> anyhow::Result<Vec<Message>> {
    let file = File::new(bytes)?;
    let entries = (0..file.count).map(|index| file.entry(index)).collect::<anyhow::Result<Vec<_>>>()?;
    // Strings that share their bytes would let a small file become a huge catalogue.
    let total: usize = entries.iter().flatten().map(|text| text.len()).sum();
    ensure!(total <= bytes.len(), "strings overlap: {total} bytes of text in a file of {}", bytes.len());
    let header = entries.iter().find(|[message, _]| message.is_empty());
    let encoding = header.map_or(Ok(UTF_8), |[_, header]| charset(header))?;
    let decode = |index: usize, text: &[u8]| {
        let decoded = encoding.decode_without_bom_handling_and_without_replacement(text);
        decoded.map(String::from).with_context(|| format!("string {index} is not {}", encoding.name()))
    };
    let messages = entries.iter().enumerate().filter(|(_, [message, _])| !message.is_empty());
    messages
        .map(|(index, [message, translation])| {
            let message = decode(index, message)?;
            let (context, message) = match message.split_once(CONTEXT_END) {
                Some((context, message)) => (Some(context.to_owned()), message),
                None => (None, &message[..]),
            };
            let (singular, plural) = match message.split_once(FORM_END) {
                Some((singular, plural)) => (singular, Some(plural.to_owned())),
                None => (message, None),
            };
            let translations = decode(index, translation)?.split(FORM_END).map(str::to_owned).collect();
            Ok(Message { context, singular: singular.to_owned(), plural, translations })
        })
        .collect()
}

/// The encoding that a catalogue's header names; UTF-8 if it names none.
fn charset(header: &[u8]) -> anyhow::Result<&'static Encoding> {
    let header = String::from_utf8_lossy(header);
    let of_line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let value = name.trim().eq_ignore_ascii_case("content-type").then_some(value)?.to_ascii_lowercase();
        Some(value.split_once("charset=")?.1.split([';', ' ', '\t']).next()?.trim().to_owned())
    };
    match header.lines().find_map(of_line) {
        Some(name) => {
            Encoding::for_label(name.as_bytes()).with_context(|| format!("unknown charset {name:?}"))
        }
        None => Ok(UTF_8),
    }
}

/// The bytes of a catalogue and what its header says about them.
struct File<'a> {
    bytes: &'a [u8],
    word: fn([u8; 4]) -> u32,
    count: usize,
    /// Where the tables of the messages and of the translations are.
    tables: [usize; 2],
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            bail!(
                "{} bytes: expected at least {HEADER_BYTES}, the header of a message catalogue",
                bytes.len()
            );
        };
        let (words, _) = header.as_chunks::<4>();
        let word = match words[0] {
            magic if u32::from_le_bytes(magic) == MAGIC => u32::from_le_bytes,
            magic if u32::from_be_bytes(magic) == MAGIC => u32::from_be_bytes,
            magic => bail!(
                "magic number {:#010x}: expected {MAGIC:#x} in either byte order",
                u32::from_le_bytes(magic)
            ),
        };
        let major = word(words[1]) >> 16;
        ensure!(major <= 1, "revision {major}: expected 0 or 1");
        let [count, messages, translations] = [2, 3, 4].map(|index| word(words[index]) as usize);
        let file = Self { bytes, word, count, tables: [messages, translations] };
        for (name, start) in [("messages", messages), ("translations", translations)] {
            let length = count.checked_mul(ENTRY_BYTES);
            let table = length.and_then(|length| file.range(start, length));
            ensure!(
                table.is_some(),
                "the table of {count} {name} at byte {start} ends after the file, which has {} bytes",
                bytes.len()
            );
        }
        Ok(file)
    }

    /// `length` bytes from `start`, if the file has them.
    fn range(&self, start: usize, length: usize) -> Option<Range<usize>> {
        let end = start.checked_add(length)?;
        (end <= self.bytes.len()).then_some(start..end)
    }

    /// The text of a message and that of its translation, without the NUL at their ends.
    fn entry(&self, index: usize) -> anyhow::Result<[&'a [u8]; 2]> {
        let text = |table: usize| {
            // `new` has checked that both tables are in the file.
            let (words, _) = self.bytes[table + index * ENTRY_BYTES..][..ENTRY_BYTES].as_chunks::<4>();
            let [length, start] = [0, 1].map(|place| (self.word)(words[place]) as usize);
            let range = length.checked_add(1).and_then(|length| self.range(start, length));
            let Some(range) = range else {
                bail!(
                    "string {index}, {length} bytes at byte {start}, ends after the file, which has {} bytes",
                    self.bytes.len()
                );
            };
            match self.bytes[range].split_last() {
                Some((0, text)) => Ok(text),
                _ => bail!("string {index}, {length} bytes at byte {start}, does not end with NUL"),
            }
        };
        let [messages, translations] = self.tables;
        Ok([text(messages)?, text(translations)?])
    }
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// A catalogue of these messages and translations in one byte order.
    pub fn catalogue(word: fn(u32) -> [u8; 4], strings: &[(&[u8], &[u8])]) -> Vec<u8> {
        let count = strings.len();
        let messages = 28;
        let translations = messages + count * ENTRY_BYTES;
        let mut start = translations + count * ENTRY_BYTES;
        let mut bytes: Vec<u8> = [MAGIC, 0, count as u32, messages as u32, translations as u32, 0, 0]
            .into_iter()
            .flat_map(word)
            .collect();
        let texts = strings
            .iter()
            .map(|(message, _)| *message)
            .chain(strings.iter().map(|(_, translation)| *translation));
        for text in texts.clone() {
            bytes.extend([text.len() as u32, start as u32].into_iter().flat_map(word));
            start += text.len() + 1;
        }
        texts.for_each(|text| bytes.extend(text.iter().chain(b"\0")));
        bytes
    }

    /// One with UTF-8 text and the header that says so.
    pub fn utf_8(strings: &[(&str, &str)]) -> Vec<u8> {
        let header = ("", "Content-Type: text/plain; charset=UTF-8\n");
        let strings: Vec<_> =
            [header].iter().chain(strings).map(|(a, b)| (a.as_bytes(), b.as_bytes())).collect();
        catalogue(u32::to_le_bytes, &strings)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{catalogue, utf_8};
    use super::*;

    fn message(
        context: Option<&str>,
        singular: &str,
        plural: Option<&str>,
        translations: &[&str],
    ) -> Message {
        Message {
            context: context.map(Into::into),
            singular: singular.into(),
            plural: plural.map(Into::into),
            translations: translations.iter().map(|text| (*text).into()).collect(),
        }
    }

    fn error_of(bytes: &[u8]) -> String {
        format!("{:#}", parse(bytes).expect_err("an error"))
    }

    /// With a word of the header, or of the tables, replaced.
    fn with_word(bytes: &[u8], index: usize, value: u32) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[4 * index..][..4].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    #[test]
    fn both_byte_orders_contexts_and_plural_forms_are_read() {
        let strings: [(&[u8], &[u8]); 4] = [
            (b"", "Project-Id-Version: x\nContent-Type: text/plain; charset=UTF-8\n".as_bytes()),
            (b"%d file\0%d files", "%d Datei\0%d Dateien".as_bytes()),
            (b"menu\x04Open", "Öffnen".as_bytes()),
            (b"Close", b"Schlie\xc3\x9fen"),
        ];
        let expected = [
            message(None, "%d file", Some("%d files"), &["%d Datei", "%d Dateien"]),
            message(Some("menu"), "Open", None, &["Öffnen"]),
            message(None, "Close", None, &["Schließen"]),
        ];
        for word in [u32::to_le_bytes, u32::to_be_bytes] {
            assert_eq!(parse(&catalogue(word, &strings)).unwrap(), expected);
        }
    }

    #[test]
    fn the_header_names_the_charset() {
        let of =
            |header: &str| catalogue(u32::to_le_bytes, &[(b"", header.as_bytes()), (b"Open", b"\xd6ffnen")]);
        let latin = "content-type: text/plain; charset=ISO-8859-1\nPlural-Forms: x\n";
        assert_eq!(parse(&of(latin)).unwrap(), [message(None, "Open", None, &["Öffnen"])]);
        assert_eq!(error_of(&of("Content-Type: text/plain; charset=UTF-8\n")), "string 1 is not UTF-8");
        assert_eq!(error_of(&of("Language: de\n")), "string 1 is not UTF-8");
        assert_eq!(
            error_of(&of("Content-Type: text/plain; charset=CHARSET\n")),
            "unknown charset \"charset\""
        );
    }

    #[test]
    fn what_is_no_catalogue_is_refused() {
        let good = utf_8(&[("Open", "Öffnen")]);
        assert_eq!(parse(&good).unwrap().len(), 1);
        assert!(error_of(b"").contains("0 bytes: expected at least 20"));
        assert!(error_of(&good[..19]).contains("19 bytes"));
        assert!(error_of(&with_word(&good, 0, 0x0403_4b50)).contains("magic number 0x04034b50"));
        assert!(error_of(&with_word(&good, 1, 2 << 16)).contains("revision 2: expected 0 or 1"));
        assert_eq!(parse(&with_word(&good, 1, 1)).unwrap().len(), 1);
    }

    #[test]
    fn strings_outside_the_file_are_named() {
        let good = utf_8(&[("Open", "Öffnen")]);
        // Words: 2 is the number of strings, 3 and 4 are the tables, 9 and 10 are length and offset of string 1.
        assert!(error_of(&with_word(&good, 2, u32::MAX)).contains("the table of 4294967295 messages"));
        assert!(
            error_of(&with_word(&good, 3, u32::MAX))
                .contains("messages at byte 4294967295 ends after the file")
        );
        assert!(
            error_of(&with_word(&good, 4, good.len() as u32 - 15)).contains("the table of 2 translations")
        );
        assert!(error_of(&with_word(&good, 9, u32::MAX)).contains("string 1, 4294967295 bytes"));
        assert!(error_of(&with_word(&good, 10, good.len() as u32 - 4)).contains("ends after the file"));
        assert!(error_of(&with_word(&good, 9, 3)).contains("string 1, 3 bytes at byte"));
        assert!(error_of(&good[..good.len() - 1]).contains("string 1"));
    }

    #[test]
    fn strings_that_share_their_bytes_are_refused() {
        let long = "x".repeat(1_000);
        let good = utf_8(&[(&long, "1"), ("2", "2"), ("3", "3")]);
        // Length and offset of string 2 and 3 become those of string 1.
        let word = |index: usize| u32::from_le_bytes(*good[4 * index..].first_chunk().unwrap());
        let (length, start) = (word(9), word(10));
        let shared = [(11, length), (12, start), (13, length), (14, start)];
        let shared =
            shared.into_iter().fold(good.clone(), |bytes, (index, value)| with_word(&bytes, index, value));
        assert!(error_of(&shared).contains("strings overlap"));
    }

    proptest! {
        #[test]
        fn damaged_catalogues_never_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = utf_8(&[("menu\u{4}Open", "Öffnen"), ("a\0b", "c\0d")]);
            for (index, value) in damage {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
            let _ = parse(&bytes);
            let _ = parse(&bytes[..end.index(bytes.len())]);
        }

        #[test]
        fn what_was_written_is_read(strings in prop::collection::vec(("[a-zäß ]{1,20}", "[a-zäß ]{0,20}"), 0..10)) {
            let strings: Vec<_> = strings.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            let expected: Vec<_> = strings.iter().map(|(a, b)| message(None, a, None, &[b])).collect();
            prop_assert_eq!(parse(&utf_8(&strings)).unwrap(), expected);
        }
    }
}
