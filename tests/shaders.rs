//! Every kernel that can be built is valid WGSL for naga, and the structures that Rust and WGSL share have one layout. Needs no
//! GPU.

use std::mem::offset_of;

use adamod::layout::{CHUNK_ELEMENTS, Chunk, Coefficients, Control, Group, Partial, Row, Segment};
use adamod::shader::{Access, Copies, GradientBinding, Variant, norm_source, prepare_source};
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
    // 2 rules with diagnostics on and off, SGD without; accesses, gradient bindings, accesses of state, copies.
    assert_eq!(count, 5 * 3 * 3 * 3 * 2);
}

fn validated(source: &str) -> naga::Module {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(source)));
    Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).unwrap();
    module
}

#[test]
fn kernels_that_prepare_steps_are_valid_too() {
    for access in [Access::Vec4, Access::Vec2, Access::Scalar] {
        for binding in [GradientBinding::Read, GradientBinding::ReadWrite, GradientBinding::Shared] {
            let module = validated(&norm_source(access, binding));
            let entry_points: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
            assert_eq!(entry_points, ["no_norm", "prepare", "norm_of_chunks", "norm_and_prepare"]);
            assert_same_layout!(&module, Partial { sum, exponent });
        }
    }
    let module = validated(&prepare_source());
    let entry_points: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(entry_points, ["no_norm", "prepare"]);
    assert_same_layout!(&module, Row { group, activity });
    assert_same_layout!(&module, Control { loss_scale, multiplier, norm, growth_tracker, taken, skipped });
    assert_same_layout!(
        &module,
        Group {
            learning_rate,
            epsilon,
            coupled_decay,
            decoupled_decay,
            momentum,
            sign,
            exp_avg_weight,
            exp_avg_sq_weight,
            exp_avg_lr_weight,
            one_minus_beta3,
            one_minus_powers,
        }
    );
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
        let mut expected: Vec<_> = (0..6).map(|binding| (0, binding)).collect();
        if variant.gradients == GradientBinding::Shared {
            expected.remove(4);
        }
        if variant.diagnostics != adamod::Diagnostics::Off {
            expected.push((0, 6));
        }
        if variant.copies == Copies::On {
            expected.push((0, 7));
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
            coupled_decay,
            decoupled_decay,
            momentum,
            exp_avg_weight,
            exp_avg_sq_weight,
            exp_avg_lr_weight,
            step_size,
            exp_avg_correction,
            exp_avg_sq_correction,
            epsilon,
            activity,
            debiased_lr_weight,
            debiased_lr_scale,
            step,
            padding,
        }
    );
    assert_same_layout!(
        &module,
        Segment { parameters, gradients, coefficients, format, key, first_word, copies }
    );
    assert_same_layout!(&module, Chunk { segment, first, elements, state });
}

#[test]
fn shared_constants_are_equal() {
    let module = parse(&Variant::all()[0]);
    let constant = |name: &str| {
        let (_, constant) = module
            .constants
            .iter()
            .find(|(_, constant)| constant.name.as_deref() == Some(name))
            .unwrap_or_else(|| panic!("{name} exists"));
        match module.global_expressions[constant.init] {
            naga::Expression::Literal(naga::Literal::U32(value)) => f64::from(value),
            naga::Expression::Literal(naga::Literal::F32(value)) => f64::from(value),
            ref other => panic!("{name} is {other:?}"),
        }
    };
    assert_eq!(constant("CHUNK_ELEMENTS"), f64::from(CHUNK_ELEMENTS));
    assert_eq!(constant("GRADIENT_LIMIT"), adamod::reference::GRADIENT_LIMIT);
}
