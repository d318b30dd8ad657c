//! Every kernel that can be built is valid WGSL for naga, and the structures that Rust and WGSL share have one layout. Needs no
//! GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::path::Path;

use adamod::low_level::abi::{
    self, Chunk, Coefficients, Control, ControlHead, DecayRate, Group, GroupTableHead, Partial, Remap, Row,
    Segment, SegmentRows,
};
use adamod::low_level::{
    Buffers, MAX_STATES, RowFeatures, Shadow, StateAccess, Variant, bindings, joint_source, norm_source,
    partials_source, prepare_source, remap_source, schedule_source,
};
use adamod::{Access, Diagnostics, GradientBinding, RuleForm, RuleKind};
use naga::valid::{Capabilities, ValidationFlags, Validator};

fn parse(variant: &Variant) -> naga::Module {
    let source = variant.source();
    naga::front::wgsl::parse_str(&source)
        .unwrap_or_else(|error| panic!("{}: {}", variant.name(), error.emit_to_string(&source)))
}

/// Offsets of a WGSL structure's members, and the stride of an array of it.
fn reflect(module: &naga::Module, name: &str) -> (Vec<(String, u32)>, u32) {
    let (_, structure) = module
        .types
        .iter()
        .find(|(_, ty)| ty.name.as_deref() == Some(name))
        .unwrap_or_else(|| panic!("{name} exists"));
    let naga::TypeInner::Struct { members, span } = &structure.inner else { panic!("{name} is a structure") };
    let offsets = members.iter().map(|member| (member.name.clone().unwrap(), member.offset)).collect();
    (offsets, *span)
}

macro_rules! assert_same_layout {
    ($module:expr, $structure:ident { $($field:ident),* $(,)? }) => {
        let (offsets, span) = reflect($module, stringify!($structure));
        let expected = vec![$((stringify!($field).to_owned(), offset_of!($structure, $field) as u32)),*];
        assert_eq!(offsets, expected, stringify!($structure));
        assert_eq!(span as usize, size_of::<$structure>(), stringify!($structure));
    };
}

#[test]
fn every_variant_is_valid_with_the_capabilities_that_webgpu_always_has() {
    let mut count = 0;
    for variant in Variant::all() {
        let module = parse(&variant);
        Validator::new(ValidationFlags::all(), Capabilities::empty())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{}: {error:?}", variant.name()));
        let [entry] = module.entry_points.as_slice() else {
            panic!("{}: one entry point", variant.name());
        };
        assert_eq!(entry.name, "update");
        assert!(entry.workgroup_size_overrides.is_some(), "{}: the host chooses", variant.name());
        count += 1;
    }
    // Rules without a learning rate for each element have no diagnostics. With and without shadow copies.
    let of_rules: usize = RuleForm::all().map(|form| 1 + usize::from(form.rule().has_element_rates())).sum();
    let tensors = Access::ALL.len() * GradientBinding::ALL.len();
    // Words of any size, with a quad or two per thread; words of 4 bytes with a quant block per thread.
    let states = 2 * StateAccess::ALL.len() + 1;
    // With rates by column and masked rows with one binding of gradients only, and without shadow copies.
    assert_eq!(count, of_rules * states * (2 * tensors + Access::ALL.len()));
}

fn validated(source: &str) -> naga::Module {
    validated_with(source, Capabilities::empty())
}

fn validated_with(source: &str, capabilities: Capabilities) -> naga::Module {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(source)));
    Validator::new(ValidationFlags::all(), capabilities).validate(&module).unwrap();
    module
}

/// Arrays have nothing to do with rules, which are many.
fn with_arrays_of_one_rule() -> impl Iterator<Item = Variant> {
    let form = RuleKind::AdaMod.default_form();
    Variant::with_arrays().into_iter().filter(move |variant| variant.form == form)
}

#[test]
fn every_variant_with_binding_arrays_is_valid_with_what_optimizers_ask_for() {
    let capabilities = Capabilities::STORAGE_BUFFER_BINDING_ARRAY
        | Capabilities::STORAGE_BUFFER_BINDING_ARRAY_NON_UNIFORM_INDEXING;
    let sources = with_arrays_of_one_rule().map(|variant| variant.source());
    let norms = Access::ALL.into_iter().flat_map(|access| {
        [GradientBinding::Read, GradientBinding::ReadWrite]
            .map(|binding| norm_source(access, binding, Buffers::Array))
    });
    for source in sources.chain(norms) {
        let module = validated_with(&source, capabilities);
        let is_array = |variable: &naga::GlobalVariable| {
            matches!(module.types[variable.ty].inner, naga::TypeInner::BindingArray { .. })
        };
        // Dynamic offsets and binding arrays may not share a bind group.
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            assert_eq!(binding.group, u32::from(is_array(variable)), "{:?}", variable.name);
        }
    }
}

#[test]
fn kernels_that_prepare_steps_are_valid_too() {
    for access in Access::ALL {
        for binding in GradientBinding::ALL {
            let module = validated(&norm_source(access, binding, Buffers::One));
            let entry_points: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
            assert_eq!(entry_points, ["norm_of_chunks", "norm_and_prepare"]);
            assert_same_layout!(&module, Partial { low, top, high });
        }
    }
    let module = validated(&prepare_source());
    let entry_points: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(entry_points, ["no_norm", "prepare", "prepare_joint"]);
    assert_same_layout!(&module, Row { group, activity });
    for (source, expected) in [
        (schedule_source(), &["schedule"] as &[_]),
        (joint_source(), &["join", "follow"]),
        (partials_source(), &["norm_of_partials"]),
    ] {
        let module = validated(&source);
        let entry_points: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(entry_points, expected);
    }
    let (mut members, _) = reflect(&module, "ControlBuffer");
    let counts = members.pop();
    assert_eq!(counts, Some(("step_counts".to_owned(), size_of::<ControlHead>() as u32)));
    let expected = [
        ("control", offset_of!(ControlHead, control)),
        ("arrived", offset_of!(ControlHead, arrived)),
        ("norm_excess", offset_of!(ControlHead, norm_excess)),
        ("rate_factor", offset_of!(ControlHead, rate_factor)),
        ("sum_of_squares", offset_of!(ControlHead, sum_of_squares)),
    ];
    assert_eq!(members, expected.map(|(name, offset)| (name.to_owned(), offset as u32)));
    let (members, _) = reflect(&module, "GroupTable");
    let words = ("words".to_owned(), size_of::<GroupTableHead>() as u32);
    let decay_rates = ("decay_rates".to_owned(), offset_of!(GroupTableHead, decay_rates) as u32);
    assert_eq!(members, [("max_norm".to_owned(), 0), decay_rates, words]);
    assert_same_layout!(
        &module,
        Control { loss_scale, multiplier, norm, growth_tracker, taken, skipped, skipped_in_a_row }
    );
    assert_same_layout!(
        &module,
        Group {
            sign,
            coupled_decay,
            decoupled_decay,
            options,
            rule,
            variant,
            rate_coefficients,
            coefficients,
            decay_rates,
        }
    );
}

#[test]
fn kernels_that_move_rows_are_valid_whatever_the_number_of_buffers() {
    let accesses = [StateAccess::Words4, StateAccess::Words1];
    for (old_buffers, access) in [0, 1, 3, 16].into_iter().flat_map(|of| accesses.map(|access| (of, access)))
    {
        let module = validated(&remap_source(old_buffers, access));
        let entry_points: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(entry_points, ["remap", "rates_of_bands", "mean_rates"]);
        let (members, _) = reflect(&module, "RemapTable");
        let chunks = ("chunks".to_owned(), size_of::<Remap>() as u32);
        assert_eq!(members, [("head".to_owned(), 0), chunks]);
        assert_same_layout!(
            &module,
            Remap {
                segment,
                row_len,
                old_rows,
                elements,
                old_chunks,
                source,
                first_source,
                step,
                host_step,
                rates,
                bands,
            }
        );
    }
}

#[test]
fn names_of_variants_are_unique() {
    let mut names: Vec<_> = Variant::all().iter().map(|variant| variant.name()).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn the_validator_refuses_a_broken_kernel() {
    let variant = Variant::all()[0];
    let broken = variant.source().replace("chunks[index]", "chunks[missing]");
    assert!(naga::front::wgsl::parse_str(&broken).is_err());
}

#[test]
fn bindings_are_as_the_host_lays_them_out() {
    for variant in Variant::all() {
        let module = parse(&variant);
        let mut bindings: Vec<_> = module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| variable.binding.as_ref())
            .map(|binding| (binding.group, binding.binding))
            .collect();
        bindings.sort_unstable();
        let mut expected = vec![
            (0, bindings::COEFFICIENTS),
            (0, bindings::SEGMENTS),
            (0, bindings::CHUNKS),
            (0, bindings::PARAMETERS),
        ];
        if variant.gradients != GradientBinding::Shared {
            expected.push((0, bindings::GRADIENTS));
        }
        expected.push((0, bindings::STATE));
        if variant.diagnostics != Diagnostics::Off {
            expected.push((0, bindings::HISTOGRAM));
        }
        if variant.shadow == Shadow::On {
            expected.push((0, bindings::SHADOW));
        }
        if variant.rows == RowFeatures::On {
            expected.extend([(0, bindings::ROW_TABLE), (0, bindings::ROW_MASKS)]);
        }
        assert_eq!(bindings, expected, "{}", variant.name());
    }
}

#[test]
fn shared_structures_have_one_layout() {
    let module = parse(&Variant::all()[0]);
    assert_same_layout!(
        &module,
        Coefficients {
            gradient_scale,
            gradient_prescale,
            coupled_decay,
            decoupled_decay,
            options,
            activity,
            step,
            of_rule,
        }
    );
    assert_same_layout!(
        &module,
        Segment { parameters, gradients, coefficients, format, key, first_quad, shadow }
    );
    assert_same_layout!(&module, Chunk { segment, first, elements, state });
    let with_rows = Variant::all().into_iter().find(|variant| variant.rows == RowFeatures::On).unwrap();
    assert_same_layout!(
        &parse(&with_rows),
        SegmentRows { factors, period, phase, mask, row_len, row, column, padding }
    );
}

#[test]
fn shared_constants_are_equal() {
    let is_counting = |variant: &Variant| variant.diagnostics != Diagnostics::Off;
    let modules =
        [parse(&Variant::all().into_iter().find(is_counting).unwrap()), validated(&prepare_source())];
    let constant = |name: &str| {
        let (module, (_, constant)) = modules
            .iter()
            .flat_map(|module| module.constants.iter().map(move |constant| (module, constant)))
            .find(|(_, (_, constant))| constant.name.as_deref() == Some(name))
            .unwrap_or_else(|| panic!("{name} exists"));
        match module.global_expressions[constant.init] {
            naga::Expression::Literal(naga::Literal::U32(value)) => f64::from(value),
            naga::Expression::Literal(naga::Literal::F32(value)) => f64::from(value),
            ref other => panic!("{name} is {other:?}"),
        }
    };
    assert_eq!(constant("GRADIENT_LIMIT"), adamod::reference::GRADIENT_LIMIT);
    for (name, expected) in [
        ("CHUNK_ELEMENTS", abi::CHUNK_ELEMENTS as usize),
        ("MAX_STATES", MAX_STATES),
        ("MAX_COEFFICIENTS", Coefficients::inactive().of_rule.len()),
        ("INACTIVE", abi::INACTIVE as usize),
        ("ACTIVE", abi::ACTIVE as usize),
        ("SKIPPED", abi::SKIPPED as usize),
        ("CAUTIOUS", abi::CAUTIOUS as usize),
        ("CAUTIOUS_DECAY", abi::CAUTIOUS_DECAY as usize),
        ("BINS", abi::BINS),
        ("CLIPPED", abi::CLIPPED),
        ("NOT_FINITE_UPDATES", abi::NOT_FINITE_UPDATES),
        ("SQUARES", abi::SQUARES),
        ("COUNTERS", abi::COUNTERS),
        ("GROUP_WORDS", size_of::<Group>() / 4),
        ("DECAY_RATE_WORDS", size_of::<DecayRate>() / 4),
    ] {
        assert_eq!(constant(name), expected as f64, "{name}");
    }
    // naga drops constants without a type of their own.
    let source = Variant::all().into_iter().find(is_counting).unwrap().source();
    let lowest: i32 = between(&source, "const LOWEST_EXPONENT = ", ";").parse().unwrap();
    assert_eq!(lowest, abi::LOWEST_EXPONENT);
}

/// The text between `start` and the next `end`.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("{start:?} exists"));
    rest.split_once(end).unwrap_or_else(|| panic!("{start:?} ends with {end:?}")).0
}

/// The linker takes coefficients from an array and puts them back by the names in the rule's Rust file. Members of the WGSL structure
/// that are in another order would be mixed up, and nothing else would notice.
#[test]
fn coefficients_of_rules_have_the_same_members_in_the_same_order_in_rust_and_in_wgsl() {
    let prepare = prepare_source();
    let of_rules = between(&prepare, "fn coefficients_of_rule(", "        default: {");
    let cases: Vec<_> = of_rules.split("        case ").skip(1).collect();
    assert_eq!(cases.len(), RuleKind::ALL.len());
    for (code, (rule, case)) in RuleKind::ALL.iter().zip(cases).enumerate() {
        assert!(case.starts_with(&format!("{code}u: {{")), "{rule}: {case}");
        // As `let c = adamod_coefficients(AdaModCoefficients(base[0], base[1]), variant, decay);`.
        let call = between(case, "let c = ", ";");
        let constructed = between(call, &format!("{}_coefficients(", rule.name()), ")");
        let (structure, arguments) = constructed.split_once('(').unwrap();
        let variant = Variant::all().into_iter().find(|variant| variant.form.rule() == *rule).unwrap();
        let (members, span) = reflect(&parse(&variant), structure);
        let expected: Vec<_> = (0..members.len()).map(|index| format!("base[{index}]")).collect();
        assert_eq!(arguments, expected.join(", "), "{rule}");
        assert_eq!(span as usize, 4 * members.len(), "{rule}");
        // As `return array<f32, 11>(c.exp_avg_weight, c.exp_avg_sq_weight, 0.0);`, in the order of Rust.
        let returned = between(case, "return array<f32, ", ");").split_once(">(").unwrap().1;
        let returned: Vec<_> = returned.split(", ").collect();
        assert_eq!(returned.len(), Coefficients::inactive().of_rule.len(), "{rule}");
        let (own, unused) = returned.split_at(members.len());
        let names: Vec<_> = members.iter().map(|(name, _)| format!("c.{name}")).collect();
        assert_eq!(own, names, "{rule}");
        assert!(unused.iter().all(|zero| *zero == "0.0"), "{rule}: {unused:?}");
        // As `return adamod_step(general, AdaModCoefficients(c.of_rule[0], c.of_rule[1]), e);`.
        let source = variant.source();
        let step =
            between(&source, "fn step(general: General, c: Coefficients, e: Elements) -> Stepped {", "}");
        let arguments = between(step, &format!("{}_step(general, {structure}(", rule.name()), "), e);");
        let expected: Vec<_> = (0..members.len()).map(|index| format!("c.of_rule[{index}]")).collect();
        assert_eq!(arguments, expected.join(", "), "{rule}");
    }
}

/// Folders of which exactly one file is linked into a kernel.
const AXES: [&str; 7] = ["access", "buffers", "gradients", "state", "quantized", "shadow", "diagnostics"];

/// The text of each file of a folder of `shaders/`.
fn files(folder: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())).collect()
}

/// WGSL without comments and with single spaces.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// Name and signature of each function: `load(Place, u32) -> vec4<u32>`.
fn functions(code: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for text in code.split("fn ").skip(1) {
        let (name, rest) = text.split_once('(').unwrap();
        let (parameters, rest) = rest.split_once(')').unwrap();
        let (result, _) = rest.split_once('{').unwrap();
        let types: Vec<_> = parameters
            .split(',')
            .filter_map(|parameter| parameter.split_once(':'))
            .map(|(_, of)| of.trim())
            .collect();
        let signature = format!("{name}({}) {}", types.join(", "), result.trim());
        assert_eq!(found.insert(name.to_owned(), signature), None, "{name} is defined once");
    }
    found
}

/// Names of type aliases.
fn aliases(code: &str) -> BTreeSet<String> {
    code.split("alias ").skip(1).map(|text| text.split(' ').next().unwrap().to_owned()).collect()
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

/// The other files call the functions of an axis without knowing which of its files is linked. Functions that only their own file calls
/// are its own affair.
#[test]
fn all_files_of_an_axis_define_the_same_functions() {
    let folders = AXES.iter().chain(&["lib", "rules", "kernels"]);
    let all: Vec<_> = folders
        .map(|folder| (*folder, files(folder).into_values().map(|text| code(&text)).collect::<Vec<_>>()))
        .collect();
    for axis in AXES {
        let others: Vec<_> =
            all.iter().filter(|(folder, _)| *folder != axis).flat_map(|(_, of)| of).collect();
        let used: BTreeSet<_> = others.iter().flat_map(|code| words(code)).collect();
        let (_, own) = all.iter().find(|(folder, _)| *folder == axis).unwrap();
        assert!(own.len() > 1, "{axis} has variants");
        let interface = |code: &String| {
            let mut functions = functions(code);
            functions.retain(|name, _| used.contains(name.as_str()));
            let mut aliases = aliases(code);
            aliases.retain(|name| used.contains(name.as_str()));
            (functions, aliases)
        };
        let expected = interface(&own[0]);
        assert!(!expected.0.is_empty(), "{axis} has functions");
        for code in own {
            assert_eq!(interface(code), expected, "{axis}");
        }
        // Helpers of one file have the names of no others, whatever is linked.
        for (_, of) in all.iter().filter(|(folder, _)| *folder != axis) {
            for (code, own) in of.iter().flat_map(|code| own.iter().map(move |own| (code, own))) {
                let (functions, own) = (functions(code), functions(own));
                let twice: Vec<_> = own.keys().filter(|name| functions.contains_key(*name)).collect();
                assert!(twice.is_empty(), "{axis}: {twice:?}");
            }
        }
    }
}

#[test]
fn one_file_of_each_axis_is_linked_and_every_file_in_some_kernel() {
    let mut linked = BTreeSet::new();
    let mut check = |name: &str, source: &str, axes: &[&str]| {
        for axis in axes {
            let files = files(axis);
            let of_source: Vec<_> = files.iter().filter(|(_, text)| source.contains(text.as_str())).collect();
            assert_eq!(of_source.len(), 1, "{axis} of {name}");
            linked.insert(of_source[0].0.clone());
        }
    };
    for variant in Variant::all().into_iter().chain(with_arrays_of_one_rule()) {
        check(&variant.name(), &variant.source(), &AXES);
    }
    for access in Access::ALL {
        for binding in GradientBinding::ALL {
            for buffers in [Buffers::One, Buffers::Array] {
                // Gradients that share the binding of parameters have no arrays.
                if (buffers, binding) != (Buffers::Array, GradientBinding::Shared) {
                    check(
                        "norm",
                        &norm_source(access, binding, buffers),
                        &["access", "buffers", "gradients"],
                    );
                }
            }
        }
    }
    let all: BTreeSet<_> = AXES.iter().flat_map(|axis| files(axis).into_keys()).collect();
    assert_eq!(linked, all);
}
