//! A cursor over the file that collects problems.

use std::{cell::RefCell, collections::BTreeSet, fmt, path::Path, rc::Rc, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::duration;

/// Something to say about one key of the file: `path.to.key: what, expected, how to fix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where, as in `http.auth.openid`.
    pub path: String,
    /// The cause and its mend.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Everything that is wrong with a file; never empty.
#[derive(Debug)]
pub struct Problems(pub Vec<Note>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, note) in self.0.iter().enumerate() {
            write!(f, "{}{note}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[derive(Default)]
struct Findings {
    problems: RefCell<Vec<Note>>,
    warnings: RefCell<Vec<Note>>,
    /// The paths of all keys that were read, and do something.
    read: RefCell<BTreeSet<String>>,
}

/// A configuration file that is being read.
pub struct File {
    root: Value,
    findings: Rc<Findings>,
}

impl File {
    /// Reads a file: YAML if it is called `.yaml` or `.yml`, or else JSON.
    ///
    /// # Errors
    /// One problem, under the file's own name, if it can't be read or isn't an object.
    pub fn read(path: &Path) -> Result<Self, Problems> {
        let problem = |message: String| Problems(vec![Note { path: path.display().to_string(), message }]);
        let text = std::fs::read_to_string(path)
            .map_err(|e| problem(format!("can't be read ({e}); give the path of the configuration file")))?;
        let is_yaml =
            path.extension().is_some_and(|end| end.eq_ignore_ascii_case("yaml") || end.eq_ignore_ascii_case("yml"));
        if is_yaml { Self::parse_yaml(&text) } else { Self::parse(&text) }.map_err(problem)
    }

    /// Reads YAML text.
    ///
    /// # Errors
    /// A sentence that says where the YAML breaks.
    pub fn parse_yaml(text: &str) -> Result<Self, String> {
        let root =
            // Without the lines around the mistake, where secrets stand.
            serde_saphyr::from_str(text)
                .map_err(|e| format!("is not YAML ({}); mend it at that line and column", e.without_snippet()))?;
        Self::of(root)
    }

    /// Reads JSON text.
    ///
    /// # Errors
    /// A sentence that says where the JSON breaks.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Unambiguous(root) =
            serde_json::from_str(text).map_err(|e| format!("is not JSON ({e}); mend it at that line and column"))?;
        Self::of(root)
    }

    fn of(root: Value) -> Result<Self, String> {
        match root {
            Value::Object(_) => Ok(Self { root, findings: Rc::default() }),
            _ => Err("must be an object: {\"http\": {…}}".to_owned()),
        }
    }

    /// The whole file as a section.
    pub fn root(&self) -> Section<'_> {
        Section {
            path: String::new(),
            map: self.root.as_object(),
            known: RefCell::default(),
            findings: Rc::clone(&self.findings),
        }
    }

    /// What will be read of it, for the test that compares that with the [reference](crate::reference).
    pub fn record(&self) -> Record {
        Record(Rc::clone(&self.findings))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Every problem that any section found. Otherwise the warnings.
    pub fn finish(self) -> Result<Vec<Note>, Problems> {
        let problems = self.findings.problems.take();
        if problems.is_empty() { Ok(self.findings.warnings.take()) } else { Err(Problems(problems)) }
    }
}

/// Which keys are read of a file.
pub struct Record(Rc<Findings>);

impl Record {
    /// The paths of all keys that were read until now and do something, whether they stand in the file or not.
    pub fn keys(&self) -> BTreeSet<String> {
        self.0.read.borrow().clone()
    }
}

/// JSON in which no key stands twice: of two, readers would take one or the other (RFC 8259, section 4).
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnambiguousVisitor).map(Self)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unambiguous(value)) = items.next_element()? {
            array.push(value);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Unambiguous(value) = entries.next_value()?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} stands twice; keep one")));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// One object of the file. Keys are found whatever their case, as zot finds them.
///
/// A section that isn't in the file is empty. Every key that is asked for is known; [`Section::close`]
/// reports the others.
pub struct Section<'a> {
    path: String,
    map: Option<&'a Map<String, Value>>,
    known: RefCell<Vec<&'static str>>,
    findings: Rc<Findings>,
}

impl<'a> Section<'a> {
    /// Whether the section stands in the file.
    pub fn is_present(&self) -> bool {
        self.map.is_some()
    }

    /// The path of `key` in this section.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Records that `key` is wrong; `message` says what, what was expected and how to fix it.
    pub fn problem(&self, key: &str, message: impl Into<String>) {
        self.findings.problems.borrow_mut().push(Note { path: self.path_of(key), message: message.into() });
    }

    /// Records that `key` is accepted but doesn't do what its writer may think.
    pub fn warn(&self, key: &str, message: impl Into<String>) {
        self.findings.warnings.borrow_mut().push(Note { path: self.path_of(key), message: message.into() });
    }

    /// The value of `key`; `null` counts as absent.
    fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.findings.read.borrow_mut().insert(self.path_of(key));
        self.find(key)
    }

    fn find(&self, key: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().push(key);
        let mut found = self.map?.iter().filter(|(name, _)| name.eq_ignore_ascii_case(key));
        let (_, value) = found.next()?;
        if found.next().is_some() {
            self.problem(key, "stands twice, in different case; keep one");
        }
        (!value.is_null()).then_some(value)
    }

    /// The object at `key`, empty if there is none.
    pub fn section(&self, key: &'static str) -> Section<'a> {
        let map = self.find(key).and_then(|value| self.expect(key, value.as_object(), value, "an object {…}"));
        self.child(key, map)
    }

    /// The entries of the object at `key`, whose names are data (a pattern, a group), in the file's order.
    pub fn entries(&self, key: &'static str) -> Vec<(&'a str, Section<'a>)> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let Some(map) = self.expect(key, value.as_object(), value, "an object {…}") else { return Vec::new() };
        let outer = self.child(key, Some(map));
        map.iter()
            .map(|(name, value)| {
                let map = outer.expect(name, value.as_object(), value, "an object {…}");
                (name.as_str(), outer.child(name, map))
            })
            .collect()
    }

    /// The objects in the array at `key`.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let items = self.expect(key, value.as_array(), value, "an array of objects [{…}]");
        items
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(i, item)| {
                let name = format!("{key}[{i}]");
                let map = self.expect(&name, item.as_object(), item, "an object {…}");
                self.child(&name, map)
            })
            .collect()
    }

    /// The text at `key`; an empty one counts as absent.
    pub fn text(&self, key: &'static str) -> Option<&'a str> {
        let value = self.value(key)?;
        self.expect(key, value.as_str(), value, "a text \"…\"").filter(|text| !text.is_empty())
    }

    /// The texts in the array at `key`; `None` if the key is absent.
    pub fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let items = self.expect(key, value.as_array(), value, "an array of texts [\"…\"]")?;
        let text = |(i, item): (usize, &Value)| {
            self.expect(&format!("{key}[{i}]"), item.as_str(), item, "a text \"…\"").map(str::to_owned)
        };
        Some(items.iter().enumerate().filter_map(text).collect())
    }

    /// The entries of the object at `key`, whose names are data (a header) and whose values are texts.
    pub fn text_entries(&self, key: &'static str) -> Vec<(&'a str, &'a str)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(map) = self.expect(key, value.as_object(), value, "an object {…}") else { return Vec::new() };
        let outer = self.child(key, Some(map));
        let text = |(name, value): (&'a String, &'a Value)| {
            outer.expect(name, value.as_str(), value, "a text \"…\"").map(|text| (name.as_str(), text))
        };
        map.iter().filter_map(text).collect()
    }

    /// `true` or `false` at `key`, quoted or not, as zot takes them.
    pub fn flag(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let flag = match value {
            Value::String(text) => text.to_ascii_lowercase().parse().ok(),
            other => other.as_bool(),
        };
        self.expect(key, flag, value, "true or false")
    }

    /// A number at `key`.
    pub fn number(&self, key: &'static str) -> Option<u64> {
        let value = self.value(key)?;
        self.expect(key, value.as_u64(), value, "a number")
    }

    /// A TCP port at `key`, as a text (zot's way) or a number.
    pub fn port(&self, key: &'static str) -> Option<u16> {
        let value = self.value(key)?;
        let port = match value {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64().and_then(|n| u16::try_from(n).ok()),
        };
        self.expect(key, port, value, "a port from 0 to 65535, such as \"8080\"")
    }

    /// A length of time at `key`, written as Go does: `90s`, `1h30m`, or a number of nanoseconds.
    pub fn duration(&self, key: &'static str) -> Option<Duration> {
        let value = self.value(key)?;
        let parsed = match value {
            Value::String(text) => duration::parse(text),
            other => other.as_u64().map(Duration::from_nanos),
        };
        self.expect(key, parsed, value, "a length of time such as \"90s\", \"15m\" or \"24h\"")
    }

    /// Marks a key of zot's that Berth doesn't have and that only adds something: if it is there, it is
    /// warned of, with the reason.
    pub fn ignore(&self, key: &'static str, reason: &str) {
        if self.find(key).is_some() {
            self.warn(key, format!("is not used: {reason}"));
        }
    }

    /// Marks a key of zot's that Berth doesn't have and that guards something: if it is there, the file is
    /// refused, with what to do instead.
    pub fn refuse(&self, key: &'static str, instead: &str) {
        if self.find(key).is_some() {
            self.problem(key, format!("is not supported, and leaving it out silently could let people in; {instead}"));
        }
    }

    /// Whether there is an object with something in it at `key`, which Berth doesn't have.
    pub fn holds_object(&self, key: &'static str) -> bool {
        self.find(key).and_then(Value::as_object).is_some_and(|object| !object.is_empty())
    }

    /// Marks a key that the other process reads.
    pub fn not_ours(&self, key: &'static str) {
        self.known.borrow_mut().push(key);
    }

    /// Reports every key that nobody asked for.
    pub fn close(self) {
        let Some(map) = self.map else { return };
        let known = self.known.borrow();
        for name in map.keys().filter(|name| !known.iter().any(|k| k.eq_ignore_ascii_case(name))) {
            let mut keys: Vec<&str> = known.clone();
            keys.sort_unstable();
            keys.dedup();
            self.problem(name, format!("is not a known key; expected one of {}", keys.join(", ")));
        }
    }

    fn child(&self, key: &str, map: Option<&'a Map<String, Value>>) -> Section<'a> {
        Section { path: self.path_of(key), map, known: RefCell::default(), findings: Rc::clone(&self.findings) }
    }

    /// `found`, or a problem that says what stands there instead of `wanted`. A text is never repeated: it
    /// may be a secret.
    fn expect<T>(&self, key: &str, found: Option<T>, value: &Value, wanted: &str) -> Option<T> {
        if found.is_none() {
            let got = match value {
                Value::Null => "null",
                Value::Bool(_) => "true or false",
                Value::Number(_) => "a number",
                Value::String(_) => "a text that can't be read as that",
                Value::Array(_) => "an array",
                Value::Object(_) => "an object",
            };
            self.problem(key, format!("is {got}; expected {wanted}"));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problems(text: &str, read: impl Fn(&Section<'_>)) -> Vec<String> {
        let file = File::parse(text).expect("JSON");
        let root = file.root();
        read(&root);
        root.close();
        match file.finish() {
            Ok(_) => Vec::new(),
            Err(Problems(notes)) => notes.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn keys_are_found_in_any_case() {
        let file = File::parse(r#"{"HTTP": {"ExternalURL": "https://x", "PORT": 80}}"#).expect("JSON");
        let http = file.root().section("http");
        assert_eq!((http.text("externalUrl"), http.port("port")), (Some("https://x"), Some(80)));
    }

    #[test]
    fn every_problem_is_named_by_its_path() {
        let found = problems(r#"{"a": {"b": 1, "B": 2, "c": ["x", 3]}, "oops": 1}"#, |root| {
            let a = root.section("a");
            a.text("b");
            a.texts("c");
            a.close();
        });
        assert_eq!(
            found,
            [
                "a.b: stands twice, in different case; keep one",
                "a.b: is a number; expected a text \"…\"",
                "a.c[1]: is a number; expected a text \"…\"",
                "oops: is not a known key; expected one of a",
            ]
        );
    }

    #[test]
    fn a_value_of_a_wrong_kind_is_not_repeated() {
        let found = problems(r#"{"port": "hunter2"}"#, |root| {
            root.port("port");
        });
        assert!(found[0].starts_with("port: is a text that can't be read as that; expected a port"), "{found:?}");
        assert!(!found[0].contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"[\{\}\[\]":,a-z0-9. ]{0,60}"#) {
            if let Ok(file) = File::parse(&text) {
                let root = file.root();
                let _ = (root.text("a"), root.texts("b"), root.port("c"), root.duration("d"), root.entries("e").len());
                root.close();
                let _ = file.finish();
            }
        }
    }
}
