//! The attributes that we keep of users and groups (RFC 7643, sections 4.1 and 4.2), and what is told of them at `/Schemas`.

use serde_json::{Map, Value, json};

use super::error::{ScimError, Type as ErrorType};

/// The longest text that an attribute may have, in characters.
const MAX_TEXT_CHARS: usize = 1024;

/// How many values an attribute may have, and how many members a group.
const MAX_VALUES: usize = 100;
const MAX_MEMBERS: usize = 50_000;

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    User,
    Group,
}

/// What an attribute holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Text,
    Flag,
    Reference,
    Complex,
}

/// An attribute (RFC 7643, section 2.2).
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    pub name: &'static str,
    pub of: Type,
    pub is_multi: bool,
    pub is_required: bool,
    pub is_read_only: bool,
    pub is_unique: bool,
    pub is_case_exact: bool,
    /// Set with its value, and not changed by itself.
    is_immutable: bool,
    pub parts: &'static [Attribute],
    /// Of a reference, to what.
    refers_to: &'static str,
    about: &'static str,
}

const fn attribute(name: &'static str, of: Type, about: &'static str) -> Attribute {
    Attribute {
        name,
        of,
        is_multi: false,
        is_required: false,
        is_read_only: false,
        is_unique: false,
        is_case_exact: false,
        is_immutable: false,
        parts: &[],
        refers_to: "",
        about,
    }
}

const NAME: [Attribute; 6] = [
    attribute("formatted", Type::Text, "The whole name"),
    attribute("familyName", Type::Text, "The family name"),
    attribute("givenName", Type::Text, "The given name"),
    attribute("middleName", Type::Text, "Middle names"),
    attribute("honorificPrefix", Type::Text, "A title before the name"),
    attribute("honorificSuffix", Type::Text, "What stands after the name"),
];

const EMAIL: [Attribute; 4] = [
    attribute("value", Type::Text, "The address"),
    attribute("display", Type::Text, "How it is shown"),
    attribute("type", Type::Text, "Such as work"),
    attribute("primary", Type::Flag, "Whether it is the first choice"),
];

const GROUP_OF: [Attribute; 3] = [
    Attribute { is_read_only: true, is_case_exact: true, ..attribute("value", Type::Text, "The group's id") },
    Attribute { is_read_only: true, refers_to: "Group", ..attribute("$ref", Type::Reference, "The group's address") },
    Attribute { is_read_only: true, ..attribute("display", Type::Text, "The group's name") },
];

const MEMBER: [Attribute; 2] = [
    Attribute { is_immutable: true, is_case_exact: true, ..attribute("value", Type::Text, "The user's id") },
    Attribute { is_immutable: true, refers_to: "User", ..attribute("$ref", Type::Reference, "The user's address") },
];

const EXTERNAL_ID: Attribute =
    Attribute { is_case_exact: true, ..attribute("externalId", Type::Text, "Its name at the identity provider") };

const USER: [Attribute; 9] = [
    EXTERNAL_ID,
    Attribute { is_required: true, is_unique: true, ..attribute("userName", Type::Text, "The name to sign in with") },
    Attribute { parts: &NAME, ..attribute("name", Type::Complex, "The parts of the name") },
    attribute("displayName", Type::Text, "The name to show"),
    attribute("nickName", Type::Text, "The name among friends"),
    attribute("title", Type::Text, "Such as Vice President"),
    attribute("active", Type::Flag, "Whether they may sign in and use what they have"),
    Attribute { is_multi: true, parts: &EMAIL, ..attribute("emails", Type::Complex, "Addresses") },
    Attribute {
        is_multi: true,
        is_read_only: true,
        parts: &GROUP_OF,
        ..attribute("groups", Type::Complex, "The groups that they are in")
    },
];

const GROUP: [Attribute; 3] = [
    EXTERNAL_ID,
    Attribute {
        is_required: true,
        is_unique: true,
        ..attribute("displayName", Type::Text, "The name that rules know")
    },
    Attribute { is_multi: true, parts: &MEMBER, ..attribute("members", Type::Complex, "The users in it") },
];

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::User, Self::Group];

    /// `User` or `Group`
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Group => "Group",
        }
    }

    /// Where they are: `Users` or `Groups`
    pub fn path(self) -> &'static str {
        match self {
            Self::User => "Users",
            Self::Group => "Groups",
        }
    }

    /// The name of its schema.
    pub fn urn(self) -> &'static str {
        match self {
            Self::User => "urn:ietf:params:scim:schemas:core:2.0:User",
            Self::Group => "urn:ietf:params:scim:schemas:core:2.0:Group",
        }
    }

    /// Its attributes, `externalId` among them.
    pub fn attributes(self) -> &'static [Attribute] {
        match self {
            Self::User => &USER,
            Self::Group => &GROUP,
        }
    }

    /// The attribute that names one.
    pub fn name_attribute(self) -> &'static str {
        match self {
            Self::User => "userName",
            Self::Group => "displayName",
        }
    }

    /// An attribute by its name, in any case, perhaps with the schema's name before it (RFC 7644, section 3.10).
    pub fn find(self, name: &str) -> Option<&'static Attribute> {
        let short = name.get(..self.urn().len()).filter(|urn| urn.eq_ignore_ascii_case(self.urn()));
        let name = short.and_then(|_| name[self.urn().len()..].strip_prefix(':')).unwrap_or(name);
        part(self.attributes(), name)
    }

    /// What we keep of a resource that somebody has sent: known attributes, as they are written here, without those that only
    /// we set.
    ///
    /// # Errors
    /// What is of another type than it must be, or missing.
    pub fn normalize(self, sent: &Value) -> Result<Map<String, Value>, ScimError> {
        let sent =
            sent.as_object().ok_or_else(|| ScimError::bad(ErrorType::InvalidSyntax, "a resource is an object"))?;
        let schemas =
            sent.iter().find(|(key, _)| key.eq_ignore_ascii_case("schemas")).and_then(|(_, all)| all.as_array());
        let is_ours = |one: &Value| one.as_str().is_some_and(|one| one.eq_ignore_ascii_case(self.urn()));
        if schemas.is_some_and(|schemas| !schemas.iter().any(is_ours)) {
            return Err(ScimError::bad(ErrorType::InvalidValue, format!("schemas must have {}", self.urn())));
        }
        let kept = normalize_parts(self.attributes(), sent)?;
        self.must_be_whole(&kept)?;
        Ok(kept)
    }

    /// Nothing, or the error that something is missing.
    pub fn must_be_whole(self, kept: &Map<String, Value>) -> Result<(), ScimError> {
        let name = kept.get(self.name_attribute()).and_then(Value::as_str).unwrap_or_default();
        if name.trim().is_empty() {
            return Err(ScimError::bad(ErrorType::InvalidValue, format!("{} is missing", self.name_attribute())));
        }
        Ok(())
    }

    /// The schema as `/Schemas` tells it (RFC 7643, section 7).
    pub fn schema(self, base: &str) -> Value {
        let attributes: Vec<Value> =
            self.attributes().iter().filter(|one| one.name != "externalId").map(describe).collect();
        json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Schema"],
            "id": self.urn(), "name": self.name(), "description": format!("A {}", self.name().to_lowercase()),
            "attributes": attributes,
            "meta": {"resourceType": "Schema", "location": format!("{base}/Schemas/{}", self.urn())},
        })
    }

    /// The resource type as `/ResourceTypes` tells it (RFC 7643, section 6).
    pub fn resource_type(self, base: &str) -> Value {
        json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
            "id": self.name(), "name": self.name(), "endpoint": format!("/{}", self.path()),
            "description": format!("A {}", self.name().to_lowercase()), "schema": self.urn(), "schemaExtensions": [],
            "meta": {"resourceType": "ResourceType", "location": format!("{base}/ResourceTypes/{}", self.name())},
        })
    }
}

/// A part by its name, in any case.
pub fn part(parts: &'static [Attribute], name: &str) -> Option<&'static Attribute> {
    parts.iter().find(|one| one.name.eq_ignore_ascii_case(name))
}

fn normalize_parts(
    attributes: &'static [Attribute],
    sent: &Map<String, Value>,
) -> Result<Map<String, Value>, ScimError> {
    let mut kept = Map::new();
    for attribute in attributes.iter().filter(|attribute| !attribute.is_read_only) {
        let value = sent.iter().find(|(key, _)| key.eq_ignore_ascii_case(attribute.name)).map(|(_, value)| value);
        if let Some(value) = value.map(|value| attribute.normalize(value)).transpose()?.flatten() {
            kept.insert(attribute.name.to_owned(), value);
        }
    }
    Ok(kept)
}

impl Attribute {
    /// The value as it is kept; nothing, if it is unset (RFC 7643, section 2.5).
    pub fn normalize(&'static self, value: &Value) -> Result<Option<Value>, ScimError> {
        if value.is_null() {
            return Ok(None);
        }
        if !self.is_multi {
            return self.normalize_one(value).map(Some);
        }
        let most = if self.name == "members" { MAX_MEMBERS } else { MAX_VALUES };
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        if values.len() > most {
            return Err(ScimError::bad(ErrorType::TooMany, format!("{} has at most {most} values", self.name)));
        }
        let values = values.iter().map(|one| self.normalize_one(one)).collect::<Result<Vec<_>, _>>()?;
        Ok((!values.is_empty()).then_some(Value::Array(values)))
    }

    /// The same of one of its values.
    pub fn normalize_one(&'static self, value: &Value) -> Result<Value, ScimError> {
        let wrong = |what: &str| ScimError::bad(ErrorType::InvalidValue, format!("{} must be {what}", self.name));
        match (self.of, value) {
            (Type::Text | Type::Reference, Value::String(text)) if text.chars().count() <= MAX_TEXT_CHARS => {
                Ok(value.clone())
            }
            (Type::Text | Type::Reference, _) => Err(wrong("a text of at most 1024 characters")),
            (Type::Flag, Value::Bool(_)) => Ok(value.clone()),
            // As some clients write it.
            (Type::Flag, Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true.into()),
            (Type::Flag, Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false.into()),
            (Type::Flag, _) => Err(wrong("true or false")),
            (Type::Complex, Value::Object(parts)) => normalize_parts(self.parts, parts).map(Value::Object),
            (Type::Complex, _) => Err(wrong("an object")),
        }
    }
}

fn describe(attribute: &Attribute) -> Value {
    let kind = match attribute.of {
        Type::Text => "string",
        Type::Flag => "boolean",
        Type::Reference => "reference",
        Type::Complex => "complex",
    };
    let mutability = match (attribute.is_read_only, attribute.is_immutable) {
        (true, _) => "readOnly",
        (false, true) => "immutable",
        (false, false) => "readWrite",
    };
    let mut text = json!({
        "name": attribute.name, "type": kind, "multiValued": attribute.is_multi, "description": attribute.about,
        "required": attribute.is_required, "mutability": mutability,
        "returned": "default", "uniqueness": if attribute.is_unique { "server" } else { "none" },
    });
    match attribute.of {
        Type::Text => text["caseExact"] = attribute.is_case_exact.into(),
        Type::Reference => {
            text["caseExact"] = true.into();
            text["referenceTypes"] = json!([attribute.refers_to]);
        }
        Type::Complex => text["subAttributes"] = attribute.parts.iter().map(describe).collect(),
        Type::Flag => {}
    }
    text
}
