//! Expressions of the configuration, in CEL (Common Expression Language), compiled when the file is read.

pub mod check;

use std::sync::Arc;

use cel::{
    Context, Program, Value,
    common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators},
};

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

    /// Its outermost part.
    pub fn root(&self) -> &Expr {
        &self.program.expression().expr
    }

    /// What it looks at of `variable`, each as a path: `["a", "b"]` of `claims.a["b"]`.
    pub fn paths_of(&self, variable: &str) -> Vec<Vec<&str>> {
        let (mut found, mut rest) = (Vec::new(), vec![self.root()]);
        while let Some(part) = rest.pop() {
            match path_of(part) {
                Some((root, path)) if root == variable => found.push(path),
                Some(_) => {}
                None => rest.extend(parts_of(part)),
            }
        }
        found.reverse();
        found
    }

    /// The members of `variable` that it looks at, by name: `a` and `b` of `claims.a == claims["b"]`.
    pub fn members_of(&self, variable: &str) -> Vec<&str> {
        self.paths_of(variable).into_iter().filter_map(|path| path.into_iter().next()).collect()
    }
}

/// The variable and the members that an expression is, if it is nothing else: `claims.a["b"]`, and `has(claims.a)`.
pub fn path_of(expression: &Expr) -> Option<(&str, Vec<&str>)> {
    match expression {
        Expr::Ident(name) => Some((name, Vec::new())),
        Expr::Select(select) => {
            let (root, mut path) = path_of(&select.operand.expr)?;
            path.push(&select.field);
            Some((root, path))
        }
        Expr::Call(CallExpr { func_name, args, .. }) if func_name == operators::INDEX => {
            let [of, index] = args.as_slice() else { return None };
            let Expr::Literal(LiteralValue::String(name)) = &index.expr else { return None };
            let (root, mut path) = path_of(&of.expr)?;
            path.push(name.inner());
            Some((root, path))
        }
        _ => None,
    }
}

/// What an expression is made of.
fn parts_of(expression: &Expr) -> Vec<&Expr> {
    match expression {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => {
            call.target.iter().map(|target| &target.expr).chain(call.args.iter().map(|a| &a.expr)).collect()
        }
        Expr::Comprehension(all) => {
            vec![&all.iter_range.expr, &all.accu_init.expr, &all.loop_cond.expr, &all.loop_step.expr, &all.result.expr]
        }
        Expr::List(list) => list.elements.iter().map(|element| &element.expr).collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| parts_of_entry(&entry.expr)).flatten().collect(),
        Expr::Select(select) => vec![&select.operand.expr],
        Expr::Struct(of) => of.entries.iter().flat_map(|entry| parts_of_entry(&entry.expr)).flatten().collect(),
    }
}

fn parts_of_entry(entry: &EntryExpr) -> [Option<&Expr>; 2] {
    match entry {
        EntryExpr::StructField(field) => [Some(&field.value.expr), None],
        EntryExpr::MapEntry(entry) => [Some(&entry.key.expr), Some(&entry.value.expr)],
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
    fn what_an_expression_looks_at_is_found() {
        let text = r#"claims.a == "claims.x" || claims["b c"] == claims['d'].e && my_claims.f || has(claims.g)
                      || claims.list.exists(i, i == claims.h) || {claims.i: [claims.j]}.size() > 0"#;
        let expression = Expression::compile(text).expect("compiles");
        let mut members = expression.members_of("claims");
        members.sort_unstable();
        assert_eq!(members, ["a", "b c", "d", "g", "h", "i", "j", "list"]);
        assert!(expression.paths_of("claims").contains(&vec!["d", "e"]));
    }
}
