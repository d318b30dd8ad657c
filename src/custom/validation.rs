//! Validates the WGSL of a rule: by itself with what it may use, and linked into kernels of every kind.

#[cfg(target_arch = "wasm32")]
use naga;
#[cfg(not(target_arch = "wasm32"))]
use wgpu::naga;

use naga::front::wgsl;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Function, Handle, Module, ScalarKind, Span, Type, TypeInner};

use super::declarations::Declaration;
use super::error::CustomRuleError;
use crate::kernels::variant::{
    Access, Buffers, GradientBinding, Quantized, RowFeatures, Shadow, Variant, norm_source_with,
    partials_source_with, prepare_source_with, rule_source,
};
use crate::options::Diagnostics;
use crate::rules::RuleForm;
use crate::storage::block::StateAccess;

/// What a rule's WGSL has to fit.
pub struct Text<'a> {
    pub name: &'a str,
    /// The prefix of its structure.
    pub type_name: &'a str,
    /// Names, in the order of the structure.
    pub coefficients: &'a [String],
    pub wgsl: &'a str,
}

/// What the names of a rule's declarations start with.
fn prefixes(rule: &Text<'_>) -> [String; 3] {
    [format!("{}_", rule.name), format!("{}_", rule.name.to_uppercase()), rule.type_name.to_owned()]
}

/// Checks the declarations of a rule, then its WGSL with what it may use.
pub fn check_source(rule: &Text<'_>, declarations: &[Declaration]) -> Result<(), CustomRuleError> {
    let prefixes = prefixes(rule);
    for Declaration { keyword, name, line } in declarations {
        let error = |expected: String| CustomRuleError::Declaration {
            line: *line,
            found: format!("{keyword} {name}"),
            expected,
        };
        if ["var", "override"].contains(&keyword.as_str()) {
            return Err(error(
                "only fn, struct, const and alias: a rule has no variables outside functions".to_owned(),
            ));
        }
        if !prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(error(format!(
                "a name that starts with {}, {} or {}",
                prefixes[0], prefixes[1], prefixes[2]
            )));
        }
    }
    let [structure, coefficients, step] = signatures(rule);
    for (keyword, signature) in [("struct", &structure), ("fn", &coefficients), ("fn", &step)] {
        if !declarations.iter().any(|of| of.keyword == keyword && of.name == signature.name) {
            return Err(CustomRuleError::Missing { expected: signature.text.clone() });
        }
    }
    let joined = Joined::new(rule_source(rule.wgsl), rule.wgsl);
    let (module, info) = joined.validated()?;
    let check = |signature: &Signature, found: String| {
        if found == signature.text {
            return Ok(());
        }
        let line = declarations.iter().find(|of| of.name == signature.name).map_or(1, |of| of.line);
        Err(CustomRuleError::Declaration { line, found, expected: signature.text.clone() })
    };
    check(&structure, structure_text(&module, &structure.name))?;
    for signature in [&coefficients, &step] {
        let function = module.functions.iter().find(|(_, of)| of.name.as_deref() == Some(&signature.name));
        check(
            signature,
            function.map_or_else(String::new, |(_, function)| function_text(&module, function)),
        )?;
    }
    if let Some(entry) = module.entry_points.first() {
        let line = declarations.iter().find(|of| of.name == entry.name).map_or(1, |of| of.line);
        let found = format!("entry point {}", entry.name);
        let expected = "functions without a stage".to_owned();
        return Err(CustomRuleError::Declaration { line, found, expected });
    }
    check_globals(&module, &info, declarations)
}

/// A rule reads what it is given.
fn check_globals(
    module: &Module,
    info: &ModuleInfo,
    declarations: &[Declaration],
) -> Result<(), CustomRuleError> {
    for (handle, function) in module.functions.iter() {
        let Some(of) = declarations.iter().find(|of| function.name.as_deref() == Some(&of.name)) else {
            continue;
        };
        for (variable, declared) in module.global_variables.iter() {
            if !info[handle][variable].is_empty() {
                let name = declared.name.as_deref().unwrap_or("a variable");
                let found = format!("fn {}, which uses {name}", of.name);
                let expected = "functions of their arguments".to_owned();
                return Err(CustomRuleError::Declaration { line: of.line, found, expected });
            }
        }
    }
    Ok(())
}

/// Checks the kernels of a form of a custom rule: every file of every axis is linked with it at least once.
pub fn check_kernels(form: RuleForm) -> Result<(), CustomRuleError> {
    let rule = form.rule();
    let rates = if rule.has_element_rates() { Diagnostics::RateHistograms } else { Diagnostics::Off };
    let variant = |access, gradients, state, quantized, shadow, diagnostics, rows| {
        let buffers = Buffers::One;
        Variant { form, access, gradients, buffers, state, quantized, shadow, diagnostics, rows }
    };
    let custom = [rule];
    let (off, shadow) = (Diagnostics::Off, Shadow::On);
    let (read, read_write) = (GradientBinding::Read, GradientBinding::ReadWrite);
    let (words4, words2, words1) = (StateAccess::Words4, StateAccess::Words2, StateAccess::Words1);
    let variants = [
        variant(Access::Vec4, read, words4, Quantized::Off, shadow, rates, RowFeatures::Off),
        variant(Access::Vec2, read_write, words2, Quantized::Shared, Shadow::Off, off, RowFeatures::Off),
        variant(
            Access::Scalar,
            GradientBinding::Shared,
            words1,
            Quantized::Whole,
            shadow,
            rates,
            RowFeatures::Off,
        ),
        variant(Access::Vec4, read, words4, Quantized::Off, Shadow::Off, off, RowFeatures::On),
        Variant {
            buffers: Buffers::Array,
            ..variant(Access::Vec4, read, words4, Quantized::Off, shadow, rates, RowFeatures::Off)
        },
        Variant {
            buffers: Buffers::Array,
            ..variant(Access::Scalar, read_write, words1, Quantized::Shared, shadow, off, RowFeatures::Off)
        },
    ];
    let others = [
        prepare_source_with(&custom),
        partials_source_with(&custom),
        norm_source_with(Access::Vec4, read, Buffers::One, &custom),
        norm_source_with(Access::Vec4, read, Buffers::Array, &custom),
    ];
    let variants = variants.iter().map(Variant::source);
    variants.chain(others).try_for_each(|source| Joined::new(source, rule.wgsl()).validated().map(drop))
}

/// A declaration that a rule has to have.
struct Signature {
    name: String,
    text: String,
}

/// The structure of coefficients, and the functions of coefficients and of the step.
fn signatures(rule: &Text<'_>) -> [Signature; 3] {
    let structure = format!("{}Coefficients", rule.type_name);
    let members: Vec<_> = rule.coefficients.iter().map(|name| format!("{name}: f32")).collect();
    let (coefficients, step) = (format!("{}_coefficients", rule.name), format!("{}_step", rule.name));
    let texts = [
        format!("struct {structure} {{ {} }}", members.join(", ")),
        format!("fn {coefficients}({structure}, u32, Decay) -> {structure}"),
        format!("fn {step}(General, {structure}, Elements) -> Stepped"),
    ];
    let mut names = [structure, coefficients, step].into_iter();
    texts.map(|text| Signature { name: names.next().unwrap_or_default(), text })
}

fn type_text(module: &Module, ty: Handle<Type>) -> String {
    let ty = &module.types[ty];
    match (&ty.name, &ty.inner) {
        (Some(name), _) => name.clone(),
        (None, TypeInner::Scalar(scalar)) => {
            let kind = match scalar.kind {
                ScalarKind::Float => "f",
                ScalarKind::Uint => "u",
                ScalarKind::Sint => "i",
                _ => return "bool".to_owned(),
            };
            format!("{kind}{}", 8 * u32::from(scalar.width))
        }
        (None, TypeInner::Vector { size, .. }) => format!("a vector of {}", *size as u8),
        _ => "another type".to_owned(),
    }
}

fn structure_text(module: &Module, name: &str) -> String {
    let found = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name));
    let Some(TypeInner::Struct { members, .. }) = found.map(|(_, ty)| &ty.inner) else {
        return String::new();
    };
    let members: Vec<_> = members
        .iter()
        .map(|of| format!("{}: {}", of.name.as_deref().unwrap_or_default(), type_text(module, of.ty)))
        .collect();
    format!("struct {name} {{ {} }}", members.join(", "))
}

fn function_text(module: &Module, function: &Function) -> String {
    let arguments: Vec<_> = function.arguments.iter().map(|of| type_text(module, of.ty)).collect();
    let result = function.result.as_ref().map(|of| format!(" -> {}", type_text(module, of.ty)));
    let name = function.name.as_deref().unwrap_or_default();
    format!("fn {name}({}){}", arguments.join(", "), result.unwrap_or_default())
}

/// A joined text, and where the rule's is in it.
struct Joined<'a> {
    source: String,
    first: usize,
    wgsl: &'a str,
}

impl<'a> Joined<'a> {
    fn new(source: String, wgsl: &'a str) -> Self {
        let first = source.find(wgsl).unwrap_or_default();
        Self { source, first, wgsl }
    }

    fn validated(&self) -> Result<(Module, ModuleInfo), CustomRuleError> {
        let module = wgsl::parse_str(&self.source).map_err(|error| {
            let labels: Vec<_> = error.labels().collect();
            self.error(error.message(), labels.iter().map(|(span, label)| (*span, *label)))
        })?;
        // Some kernels have binding arrays. Rules declare no variables.
        let arrays = Capabilities::STORAGE_BUFFER_BINDING_ARRAY
            | Capabilities::STORAGE_BUFFER_BINDING_ARRAY_NON_UNIFORM_INDEXING;
        let mut validator = Validator::new(ValidationFlags::all(), arrays);
        match validator.validate(&module) {
            Ok(info) => Ok((module, info)),
            Err(error) => {
                let mut message = error.as_inner().to_string();
                let mut cause = std::error::Error::source(error.as_inner());
                while let Some(of) = cause {
                    message = format!("{message}: {of}");
                    cause = of.source();
                }
                let spans = error.spans().map(|(span, label)| (*span, label.as_str()));
                Err(self.error(&message, spans))
            }
        }
    }

    /// The error at the first of these places that is in the rule's text, else at its end.
    fn error<'b>(&self, message: &str, places: impl Iterator<Item = (Span, &'b str)>) -> CustomRuleError {
        let within = places.into_iter().filter_map(|(span, label)| {
            let start = span.to_range()?.start.checked_sub(self.first)?;
            (start < self.wgsl.len()).then_some((start, label))
        });
        // An inner place says more than the function that it is in.
        let found = within.last();
        let end = self.wgsl.trim_end().len();
        let (start, label) = found.unwrap_or((end, ""));
        let line = 1 + self.wgsl[..start.min(end)].matches('\n').count();
        let text = self.wgsl.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
        let label = if label.is_empty() || label == message { String::new() } else { format!(" ({label})") };
        CustomRuleError::Source { line, text, message: format!("{message}{label}") }
    }
}
