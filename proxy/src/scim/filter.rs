//! Filters and paths (RFC 7644, sections 3.4.2.2 and 3.5.2): read once into a value, and then asked of documents.

use serde_json::{Map, Value};

/// How long a filter or path may be, in bytes, and how deep.
const MAX_BYTES: usize = 2000;
const MAX_DEPTH: usize = 12;

/// A filter.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// An attribute compared with a value.
    Compare(AttributePath, Comparison, Value),
    /// An attribute is there.
    Present(AttributePath),
    /// Of a multi-valued attribute, some value passes.
    Some(String, Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
}

/// An attribute, and perhaps a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributePath {
    pub name: String,
    pub part: Option<String>,
}

impl AttributePath {
    fn parse(word: &str) -> Option<Self> {
        // What stands before the last colon is a schema's name, which has dots.
        let start = word.rfind(':').map_or(0, |at| at + 1);
        let short = &word[start..];
        let (name, part) = match short.split_once('.') {
            Some((name, part)) => (name, Some(part)),
            None => (short, None),
        };
        let is_name = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$'))
        };
        if !is_name(name) || part.is_some_and(|part| !is_name(part)) {
            return None;
        }
        Some(Self { name: format!("{}{name}", &word[..start]), part: part.map(str::to_owned) })
    }
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Comparison {
    fn parse(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "eq" => Self::Equal,
            "ne" => Self::NotEqual,
            "co" => Self::Contains,
            "sw" => Self::StartsWith,
            "ew" => Self::EndsWith,
            "gt" => Self::Greater,
            "ge" => Self::GreaterOrEqual,
            "lt" => Self::Less,
            "le" => Self::LessOrEqual,
            _ => return None,
        })
    }

    fn holds(self, one: &Value, other: &Value, is_exact: bool) -> bool {
        let (Value::String(one), Value::String(other)) = (one, other) else {
            return match self {
                Self::Equal => one == other,
                Self::NotEqual => one != other,
                _ => false,
            };
        };
        let fold = |text: &str| if is_exact { text.to_owned() } else { text.to_lowercase() };
        let (one, other) = (fold(one), fold(other));
        match self {
            Self::Equal => one == other,
            Self::NotEqual => one != other,
            Self::Contains => one.contains(&other),
            Self::StartsWith => one.starts_with(&other),
            Self::EndsWith => one.ends_with(&other),
            Self::Greater => one > other,
            Self::GreaterOrEqual => one >= other,
            Self::Less => one < other,
            Self::LessOrEqual => one <= other,
        }
    }
}

/// Where a change goes: an attribute, some of its values, a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    pub name: String,
    pub filter: Option<Filter>,
    pub part: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Literal(Value),
    Open,
    Close,
    OpenValues,
    CloseValues,
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '(' | ')' | '[' | ']' => {
                tokens.push(match first {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    '[' => Token::OpenValues,
                    _ => Token::CloseValues,
                });
                1
            }
            '"' => {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
                match values.next() {
                    Some(Ok(value)) => tokens.push(Token::Literal(value)),
                    _ => return Err("a text has no end".to_owned()),
                }
                values.byte_offset()
            }
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || "()[]\"".contains(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                end
            }
        };
        rest = rest[taken..].trim_start();
    }
    Ok(tokens)
}

struct Reader {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

impl Reader {
    fn of(text: &str) -> Result<Self, String> {
        Ok(Self { tokens: tokens(text)?.into_iter().peekable(), depth: 0 })
    }

    fn takes(&mut self, word: &str) -> bool {
        let is_next = matches!(self.tokens.peek(), Some(Token::Word(next)) if next.eq_ignore_ascii_case(word));
        if is_next {
            self.tokens.next();
        }
        is_next
    }

    fn expect(&mut self, token: &Token, what: &str) -> Result<(), String> {
        if self.tokens.next().as_ref() == Some(token) { Ok(()) } else { Err(format!("{what} is missing")) }
    }

    fn end(mut self) -> Result<(), String> {
        self.tokens.next().map_or(Ok(()), |_| Err("something stands after its end".to_owned()))
    }

    fn any(&mut self) -> Result<Filter, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is deeper than {MAX_DEPTH}"));
        }
        let mut filter = self.all()?;
        while self.takes("or") {
            filter = Filter::Or(Box::new(filter), Box::new(self.all()?));
        }
        self.depth -= 1;
        Ok(filter)
    }

    fn all(&mut self) -> Result<Filter, String> {
        let mut filter = self.one()?;
        while self.takes("and") {
            filter = Filter::And(Box::new(filter), Box::new(self.one()?));
        }
        Ok(filter)
    }

    fn one(&mut self) -> Result<Filter, String> {
        if self.takes("not") {
            self.expect(&Token::Open, "( after not")?;
            let filter = self.any()?;
            self.expect(&Token::Close, ")")?;
            return Ok(Filter::Not(Box::new(filter)));
        }
        match self.tokens.next() {
            Some(Token::Open) => {
                let filter = self.any()?;
                self.expect(&Token::Close, ")")?;
                Ok(filter)
            }
            Some(Token::Word(word)) => self.comparison(&word),
            _ => Err("an attribute is missing".to_owned()),
        }
    }

    fn comparison(&mut self, word: &str) -> Result<Filter, String> {
        let path = AttributePath::parse(word).ok_or_else(|| format!("{word} is no attribute"))?;
        if self.tokens.peek() == Some(&Token::OpenValues) {
            self.tokens.next();
            let filter = self.any()?;
            self.expect(&Token::CloseValues, "]")?;
            return Ok(Filter::Some(path.name, Box::new(filter)));
        }
        let operator = match self.tokens.next() {
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("pr") => return Ok(Filter::Present(path)),
            Some(Token::Word(word)) => Comparison::parse(&word).ok_or_else(|| format!("{word} is no comparison"))?,
            _ => return Err("a comparison is missing".to_owned()),
        };
        let value = match self.tokens.next() {
            Some(Token::Literal(value)) => value,
            Some(Token::Word(word)) => match serde_json::from_str(&word.to_ascii_lowercase()) {
                Ok(value @ (Value::Bool(_) | Value::Null | Value::Number(_))) => value,
                _ => return Err(format!("{word} is no value; texts stand in double quotes")),
            },
            _ => return Err("a value is missing".to_owned()),
        };
        Ok(Filter::Compare(path, operator, value))
    }
}

/// The value of a key, in any case.
pub fn get<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader::of(text)?;
        let filter = reader.any()?;
        reader.end()?;
        Ok(filter)
    }

    /// Whether a document, or a value of one, passes.
    pub fn passes(&self, document: &Map<String, Value>) -> bool {
        match self {
            Self::And(one, other) => one.passes(document) && other.passes(document),
            Self::Or(one, other) => one.passes(document) || other.passes(document),
            Self::Not(filter) => !filter.passes(document),
            Self::Present(path) => values(document, path).iter().any(|value| !value.is_null() && **value != ""),
            Self::Some(name, filter) => {
                let path = AttributePath { name: name.clone(), part: None };
                let values = values_of(document, &path.name);
                values.iter().filter_map(|value| value.as_object()).any(|value| filter.passes(value))
            }
            Self::Compare(path, comparison, expected) => {
                let is_exact = ["id", "externalId", "value", "$ref"]
                    .iter()
                    .any(|exact| path.part.is_none() && short(&path.name).eq_ignore_ascii_case(exact));
                let found = values(document, path);
                match comparison {
                    Comparison::NotEqual => {
                        !found.iter().any(|value| Comparison::Equal.holds(value, expected, is_exact))
                    }
                    _ => found.iter().any(|value| comparison.holds(value, expected, is_exact)),
                }
            }
        }
    }

    /// The attribute and the text, if it asks for nothing but that one equals the other.
    pub fn as_equality(&self) -> Option<(&str, &str)> {
        match self {
            Self::Compare(AttributePath { name, part: None }, Comparison::Equal, Value::String(text)) => {
                Some((short(name), text))
            }
            _ => None,
        }
    }
}

/// Without the schema's name.
fn short(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

fn values_of<'a>(document: &'a Map<String, Value>, name: &str) -> Vec<&'a Value> {
    match get(document, short(name)) {
        Some(Value::Array(all)) => all.iter().collect(),
        Some(value) => vec![value],
        None => Vec::new(),
    }
}

/// What an attribute has; of complex values without a part, their `value` (RFC 7643, section 2.4).
fn values<'a>(document: &'a Map<String, Value>, path: &AttributePath) -> Vec<&'a Value> {
    let part = path.part.as_deref();
    let value = |value: &'a Value| match value {
        Value::Object(parts) => get(parts, part.unwrap_or("value")),
        _ if part.is_some() => None,
        value => Some(value),
    };
    values_of(document, &path.name).into_iter().filter_map(value).collect()
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader::of(text)?;
        let Some(Token::Word(word)) = reader.tokens.next() else {
            return Err("a path begins with an attribute".to_owned());
        };
        let AttributePath { name, mut part } =
            AttributePath::parse(&word).ok_or_else(|| format!("{word} is no attribute"))?;
        let mut filter = None;
        if reader.tokens.peek() == Some(&Token::OpenValues) {
            reader.tokens.next();
            filter = Some(reader.any()?);
            reader.expect(&Token::CloseValues, "]")?;
            if let Some(Token::Word(word)) = reader.tokens.peek().cloned() {
                reader.tokens.next();
                let after = word.strip_prefix('.').and_then(AttributePath::parse).filter(|path| path.part.is_none());
                part = Some(after.ok_or_else(|| format!("{word} is no part"))?.name);
            }
        }
        reader.end()?;
        Ok(Self { name, filter, part })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_ask_what_they_say() {
        let document = json!({"userName": "Alice", "active": true, "externalId": "Ab", "name": {"familyName": "Jensen"},
            "emails": [{"value": "a@company", "type": "work"}, {"value": "b@home"}]});
        let document = document.as_object().expect("an object");
        for (text, expected) in [
            (r#"userName eq "alice""#, true),
            (r#"USERNAME Eq "alice""#, true),
            (r#"externalId eq "ab""#, false),
            (r#"userName sw "al" and active eq true"#, true),
            (r#"userName eq "bob" or name.familyName co "ENS""#, true),
            (r#"not (userName eq "bob")"#, true),
            (r#"emails eq "a@company""#, true),
            (r#"emails[type eq "work" and value co "home"]"#, false),
            (r#"emails[type eq "work"]"#, true),
            (r#"emails.type ne "work""#, false),
            ("title pr", false),
            ("emails pr and displayName pr", false),
            (r#"urn:ietf:params:scim:schemas:core:2.0:User:userName eq "alice""#, true),
            (r#"userName eq "bob" and userName eq "bob" or userName eq "alice""#, true),
        ] {
            assert_eq!(Filter::parse(text).expect(text).passes(document), expected, "{text}");
        }
        assert_eq!(Filter::parse(r#"userName eq "a\"b""#).expect("a filter").as_equality(), Some(("userName", "a\"b")));
        for text in
            ["", "userName", "userName eq", "userName is \"x\"", "(userName pr", "userName pr)", "a eq b", "\"x\" eq a"]
        {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        assert!(Filter::parse(&("(".repeat(100) + "a pr" + &")".repeat(100))).is_err());
    }

    #[test]
    fn paths_lead_to_attributes_values_and_parts() {
        let path = |text: &str| Path::parse(text).expect(text);
        assert_eq!(
            (path("members").name, path("name.familyName").part),
            ("members".to_owned(), Some("familyName".to_owned()))
        );
        let filtered = path(r#"emails[type eq "work"].value"#);
        assert!(filtered.filter.is_some() && filtered.part.as_deref() == Some("value"));
        assert!(path(r#"members[value eq "1"]"#).part.is_none());
        for text in ["", "a b", "emails[", "emails[]", "a.b.c", "emails[type pr].a.b", "[a pr]"] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in r#"([a-z.:\[\]()" ]|eq|pr|and|or|not|"x"|userName){0,30}"#) {
            if let Ok(filter) = Filter::parse(&text) {
                let _ = filter.passes(json!({"a": [{"value": 1}]}).as_object().expect("an object"));
            }
            let _ = Path::parse(&text);
        }
    }
}
