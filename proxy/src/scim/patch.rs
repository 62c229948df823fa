//! Changes of a part of a resource (RFC 7644, section 3.5.2), as authentik, Entra ID and Okta send them.

use serde_json::{Map, Value};

use super::{
    error::{ScimError, Type as ErrorType},
    filter::{Filter, Path},
    schema::{Attribute, Kind, Type, part},
};

/// How many changes one request may have.
const MAX_OPERATIONS: usize = 1000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Add,
    Replace,
    Remove,
}

/// Applies what a PATCH asks for to a document as it is kept.
///
/// # Errors
/// What can't be applied; then the document may have been changed in part, and must not be kept.
pub fn apply(kind: Kind, document: &mut Map<String, Value>, request: &Value) -> Result<(), ScimError> {
    let request = request.as_object();
    let operations = request.and_then(|request| super::filter::get(request, "Operations")).and_then(Value::as_array);
    let operations = operations.filter(|operations| !operations.is_empty());
    let operations = operations.ok_or_else(|| ScimError::bad(ErrorType::InvalidSyntax, "Operations are missing"))?;
    if operations.len() > MAX_OPERATIONS {
        let message = format!("one request has at most {MAX_OPERATIONS} operations");
        return Err(ScimError::bad(ErrorType::TooMany, message));
    }
    for operation in operations {
        let field = |name: &str| operation.as_object().and_then(|operation| super::filter::get(operation, name));
        let change = match field("op").and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
            Some("add") => Change::Add,
            Some("replace") => Change::Replace,
            Some("remove") => Change::Remove,
            _ => return Err(ScimError::bad(ErrorType::InvalidSyntax, "op must be add, replace or remove")),
        };
        let path = field("path").and_then(Value::as_str).filter(|path| !path.is_empty());
        match path {
            Some(path) => apply_at(kind, document, change, path, field("value"))?,
            None => apply_whole(kind, document, change, field("value"))?,
        }
    }
    kind.must_be_whole(document)
}

/// Without a path: each attribute of the value. Unknown ones are none of ours.
fn apply_whole(
    kind: Kind,
    document: &mut Map<String, Value>,
    change: Change,
    value: Option<&Value>,
) -> Result<(), ScimError> {
    if change == Change::Remove {
        return Err(ScimError::bad(ErrorType::NoTarget, "remove needs a path"));
    }
    let Some(Value::Object(values)) = value else {
        return Err(ScimError::bad(ErrorType::InvalidValue, "without a path, the value is an object"));
    };
    for (name, value) in values {
        // Some write a path as a name.
        if name.contains(['.', '[']) && !name.contains(':') {
            apply_at(kind, document, change, name, Some(value))?;
        } else if let Some(attribute) = kind.find(name).filter(|attribute| !attribute.is_read_only) {
            set(document, attribute, change, Some(value))?;
        }
    }
    Ok(())
}

fn apply_at(
    kind: Kind,
    document: &mut Map<String, Value>,
    change: Change,
    path: &str,
    value: Option<&Value>,
) -> Result<(), ScimError> {
    let invalid = |why: String| ScimError::bad(ErrorType::InvalidPath, format!("{path}: {why}"));
    let parsed = Path::parse(path).map_err(invalid)?;
    let attribute = kind.find(&parsed.name).ok_or_else(|| invalid("there is no such attribute here".to_owned()))?;
    if attribute.is_read_only {
        return Err(ScimError::bad(ErrorType::Mutability, format!("{path} can't be changed")));
    }
    if change != Change::Remove && value.is_none() {
        return Err(ScimError::bad(ErrorType::InvalidValue, format!("{path}: a value is missing")));
    }
    let sub = match &parsed.part {
        None => None,
        Some(name) => Some(part(attribute.parts, name).ok_or_else(|| invalid(format!("there is no {name} in it")))?),
    };
    match (&parsed.filter, sub) {
        (None, None) => set(document, attribute, change, value),
        (None, Some(sub)) if !attribute.is_multi => {
            let mut parts = match document.remove(attribute.name) {
                Some(Value::Object(parts)) => parts,
                _ => Map::new(),
            };
            set(&mut parts, sub, change, value)?;
            if !parts.is_empty() {
                document.insert(attribute.name.to_owned(), Value::Object(parts));
            }
            Ok(())
        }
        (filter, sub) if attribute.is_multi => set_some(document, attribute, filter.as_ref(), sub, change, value),
        _ => Err(invalid("it has one value, and no filter".to_owned())),
    }
}

/// Sets an attribute as a whole.
fn set(
    document: &mut Map<String, Value>,
    attribute: &'static Attribute,
    change: Change,
    value: Option<&Value>,
) -> Result<(), ScimError> {
    let name = attribute.name;
    let new = value.map(|value| attribute.normalize(value)).transpose()?.flatten();
    match (change, new) {
        // authentik removes members by naming them.
        (Change::Remove, Some(Value::Array(gone))) if attribute.is_multi => {
            if let Some(Value::Array(values)) = document.get_mut(name) {
                values.retain(|value| !gone.iter().any(|gone| is_same(value, gone)));
            }
        }
        (Change::Remove, _) | (Change::Replace, None) => drop(document.remove(name)),
        (Change::Add, None) => {}
        (Change::Add, Some(Value::Array(new))) if attribute.is_multi => {
            let values = document.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if let Some(values) = values.as_array_mut() {
                for one in new {
                    if !values.iter().any(|value| is_same(value, &one)) {
                        values.push(one);
                    }
                }
            }
        }
        (Change::Add | Change::Replace, Some(Value::Object(new))) if attribute.of == Type::Complex => {
            let parts = document.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Some(parts) = parts.as_object_mut() {
                parts.extend(new);
            }
        }
        (Change::Add | Change::Replace, Some(new)) => drop(document.insert(name.to_owned(), new)),
    }
    if document.get(name).and_then(Value::as_array).is_some_and(Vec::is_empty) {
        document.remove(name);
    }
    Ok(())
}

/// Whether two values of a multi-valued attribute are one: by their `value`, if they have one.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one.get("value"), other.get("value")) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Changes those values of a multi-valued attribute that a filter lets through, or a part of each.
fn set_some(
    document: &mut Map<String, Value>,
    attribute: &'static Attribute,
    filter: Option<&Filter>,
    sub: Option<&'static Attribute>,
    change: Change,
    value: Option<&Value>,
) -> Result<(), ScimError> {
    let mut values = match document.remove(attribute.name) {
        Some(Value::Array(values)) => values,
        _ => Vec::new(),
    };
    let is_meant = |value: &Value| {
        let value = value.as_object();
        filter.is_none_or(|filter| value.is_some_and(|value| filter.passes(value)))
    };
    let found = values.iter().any(is_meant);
    match (change, sub) {
        (Change::Remove, None) => values.retain(|value| !is_meant(value)),
        _ if !found && change == Change::Replace && filter.is_some() => {
            return Err(ScimError::bad(ErrorType::NoTarget, format!("no value of {} is meant", attribute.name)));
        }
        // Entra ID sets the value of an address that isn't there yet.
        (Change::Add, _) if !found => {
            let mut new = filter.and_then(Filter::as_equality).map_or_else(Map::new, |(name, text)| {
                let name = part(attribute.parts, name).map(|part| part.name.to_owned());
                name.map(|name| (name, text.into())).into_iter().collect()
            });
            match (sub, value) {
                (Some(sub), value) => set(&mut new, sub, change, value)?,
                (None, Some(value)) => {
                    if let Value::Object(more) = attribute.normalize_one(value)? {
                        new.extend(more);
                    }
                }
                (None, None) => {}
            }
            values.push(Value::Object(new));
        }
        _ => {
            let meant = values.iter_mut().filter(|value| is_meant(value)).filter_map(Value::as_object_mut);
            for parts in meant {
                match (sub, value) {
                    (Some(sub), value) => set(parts, sub, change, value)?,
                    (None, Some(value)) => {
                        if let Value::Object(new) = attribute.normalize_one(value)? {
                            parts.extend(new);
                        }
                    }
                    (None, None) => {}
                }
            }
        }
    }
    if !values.is_empty() {
        document.insert(attribute.name.to_owned(), Value::Array(values));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(kind: Kind, document: Value, operations: Value) -> Result<Value, ScimError> {
        let mut document = document.as_object().expect("an object").clone();
        apply(kind, &mut document, &json!({"Operations": operations}))?;
        Ok(Value::Object(document))
    }

    #[test]
    fn users_change_as_their_providers_say() {
        let alice = || json!({"userName": "alice", "active": true, "emails": [{"value": "a@x", "type": "work"}]});
        for (operations, expected) in [
            (
                json!([{"op": "Replace", "path": "active", "value": "False"}]),
                json!({"userName": "alice", "active": false, "emails": [{"value": "a@x", "type": "work"}]}),
            ),
            (
                json!([{"op": "replace", "value": {"active": false, "photos": []}}]),
                json!({"userName": "alice", "active": false, "emails": [{"value": "a@x", "type": "work"}]}),
            ),
            (
                json!([{"op": "replace", "path": "emails[type eq \"work\"].value", "value": "b@x"}]),
                json!({"userName": "alice", "active": true, "emails": [{"value": "b@x", "type": "work"}]}),
            ),
            (
                json!([{"op": "add", "path": "emails[type eq \"home\"].value", "value": "h@x"}, {"op": "remove", "path": "active"}]),
                json!({"userName": "alice", "emails": [{"value": "a@x", "type": "work"}, {"type": "home", "value": "h@x"}]}),
            ),
            (
                json!([{"op": "add", "path": "name.familyName", "value": "J"}, {"op": "remove", "path": "emails"}]),
                json!({"userName": "alice", "active": true, "name": {"familyName": "J"}}),
            ),
        ] {
            assert_eq!(patched(Kind::User, alice(), operations.clone()).expect("patched"), expected, "{operations}");
        }
        for (operations, status) in [
            (json!([{"op": "remove", "path": "userName"}]), 400),
            (json!([{"op": "replace", "path": "groups", "value": []}]), 400),
            (json!([{"op": "replace", "path": "emails[type eq \"home\"].value", "value": "x"}]), 400),
            (json!([{"op": "move", "path": "active", "value": true}]), 400),
            (json!([{"op": "replace", "path": "nothing", "value": 1}]), 400),
            (json!([{"op": "replace", "path": "active", "value": "perhaps"}]), 400),
            (json!([]), 400),
        ] {
            let error = patched(Kind::User, alice(), operations.clone()).expect_err("an error");
            assert_eq!(error.status.as_u16(), status, "{operations}");
        }
    }

    #[test]
    fn members_come_and_go_as_authentik_says_it() {
        let group = || json!({"displayName": "dev", "members": [{"value": "1"}, {"value": "2"}]});
        for (operations, expected) in [
            (
                json!([{"op": "add", "path": "members", "value": [{"value": "3"}]}, {"op": "add", "path": "members", "value": [{"value": "1"}]}]),
                json!([{"value": "1"}, {"value": "2"}, {"value": "3"}]),
            ),
            (json!([{"op": "remove", "path": "members", "value": [{"value": "1"}]}]), json!([{"value": "2"}])),
            (json!([{"op": "remove", "path": "members[value eq \"2\"]"}]), json!([{"value": "1"}])),
            (json!([{"op": "replace", "path": "members", "value": [{"value": "9"}]}]), json!([{"value": "9"}])),
            (json!([{"op": "remove", "path": "members"}]), Value::Null),
        ] {
            let patched = patched(Kind::Group, group(), operations.clone()).expect("patched");
            assert_eq!(patched["members"], expected, "{operations}");
        }
    }
}
