//! Checks the query of every request against the description of its operation: no parameter is ignored, and a problem
//! names the parameter.

use std::collections::HashMap;

use axum::http::Method;
use serde_json::Value;
use url::form_urlencoded;
use utoipa::openapi::OpenApi;

use super::access::reach;
use super::problem::Problem;
use crate::domain::access::{Caller, check_tenant};
use crate::domain::field_error::FieldError;

/// The parameter that names a tenant.
const TENANT: &str = "tenant";
/// Maximum number of characters of an unknown name that a problem repeats.
const MAX_NAME: usize = 64;

/// A query parameter.
#[derive(Debug)]
struct Parameter {
    name: String,
    required: bool,
    /// May occur several times.
    is_list: bool,
    is_number: bool,
}

/// The query parameters of each operation, by path and method in lower case.
#[derive(Debug)]
pub(super) struct QueryRules(HashMap<String, HashMap<String, Vec<Parameter>>>);

impl QueryRules {
    pub(super) fn of(api: &OpenApi) -> Self {
        let api = serde_json::to_value(api).expect("a description of strings and maps is JSON");
        let members = |value: &Value| value.as_object().cloned().unwrap_or_default();
        let operations = |item: &Value| {
            members(item).iter().map(|(method, operation)| (method.clone(), parameters(operation))).collect()
        };
        Self(members(&api["paths"]).iter().map(|(path, item)| (path.clone(), operations(item))).collect())
    }

    /// Checks a request of this caller. A path without description has no parameters; a method that the path does not support is not
    /// checked.
    pub(super) fn check(
        &self,
        path: &str,
        method: &Method,
        query: Option<&str>,
        caller: &Caller,
    ) -> Result<(), Problem> {
        let method = if method == Method::HEAD { Method::GET } else { method.clone() };
        let known = match self.0.get(path).map(|methods| methods.get(&method.as_str().to_ascii_lowercase())) {
            Some(Some(known)) => known.as_slice(),
            Some(None) => return Ok(()),
            None => &[],
        };
        let query = query.unwrap_or_default();
        let errors = errors(known, query);
        if errors.is_empty() { check_tenant_of(known, query, caller) } else { Err(Problem::fields(errors)) }
    }
}

/// Checks the tenant that a query names, in the same way for every operation that takes one: it must be a valid name, and a
/// tenant that the caller reaches. Whether the tenant exists does not matter, so the answer shows nothing about it.
fn check_tenant_of(known: &[Parameter], query: &str, caller: &Caller) -> Result<(), Problem> {
    if !known.iter().any(|parameter| parameter.name == TENANT) {
        return Ok(());
    }
    let named = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == TENANT);
    let Some((_, tenant)) = named else { return Ok(()) };
    check_tenant(&tenant).map_err(|error| Problem::field(TENANT, error.to_string()))?;
    reach(caller, &tenant)
}

fn parameters(operation: &Value) -> Vec<Parameter> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters
        .filter(|parameter| parameter["in"] == "query")
        .map(|parameter| Parameter {
            name: parameter["name"].as_str().unwrap_or_default().to_owned(),
            required: parameter["required"] == true,
            is_list: parameter["schema"]["type"] == "array",
            is_number: parameter["schema"]["type"] == "integer",
        })
        .collect()
}

/// One error for each parameter, in the order of the query.
fn errors(known: &[Parameter], query: &str) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let Some(parameter) = known.iter().find(|parameter| parameter.name == name) else {
            let name: String = name.chars().take(MAX_NAME).collect();
            if !errors.iter().any(|error| error.field == name) {
                errors.push(FieldError::new(name, unknown(known)));
            }
            continue;
        };
        let problem = if seen.contains(&parameter.name.as_str()) && !parameter.is_list {
            "is sent more than once; send it once".to_owned()
        } else if parameter.is_number && value.parse::<usize>().is_err() {
            format!("{value:?} is not a number; send a whole number")
        } else {
            seen.push(&parameter.name);
            continue;
        };
        seen.push(&parameter.name);
        errors.retain(|error| error.field != parameter.name);
        errors.push(FieldError::new(&parameter.name, problem));
    }
    for parameter in known.iter().filter(|parameter| parameter.required && !seen.contains(&&*parameter.name))
    {
        errors.push(FieldError::new(&parameter.name, "is required; send it"));
    }
    errors
}

fn unknown(known: &[Parameter]) -> String {
    let names: Vec<&str> = known.iter().map(|parameter| parameter.name.as_str()).collect();
    if names.is_empty() {
        "unknown parameter; this operation has none, so remove it".to_owned()
    } else {
        format!("unknown parameter; this operation has {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> QueryRules {
        QueryRules::of(&crate::api::routes().split_for_parts().1)
    }

    fn fields(rules: &QueryRules, method: &str, path: &str, query: &str) -> Vec<String> {
        let method = method.to_ascii_uppercase().parse().expect("a method");
        match rules.check(path, &method, Some(query), &Caller::unbound("test")) {
            Ok(()) => Vec::new(),
            Err(problem) => problem.errors().iter().map(|error| error.field.clone()).collect(),
        }
    }

    /// For every operation of the API: an unknown parameter, each known one alone and twice, and numbers.
    #[test]
    fn every_parameter_of_every_operation_is_checked() {
        let rules = rules();
        let mut count = 0;
        for (path, methods) in &rules.0 {
            for (method, known) in methods {
                let required: Vec<&Parameter> = known.iter().filter(|parameter| parameter.required).collect();
                let base: String =
                    required.iter().map(|parameter| format!("{}=1&", parameter.name)).collect();
                let found = |query: &str| fields(&rules, method, path, query);
                assert!(found(&base).is_empty(), "{method} {path}");
                for unknown in ["bogus=1", "bogus", "%62ogus=1", "bogus=1&bogus=2"] {
                    assert_eq!(found(&format!("{base}{unknown}")), ["bogus"], "{method} {path}?{unknown}");
                }
                for Parameter { name, required, is_list, is_number } in known {
                    count += 1;
                    let rest: String = base.replace(&format!("{name}=1&"), "");
                    let none: &[&str] = &[];
                    let named = [name.as_str()];
                    assert_eq!(found(&format!("{rest}{name}=1")), none, "{method} {path} {name}");
                    let twice = if *is_list { none } else { &named };
                    assert_eq!(found(&format!("{rest}{name}=1&{name}=1")), twice, "{method} {path} {name}");
                    assert_eq!(found(&rest), if *required { &named } else { none }, "{method} {path} {name}");
                    for bad in ["abc", "-1", "1.5", "", "99999999999999999999999"] {
                        let is_bad = *is_number || name == TENANT && check_tenant(bad).is_err();
                        let expected = if is_bad { &named } else { none };
                        assert_eq!(
                            found(&format!("{rest}{name}={bad}")),
                            expected,
                            "{method} {path} {name}={bad}"
                        );
                    }
                }
            }
        }
        assert!(count > 30, "{count}");
        assert_eq!(fields(&rules, "get", "/openapi.json", "bogus=1"), ["bogus"]);
        assert_eq!(fields(&rules, "head", "/v1/orders", "limit=x"), ["limit"]);
        assert!(fields(&rules, "put", "/v1/orders", "bogus=1").is_empty(), "405 follows");
    }
}
