//! What a step costs on many ranks, on paper: the bytes that each part of a machine moves over what it moves in a second.

use std::fmt::Write;

#[derive(clap::Args, Clone)]
pub struct Arguments {
    /// Parameters, in billions
    #[arg(long, default_value_t = 1.0)]
    parameters: f64,

    /// Bytes of a gradient on its way
    #[arg(long, default_value_t = 4.0)]
    wire_bytes: f64,

    /// Bytes of a value
    #[arg(long, default_value_t = 4.0)]
    value_bytes: f64,

    /// Bytes that a step moves for each parameter of a shard on the device: 36 for AdaMod in f32
    #[arg(long, default_value_t = 36.0)]
    step_bytes: f64,

    /// MiB of a bucket
    #[arg(long, default_value_t = 25.0)]
    bucket_mib: f64,

    /// GB a second that a rank sends while it receives as many: 200 Gbit/s
    #[arg(long, default_value_t = 25.0)]
    network: f64,

    /// Microseconds that a message costs its rank besides its bytes
    #[arg(long, default_value_t = 2.0)]
    latency: f64,

    /// GB a second between device and host, in each direction
    #[arg(long, default_value_t = 25.0)]
    bus: f64,

    /// GB a second that the host thread converts, adds and copies
    #[arg(long, default_value_t = 4.0)]
    host: f64,

    /// GB a second of the device's memory
    #[arg(long, default_value_t = 3000.0)]
    device: f64,
}

/// Seconds of the parts of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    pub network: f64,
    pub messages: f64,
    pub bus: f64,
    pub host: f64,
    pub device: f64,
}

impl Parts {
    fn each(&self) -> [(&'static str, f64); 5] {
        [
            ("network", self.network),
            ("messages", self.messages),
            ("bus", self.bus),
            ("host", self.host),
            ("device", self.device),
        ]
    }

    /// The longest part, which bounds a step in which all others run meanwhile.
    fn bound(&self) -> (&'static str, f64) {
        let longest = |a: (&'static str, f64), b: (&'static str, f64)| if b.1 > a.1 { b } else { a };
        self.each().into_iter().reduce(longest).unwrap_or_default()
    }
}

/// The parts of a sharded step on `n` ranks.
pub fn parts(arguments: &Arguments, n: f64) -> Parts {
    let Arguments { wire_bytes, value_bytes, .. } = *arguments;
    let elements = 1e9 * arguments.parameters;
    let others = (n - 1.0) / n;
    let (gradients, values) = (elements * wire_bytes, elements * value_bytes);
    let buckets = (elements * 4.0 / (arguments.bucket_mib * (1 << 20) as f64)).ceil();
    // Gradients to each rank, values to each rank, and a summary to each rank.
    let sent = (2.0 * buckets + 1.0) * (n - 1.0);
    // f32 gradients go down and the average of the shard goes up; values of the shard go down and all others up. Both directions at once.
    let down = elements * 4.0 + values / n;
    let up = elements * 4.0 / n + values * others;
    // All gradients are read, written as they are sent, and read again in search of what is not finite. Those of the shard are read from
    // all ranks and added to a sum that is read and written each time. Values are copied from and to the staging buffers.
    let touched = elements * 4.0 + 3.0 * gradients + 2.0 * elements * 4.0 + 2.0 * values;
    Parts {
        network: others * (gradients + values) / (1e9 * arguments.network),
        // Each message is sent by one rank and received by another.
        messages: 2.0 * sent * arguments.latency * 1e-6,
        bus: down.max(up) / (1e9 * arguments.bus),
        host: touched / (1e9 * arguments.host),
        device: elements * arguments.step_bytes / n / (1e9 * arguments.device),
    }
}

/// The table for 1 to 1,024 ranks.
pub fn table(arguments: &Arguments) -> String {
    let mut text =
        String::from("ranks  network  messages      bus     host   device      sum  bound by     (ms)\n");
    for power in 0..=10 {
        let n = 1 << power;
        let parts = parts(arguments, f64::from(n));
        let ms = parts.each().map(|(_, seconds)| 1e3 * seconds);
        let [network, messages, bus, host, device] = ms;
        let sum: f64 = ms.iter().sum();
        let (name, bound) = parts.bound();
        let _ = writeln!(
            text,
            "{n:>5}  {network:>7.1}  {messages:>8.1}  {bus:>7.1}  {host:>7.1}  {device:>7.2}  {sum:>7.1}  {name:<8}  {:>7.1}",
            1e3 * bound
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_network_carries_twice_the_parameters_and_messages_grow_with_the_ranks() {
        let Line { arguments } = Line::parse_from(["model"]);
        let [one, two, most] = [1.0, 2.0, 1024.0].map(|n| parts(&arguments, n));
        assert_eq!((one.network, one.messages), (0.0, 0.0));
        // 8 GB at 25 GB/s, and half of it.
        assert!((most.network / 0.32 - 1.0).abs() < 1e-3 && (two.network - 0.16).abs() < 1e-9);
        assert!((most.messages / two.messages - 1023.0).abs() < 1e-6);
        assert!(most.device < one.device / 1000.0);
        assert_eq!(table(&arguments).lines().count(), 12);
    }
}
