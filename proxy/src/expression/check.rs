//! Mistakes in an expression that can be seen before there is anything to evaluate it with.

use cel::{
    Context, ExecutionError, Value,
    common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators},
};

use super::{Expression, parts_of, path_of};

/// What an expression gives, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Yes or no.
    Boolean,
    /// A number.
    Number,
    /// A text.
    Text,
    /// A time.
    Time,
    /// Several of something.
    List,
    /// It depends.
    Unknown,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Boolean => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Time => "a time",
            Self::List => "a list",
            Self::Unknown => "something",
        }
    }
}

/// What is wrong with an expression.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    /// It can never be evaluated, or is no answer.
    pub fatal: Vec<String>,
    /// It can, and is hardly what was meant.
    pub doubtful: Vec<String>,
}

/// Looks for mistakes in a condition, which must be true or false. `known` says what a path in a variable gives, or why
/// there is none: `known("req", &["tag"])`. In `sample` is an example of each variable whose paths are known.
pub fn check_condition(expression: &Expression, sample: &Context<'_, '_>, known: &Known<'_>) -> Mistakes {
    let mut check = Check::new(sample, known);
    let kind = check.kind_of(expression.root());
    if !matches!(kind, Kind::Boolean | Kind::Unknown) {
        check.mistakes.fatal.push(format!("is {}, and neither true nor false, so it never holds", kind.name()));
    }
    check.mistakes
}

/// Looks for mistakes in an expression that may give anything; gives what it gives, too.
pub fn check_value(expression: &Expression, sample: &Context<'_, '_>, known: &Known<'_>) -> (Kind, Mistakes) {
    let mut check = Check::new(sample, known);
    (check.kind_of(expression.root()), check.mistakes)
}

/// What a path in a variable gives.
pub type Known<'a> = dyn Fn(&str, &[&str]) -> Result<Kind, String> + 'a;

struct Check<'a> {
    sample: &'a Context<'a, 'a>,
    known: &'a Known<'a>,
    /// How many things it has looked at of which nothing is known.
    unknown: usize,
    /// Variables of the expression's own (`x` of `list.exists(x, …)`).
    bound: Vec<String>,
    mistakes: Mistakes,
}

impl<'a> Check<'a> {
    fn new(sample: &'a Context<'_, '_>, known: &'a Known<'a>) -> Self {
        Self { sample, known, unknown: 0, bound: Vec::new(), mistakes: Mistakes::default() }
    }

    /// Calls a function to see whether it can be called so at all.
    fn try_out(&mut self, call: &CallExpr, is_all_known: bool) {
        use ExecutionError as E;
        // Those of the language itself are macros, or are looked at above.
        let evaluate = |call: CallExpr| Value::resolve(&IdedExpr { id: 0, expr: Expr::Call(call) }, self.sample).err();
        // A name that is unknown however it is called: alone, with something, and as a method of something.
        let text = || IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::String(String::new().into())) };
        let is_unknown = |target: Option<IdedExpr>, args: Vec<IdedExpr>| {
            let called = CallExpr { func_name: call.func_name.clone(), target: target.map(Box::new), args };
            matches!(evaluate(called), Some(E::UndeclaredReference(_)))
        };
        let is_name = call.func_name.starts_with(|c: char| c.is_ascii_alphabetic());
        let ways = [(None, vec![]), (None, vec![text()]), (Some(text()), vec![]), (Some(text()), vec![text()])];
        if is_name && ways.into_iter().all(|(target, args)| is_unknown(target, args)) {
            return self.mistakes.fatal.push(format!("calls {}, which is no function here", call.func_name));
        }
        let is_literal = |part: &IdedExpr| matches!(part.expr, Expr::Literal(_));
        let pattern = call.args.first().filter(|_| call.func_name == "matches").filter(|pattern| is_literal(pattern));
        if let Some(pattern) = pattern {
            let matches = CallExpr { target: Some(Box::new(text())), args: vec![pattern.clone()], ..call.clone() };
            if evaluate(matches).is_some() {
                return self.mistakes.fatal.push("matches a pattern that is no regular expression (RE2)".to_owned());
            }
        }
        // Whatever else fails may depend on the example.
        let never = evaluate(call.clone()).filter(|_| is_all_known).filter(|error| {
            matches!(
                error,
                E::NoSuchOverload(_)
                    | E::InvalidArgumentCount { .. }
                    | E::NotSupportedAsMethod { .. }
                    | E::UnsupportedTargetType { .. }
                    | E::MissingArgumentOrTarget
            )
        });
        if let Some(error) = never {
            self.mistakes.fatal.push(format!("can't be evaluated: {error}"));
        }
    }

    fn kind_of(&mut self, expression: &Expr) -> Kind {
        if let Expr::Select(select) = expression
            && select.test
        {
            // has(…)
            match path_of(expression) {
                Some((root, path)) => self.kind_of_path(root, &path),
                None => self.kind_of(&select.operand.expr),
            };
            return Kind::Boolean;
        }
        if let Some((root, path)) = path_of(expression) {
            return self.kind_of_path(root, &path);
        }
        match expression {
            Expr::Literal(LiteralValue::Boolean(_)) => Kind::Boolean,
            Expr::Literal(LiteralValue::String(_)) => Kind::Text,
            Expr::Literal(LiteralValue::Int(_) | LiteralValue::UInt(_) | LiteralValue::Double(_)) => Kind::Number,
            Expr::Call(call) => self.kind_of_call(call),
            Expr::List(list) => {
                for element in &list.elements {
                    self.kind_of(&element.expr);
                }
                Kind::List
            }
            Expr::Comprehension(all) => {
                self.kind_of(&all.iter_range.expr);
                let before = self.bound.len();
                self.bound
                    .extend([all.iter_var.clone(), all.accu_var.clone()].into_iter().chain(all.iter_var2.clone()));
                for part in [&all.loop_cond, &all.loop_step, &all.result] {
                    self.kind_of(&part.expr);
                }
                self.bound.truncate(before);
                // `exists` and `all` begin with a yes or a no, `map` and `filter` with an empty list.
                match self.kind_of(&all.accu_init.expr) {
                    Kind::Number => Kind::Boolean, // exists_one counts
                    kind => kind,
                }
            }
            other => {
                for part in parts_of(other) {
                    self.kind_of(part);
                }
                Kind::Unknown
            }
        }
    }

    fn kind_of_path(&mut self, root: &str, path: &[&str]) -> Kind {
        let is_bound = self.bound.iter().any(|bound| bound == root);
        let kind = if is_bound { Ok(Kind::Unknown) } else { (self.known)(root, path) };
        let kind = kind.unwrap_or_else(|mistake| {
            self.mistakes.fatal.push(mistake);
            Kind::Unknown
        });
        self.unknown += usize::from(kind == Kind::Unknown);
        kind
    }

    fn kind_of_call(&mut self, call: &CallExpr) -> Kind {
        let unknown = self.unknown;
        if let Some(target) = &call.target {
            self.kind_of(&target.expr);
        }
        let kinds: Vec<Kind> = call.args.iter().map(|arg| self.kind_of(&arg.expr)).collect();
        self.try_out(call, self.unknown == unknown);
        match (call.func_name.as_str(), kinds.as_slice()) {
            (
                operators::EQUALS
                | operators::NOT_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS
                | operators::LESS
                | operators::LESS_EQUALS,
                [left, right],
            ) => {
                if left != right && *left != Kind::Unknown && *right != Kind::Unknown {
                    let doubt = format!(
                        "compares {} with {}, which are never equal; write both alike, such as \"123\" for the text 123",
                        left.name(),
                        right.name()
                    );
                    self.mistakes.doubtful.push(doubt);
                }
                Kind::Boolean
            }
            (
                operators::LOGICAL_AND
                | operators::LOGICAL_OR
                | operators::LOGICAL_NOT
                | operators::IN
                | operators::NOT_STRICTLY_FALSE
                | "startsWith"
                | "endsWith"
                | "contains"
                | "matches"
                | "has",
                _,
            ) => Kind::Boolean,
            (operators::CONDITIONAL, [_, yes, no]) if yes == no => *yes,
            (operators::ADD, [left, right]) if left == right => *left,
            (
                operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
                [Kind::Number, Kind::Number],
            ) => Kind::Number,
            ("size" | "int" | "uint" | "double", _) => Kind::Number,
            ("string", _) => Kind::Text,
            _ => Kind::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Mistakes {
        let known = |root: &str, path: &[&str]| match (root, path) {
            ("req", ["tag"]) => Ok(Kind::Text),
            ("req", ["enabled"]) => Ok(Kind::Boolean),
            ("req", ["list"]) => Ok(Kind::List),
            ("req", ["claims", ..]) => Ok(Kind::Unknown),
            _ => Err(format!("looks at {root}.{}", path.join("."))),
        };
        let mut sample = Context::default();
        let req = serde_json::json!({"tag": "v1", "enabled": true, "list": ["a"], "claims": {}});
        crate::expression::know(&mut sample, "req", &req).expect("known");
        check_condition(&Expression::compile(text).expect(text), &sample, &known)
    }

    #[test]
    fn what_can_be_evaluated_to_yes_or_no_is_well() {
        for text in [
            "req.tag == '' || req.tag.matches('^v[0-9]+$')",
            "req.enabled",
            "!req.enabled && has(req.claims.x)",
            "req.claims.anything",
            "req.claims['a b'] == 3",
            "req.list.exists(x, x == 'a' && x.startsWith('b'))",
            "req.list.all(x, x in ['a', 'b'])",
            "req.list.exists_one(x, x == req.tag)",
            "req.list.filter(x, x != 'a').size() > 1",
            "req.enabled ? req.tag == 'a' : req.tag.size() > 3",
            "int(req.tag) > 3 || timestamp(req.tag) < timestamp('2027-01-01T00:00:00Z')",
            "req.claims.groups.exists(g, g.startsWith('team-') && g.size() > 5)",
            "req.claims.a.startsWith('x') && size(req.list) > 0 && string(1) == '1'",
            "req.list[0] == 'a' && req.tag.contains('v') && req.tag.endsWith('1') && 'a' in req.list",
        ] {
            assert_eq!(mistakes(text), Mistakes::default(), "{text}");
        }
    }

    #[test]
    fn what_never_holds_is_found() {
        for (text, fatal) in [
            ("req.tag", "is a text, and neither"),
            ("'yes'", "is a text, and neither"),
            ("req.tag + 'x'", "is a text, and neither"),
            ("req.tag.size()", "is a number, and neither"),
            ("req.list.map(x, x)", "is a list, and neither"),
            ("req.enabled ? 'a' : 'b'", "is a text, and neither"),
            ("req.nothing == 'x'", "looks at req.nothing"),
            ("claims.sub == 'x'", "looks at claims.sub"),
            ("req.list.exists(x, y == 'a')", "looks at y"),
            ("req.tag.startswith('x')", "calls startswith, which is no function"),
            ("req.claims.a.lowerAscii() == 'x'", "calls lowerAscii, which is no function"),
            ("req.tag.startsWith('x', 'y')", "can't be evaluated"),
            ("req.tag.matches('[')", "no regular expression"),
            ("req.claims.a.matches('(?!x)')", "no regular expression"),
            ("req.tag in 'abc'", "can't be evaluated"),
            ("req.tag > 1.5", "can't be evaluated"),
        ] {
            let found = mistakes(text);
            assert!(found.fatal.iter().any(|mistake| mistake.contains(fatal)), "{text}: {found:?}");
        }
        for text in ["req.tag == 5", "5 != req.tag", "req.enabled == 'true'"] {
            let found = mistakes(text);
            assert!(found.fatal.is_empty() && found.doubtful[0].starts_with("compares "), "{text}: {found:?}");
        }
    }
}
