use super::*;
use proptest::prelude::*;

const COMMITTED: [&str; 3] =
    ["authors-schedule-missing", "torch-adam-schedule-missing", "torch-sgd-decoupled"];

fn committed(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap()
}

/// A file with this header, and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn hostile_headers_are_errors() {
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}")
    };
    let description = |steps: &str| {
        format!(
            "\"__metadata__\":{{\"adamod.trace\":\"{{\\\"formula\\\":\\\"paper\\\",\\\"steps\\\":{steps},\
             \\\"groups\\\":[{{\\\"learning_rate\\\":0.001,\\\"betas\\\":[0.9,0.99,0.999],\
             \\\"epsilon\\\":1e-8,\\\"params\\\":[\\\"a\\\"]}}]}}\"}}"
        )
    };
    let good =
        |shape: &str, end: u64| format!("{{{},{}}}", description("1"), tensor("param.a", shape, 0, end));
    Trace::parse(&file(&good("[2]", 8), 8)).unwrap();
    let overlapping = format!(
        "{{{},{},{}}}",
        description("1"),
        tensor("param.a", "[2]", 0, 8),
        tensor("grad.1.a", "[2]", 4, 12)
    );
    let hole = format!(
        "{{{},{},{}}}",
        description("1"),
        tensor("param.a", "[2]", 0, 8),
        tensor("grad.1.a", "[2]", 12, 20)
    );
    for (what, bytes) in [
        ("overlapping tensors", file(&overlapping, 12)),
        ("a hole", file(&hole, 20)),
        ("a shape whose product overflows", file(&good("[4294967296,4294967296,2]", 8), 8)),
        ("a shape larger than the data", file(&good("[3]", 8), 8)),
        ("offsets past the end", file(&good("[2000]", 8000), 8)),
        ("offsets that run backwards", file(&good("[2]", 8).replace("[0,8]", "[8,0]"), 8)),
        ("huge offsets", file(&good("[2]", 8).replace("[0,8]", "[0,18446744073709551615]"), 8)),
        ("data past the last tensor", file(&good("[2]", 8), 9)),
        (
            "endless steps",
            file(
                &format!("{{{},{}}}", description("9000000000000000000"), tensor("param.a", "[2]", 0, 8)),
                8,
            ),
        ),
        (
            "steps past u64",
            file(
                &format!("{{{},{}}}", description("99999999999999999999"), tensor("param.a", "[2]", 0, 8)),
                8,
            ),
        ),
        ("a deep header", file(&"[".repeat(100_000), 0)),
        ("no header", file("", 0)),
        ("a header that is no object", file("null", 0)),
        ("a header that is not UTF-8", [4_u64.to_le_bytes().as_slice(), &[0xff; 4]].concat()),
    ] {
        let error = Trace::parse(&bytes).err();
        assert!(error.is_some(), "{what} was read");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        length in prop_oneof![any::<u64>(), 0_u64..300],
        text in "[\\[\\]{}\":,a-z0-9_.]{0,300}",
        data in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend(data);
        prop_assert!(Trace::parse(&bytes).is_err());
    }

    /// A trace with some bytes of its header overwritten is refused, or what is read is complete.
    #[test]
    fn overwritten_traces_never_panic(
        name in prop::sample::select(COMMITTED.to_vec()),
        at in any::<prop::sample::Index>(),
        with in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'9'), Just(b'-'), Just(b'"')], 1..12),
    ) {
        let mut bytes = committed(name);
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let at = at.index(header + 8);
        for (byte, with) in bytes[at..].iter_mut().zip(with) {
            *byte = with;
        }
        if let Ok(trace) = Trace::parse(&bytes) {
            for (index, parameter) in trace.parameters.iter().enumerate() {
                prop_assert_eq!(parameter.shape.iter().product::<usize>(), parameter.values.elements.len());
                for step in 1..=trace.steps.min(100) {
                    let gradient = trace.gradient(step, index);
                    prop_assert!(gradient.is_none_or(|gradient| gradient.len() == parameter.values.elements.len()));
                    trace.hyperparameters(parameter.group, step).validate().unwrap();
                }
            }
        }
    }
}
