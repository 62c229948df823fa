//! Expressions of the configuration, in CEL (Common Expression Language), compiled when the file is read.

use std::sync::Arc;

use cel::{Context, Program, Value};

/// The longest expression that is read, in bytes.
const MAX_EXPRESSION_BYTES: usize = 4096;

/// A compiled expression.
#[derive(Clone)]
pub struct Expression {
    text: String,
    program: Arc<Program>,
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Where it breaks.
    pub fn compile(text: &str) -> Result<Self, String> {
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(format!("is longer than {MAX_EXPRESSION_BYTES} bytes"));
        }
        let program = Program::compile(text).map_err(|e| e.to_string().replace('\n', " "))?;
        Ok(Self { text: text.to_owned(), program: Arc::new(program) })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is true.
    ///
    /// # Errors
    /// Why it can't be evaluated, or that it is neither true nor false.
    pub fn holds(&self, context: &Context<'_, '_>) -> Result<bool, String> {
        match self.program.execute(context).map_err(|e| e.to_string())? {
            Value::Bool(holds) => Ok(holds),
            other => Err(format!("is {}, and neither true nor false", other.type_of())),
        }
    }

    /// The text that it gives.
    ///
    /// # Errors
    /// Why it gives none.
    pub fn to_text(&self, context: &Context<'_, '_>) -> Result<String, String> {
        match self.program.execute(context).map_err(|e| e.to_string())? {
            Value::String(text) if !text.is_empty() => Ok(text.as_ref().clone()),
            Value::String(_) => Err("is empty".to_owned()),
            other => Err(format!("is {}, and no text", other.type_of())),
        }
    }

    /// The texts that it gives: a list, or one.
    ///
    /// # Errors
    /// Why it gives none.
    pub fn to_texts(&self, context: &Context<'_, '_>) -> Result<Vec<String>, String> {
        let text = |value: &Value| match value {
            Value::String(text) => Ok(text.as_ref().clone()),
            other => Err(format!("holds {}, and not only texts", other.type_of())),
        };
        match self.program.execute(context).map_err(|e| e.to_string())? {
            Value::List(values) => values.iter().map(text).collect(),
            one => text(&one).map(|one| vec![one]),
        }
    }

    /// What it gives.
    ///
    /// # Errors
    /// Why it gives nothing.
    pub fn value(&self, context: &Context<'_, '_>) -> Result<Value, String> {
        self.program.execute(context).map_err(|e| e.to_string())
    }

    /// The members of `variable` that it looks at, by name: `a` and `b` of `claims.a == claims["b"]`.
    pub fn members_of(&self, variable: &str) -> Vec<&str> {
        let mut members = Vec::new();
        for (at, _) in self.text.match_indices(variable) {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            if self.text[..at].ends_with(|c| word(c) || c == '.') {
                continue;
            }
            let rest = &self.text[at + variable.len()..];
            let name = if let Some(name) = rest.strip_prefix('.') {
                name.split(|c| !word(c)).next()
            } else {
                let quoted = rest.strip_prefix("[\"").map(|rest| rest.split('"').next());
                quoted.or_else(|| rest.strip_prefix("['").map(|rest| rest.split('\'').next())).flatten()
            };
            members.extend(name.filter(|name| !name.is_empty()));
        }
        members
    }
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expression({:?})", self.text)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// A context that knows `name` as what JSON can say.
///
/// # Errors
/// If it can't be said in CEL.
pub fn know(context: &mut Context<'_, '_>, name: &str, value: &serde_json::Value) -> Result<(), String> {
    let value = cel::to_value(value).map_err(|e| e.to_string())?;
    context.add_variable_from_value(name, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn context() -> Context<'static, 'static> {
        let mut context = Context::default();
        know(&mut context, "claims", &json!({"a": "x", "n": 3, "list": ["p", "q"]})).expect("known");
        context
    }

    #[test]
    fn an_expression_is_true_or_false_or_an_error() {
        let holds = |text: &str| Expression::compile(text).expect("compiles").holds(&context());
        assert_eq!(holds("claims.a == 'x' && claims.n > 2"), Ok(true));
        assert_eq!(holds("'q' in claims.list && claims.a.startsWith('y')"), Ok(false));
        assert_eq!(holds("claims.a.matches('^(x|y)$')"), Ok(true));
        for text in ["claims.missing == 'x'", "claims.a", "nothing == 1", "claims.a > 3"] {
            assert!(holds(text).is_err(), "{text}");
        }
        assert!(Expression::compile("claims.a ==").is_err());
        assert!(Expression::compile(&"a".repeat(5000)).is_err());
    }

    #[test]
    fn texts_are_taken_and_nothing_else_is() {
        let expression = |text: &str| Expression::compile(text).expect("compiles");
        assert_eq!(expression("claims.a + '/' + claims.list[0]").to_text(&context()), Ok("x/p".to_owned()));
        assert_eq!(expression("claims.list").to_texts(&context()), Ok(vec!["p".to_owned(), "q".to_owned()]));
        assert!(expression("claims.n").to_text(&context()).is_err());
        assert!(expression("''").to_text(&context()).is_err());
        assert!(expression("[1]").to_texts(&context()).is_err());
    }

    #[test]
    fn what_an_expression_looks_at_is_found_in_its_text() {
        let expression = Expression::compile(r#"claims.a == "x" || claims["b c"] == claims['d'] && my_claims.e"#);
        assert_eq!(expression.expect("compiles").members_of("claims"), ["a", "b c", "d"]);
    }
}
