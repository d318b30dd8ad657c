#!/usr/bin/env python3
"""Times optimizer steps of PyTorch that are alternatives to adamod, and compares them with the report of `adamod bench --json`.

A peer that cannot run on this machine gets a row that says why. README.md in this folder explains the table.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

Tensors = list[torch.Tensor]
Step = Callable[[], object]

LEARNING_RATE = 1e-3
BETA1, BETA2, BETA3 = 0.9, 0.999, 0.999
EPSILON = 1e-8

ADAM_BYTES = 28.0  # gradient read; value and two moments read and written, f32
ADAMOD_BYTES = 36.0  # and the third state
BLOCK_8BIT_BYTES = 16.0 + 2 * 2 * 4 / 256  # value and gradient f32; two moments of a byte, an f32 scale for each 256
FLASH_8BIT_BYTES = 16.0 + 2 * 2 * 2 / 32  # the same with an f16 scale for each 32

FLUSH_BYTES = 512 << 20  # written before every timed step on a GPU, as in `adamod bench`: more than any current cache
COMPARABLE_SUITES = ("roofline", "modes", "tensors")  # one flat tensor, and models
SOFTWARE_ADAPTERS = ("llvmpipe", "lavapipe", "swiftshader")
PACKAGES = ("torch", "adamod", "pytorch_optimizer", "bitsandbytes", "flashoptim")


@dataclasses.dataclass(frozen=True)
class Peer:
    name: str
    mode: str
    """The mode of `adamod bench` to compare it with."""
    bytes_per_parameter: float
    """Bytes that its algorithm has to read and write."""
    build: Callable[[Tensors], Step]
    needs_cuda: bool = False


def torch_optimizer(optimizer_class: type[torch.optim.Adam], **choice: bool) -> Callable[[Tensors], Step]:
    return lambda parameters: optimizer_class(
        parameters, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, **choice
    ).step


@contextlib.contextmanager
def scalar_first() -> Iterator[None]:
    """Makes in-place operations accept the scalar first. The AdaMod authors call them so, and current torch does not accept it."""
    add, addcmul = torch.Tensor.add_, torch.Tensor.addcmul_

    def add_(self: torch.Tensor, first: Any, second: Any = None) -> torch.Tensor:
        return add(self, first) if second is None else add(self, second, alpha=first)

    def addcmul_(self: torch.Tensor, value: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return addcmul(self, first, second, value=value)

    torch.Tensor.add_, torch.Tensor.addcmul_ = add_, addcmul_  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        # Both methods were inherited before, and are inherited again.
        del torch.Tensor.add_, torch.Tensor.addcmul_


def authors_adamod(parameters: Tensors) -> Step:
    from adamod import AdaMod

    optimizer = AdaMod(parameters, lr=LEARNING_RATE, betas=(BETA1, BETA2), beta3=BETA3, eps=EPSILON)

    def step() -> None:
        with scalar_first():
            optimizer.step()

    return step


def pytorch_optimizer_adamod(parameters: Tensors) -> Step:
    from pytorch_optimizer import AdaMod

    return AdaMod(parameters, lr=LEARNING_RATE, betas=(BETA1, BETA2, BETA3), eps=EPSILON).step


def compiled_adamod(parameters: Tensors) -> Step:
    gradients = [parameter.grad for parameter in parameters]
    values = [parameter.detach() for parameter in parameters]
    means, squares, rates = ([torch.zeros_like(value) for value in values] for _ in range(3))
    # On the device, so that no step waits for the host. A Python number would be a constant to the compiler.
    steps = torch.zeros((), dtype=torch.float64, device=values[0].device)

    @torch.compile
    def update() -> None:
        """Algorithm 2, in operations on all tensors at once, which the compiler fuses."""
        steps.add_(1)
        correction1, correction2 = (1 - BETA1**steps).float(), (1 - BETA2**steps).float()
        torch._foreach_lerp_(means, gradients, 1 - BETA1)
        torch._foreach_mul_(squares, BETA2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETA2)
        denominators = torch._foreach_sqrt(torch._foreach_div(squares, correction2))
        etas = torch._foreach_mul(torch._foreach_reciprocal(torch._foreach_add(denominators, EPSILON)), LEARNING_RATE)
        torch._foreach_lerp_(rates, etas, 1 - BETA3)
        bounded = torch._foreach_minimum(etas, rates)
        torch._foreach_sub_(values, torch._foreach_mul(bounded, torch._foreach_div(means, correction1)))

    return torch.no_grad()(update)


def flash_adamw(parameters: Tensors) -> Step:
    from flashoptim import FlashAdamW

    # Only parameters below f32 need extra bits of master weights.
    return FlashAdamW(parameters, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, master_weight_bits=None).step


def bitsandbytes_adamw(parameters: Tensors) -> Step:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON).step


PEERS = (
    Peer("torch Adam, fused", "adam-f32", ADAM_BYTES, torch_optimizer(torch.optim.Adam, fused=True)),
    Peer("torch Adam, foreach", "adam-f32", ADAM_BYTES, torch_optimizer(torch.optim.Adam, foreach=True)),
    Peer("torch AdamW, fused", "adam-f32", ADAM_BYTES, torch_optimizer(torch.optim.AdamW, fused=True)),
    Peer("torch AdamW, foreach", "adam-f32", ADAM_BYTES, torch_optimizer(torch.optim.AdamW, foreach=True)),
    Peer("FlashOptim FlashAdamW", "adam-q8", FLASH_8BIT_BYTES, flash_adamw, needs_cuda=True),
    Peer("bitsandbytes AdamW8bit", "adam-q8", BLOCK_8BIT_BYTES, bitsandbytes_adamw),
    Peer("authors' AdaMod", "adamod-f32", ADAMOD_BYTES, authors_adamod),
    Peer("pytorch_optimizer AdaMod", "adamod-f32", ADAMOD_BYTES, pytorch_optimizer_adamod),
    Peer("torch.compile AdaMod", "adamod-f32", ADAMOD_BYTES, compiled_adamod),
)


def gpt2_shapes() -> list[tuple[int, ...]]:
    """The 148 tensors of GPT-2 small, with 124,439,808 parameters."""
    width = 768
    norm = [(width,), (width,)]

    def linear(inputs: int, outputs: int) -> list[tuple[int, ...]]:
        return [(inputs, outputs), (outputs,)]

    layer = [
        *norm,
        *linear(width, 3 * width),
        *linear(width, width),
        *norm,
        *linear(width, 4 * width),
        *linear(4 * width, width),
    ]
    return [(50_257, width), (1_024, width), *layer * 12, *norm]


@dataclasses.dataclass
class Contender:
    """A step that is timed in every round."""

    step: Step
    milliseconds: list[float] = dataclasses.field(default_factory=list)
    host_microseconds: list[float] = dataclasses.field(default_factory=list)


class Clock:
    """Times one call: with events on a GPU, after flushing its caches, and with the wall clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.zeros(FLUSH_BYTES // 4, device=device) if device.type == "cuda" else None

    def time(self, contender: Contender) -> None:
        if self.flush is None:
            start = time.perf_counter()
            contender.step()
            contender.milliseconds.append(1e3 * (time.perf_counter() - start))
            return
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        self.flush.add_(1.0)
        before.record()
        start = time.perf_counter()
        contender.step()
        host = time.perf_counter() - start
        after.record()
        torch.cuda.synchronize(self.device)
        contender.milliseconds.append(before.elapsed_time(after))
        contender.host_microseconds.append(1e6 * host)


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."


class Problem:
    """Values and gradients that every peer starts from. The gradients are shared, the values are copied."""

    def __init__(self, shapes: list[tuple[int, ...]], device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(1)

        def normal(deviation: float) -> Tensors:
            return [deviation * torch.randn(shape, generator=generator, device=device) for shape in shapes]

        self.device = device
        self.initial = normal(0.02)
        self.gradients = normal(0.01)

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.initial)

    def copy(self, bytes_per_parameter: float) -> Step:
        """A copy that reads and writes together as many bytes as a step with this many per parameter."""
        source = torch.zeros(round(self.parameters * bytes_per_parameter) // 8, device=self.device)
        destination = torch.empty_like(source)
        return lambda: destination.copy_(source)

    def start(self) -> Tensors:
        values: Tensors = [torch.nn.Parameter(value.clone()) for value in self.initial]
        for value, gradient in zip(values, self.gradients, strict=True):
            value.grad = gradient
        return values

    def wrong(self, values: Tensors) -> str | None:
        """What is wrong with the values after the steps."""
        if not all(value.isfinite().all() for value in values):
            return "its parameters are not finite"
        if any(value.equal(initial) for value, initial in zip(values, self.initial, strict=True)):
            return "its parameters did not move"
        return None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table, with either `skipped` or the times."""

    optimizer: str
    mode: str
    bytes_per_parameter: float
    parameters: int
    tensors: int
    skipped: str | None = None
    ms_median: float | None = None
    ms_min: float | None = None
    gb_per_s: float | None = None
    fraction_of_copy: float | None = None
    host_us_median: float | None = None
    ratio_to_ours: float | None = None


@dataclasses.dataclass(frozen=True)
class Ours:
    """The report of `adamod bench --json`."""

    adapter: str
    driver: str
    backend: str
    rows: list[Row]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Ours":
        report = json.loads(path.read_text())
        rows = [
            Row(
                optimizer=f"adamod, {result['mode']}",
                mode=result["mode"],
                bytes_per_parameter=result["bytes_per_parameter"],
                parameters=result["parameters"],
                tensors=result["tensors"],
                ms_median=result["ms_median"],
                ms_min=result["ms_min"],
                gb_per_s=result["gb_per_s"],
                fraction_of_copy=result["fraction_of_copy"],
                host_us_median=result["host_us_median"],
                ratio_to_ours=1.0,
            )
            for result in report["results"]
            if result["suite"] in COMPARABLE_SUITES
        ]
        return cls(report["adapter"], report["driver"], report["backend"], rows)

    def nearest(self, mode: str, tensors: int, parameters: int) -> Row | None:
        """The row with this number of tensors and the nearest size."""
        alike = [row for row in self.rows if row.mode == mode and row.tensors == tensors]
        return min(alike, key=lambda row: abs(math.log(row.parameters / parameters)), default=None)

    def largest(self, modes: set[str]) -> int | None:
        """The largest single tensor that was measured in all of these modes."""
        sizes = [{row.parameters for row in self.rows if row.mode == mode and row.tensors == 1} for mode in modes]
        return max(set.intersection(*sizes), default=None)

    @property
    def is_software(self) -> bool:
        return any(name in self.adapter.lower() for name in SOFTWARE_ADAPTERS)


def measure(problem: Problem, runs: int, warmup: int, ours: Ours | None) -> list[Row]:
    """Times all peers and copies in turn, in rounds."""
    contenders: dict[str, Contender] = {}
    values: dict[str, Tensors] = {}
    failures: dict[str, str] = {}
    for peer in PEERS:
        if peer.needs_cuda and problem.device.type != "cuda":
            failures[peer.name] = "needs CUDA"
            continue
        try:
            start = problem.start()
            step = peer.build(start)
            for _ in range(warmup):
                step()
        except Exception as error:  # noqa: BLE001 - the row shows any error
            failures[peer.name] = reason(error)
            continue
        values[peer.name], contenders[peer.name] = start, Contender(step)
    copies = {size: Contender(problem.copy(size)) for size in {peer.bytes_per_parameter for peer in PEERS}}
    for copy in copies.values():
        for _ in range(warmup):
            copy.step()

    clock = Clock(problem.device)
    for _ in range(runs):
        for copy in copies.values():
            clock.time(copy)
        for name, contender in contenders.items():
            if name in failures:
                continue
            try:
                clock.time(contender)
            except Exception as error:  # noqa: BLE001
                failures[name] = reason(error)
    for name, stepped in values.items():
        if name not in failures and (wrong := problem.wrong(stepped)):
            failures[name] = wrong

    rows = []
    for peer in PEERS:
        row = Row(
            optimizer=peer.name,
            mode=peer.mode,
            bytes_per_parameter=peer.bytes_per_parameter,
            parameters=problem.parameters,
            tensors=len(problem.initial),
            skipped=failures.get(peer.name),
        )
        if row.skipped is None:
            row = timed(row, contenders[peer.name], copies[peer.bytes_per_parameter], ours)
        rows.append(row)
    return rows


def timed(row: Row, contender: Contender, copy: Contender, ours: Ours | None) -> Row:
    median = statistics.median(contender.milliseconds)
    of_copy = [own / other for own, other in zip(copy.milliseconds, contender.milliseconds, strict=True)]
    host = contender.host_microseconds
    nearest = ours.nearest(row.mode, row.tensors, row.parameters) if ours else None
    return dataclasses.replace(
        row,
        ms_median=median,
        ms_min=min(contender.milliseconds),
        gb_per_s=row.parameters * row.bytes_per_parameter / median * 1e-6,
        fraction_of_copy=statistics.median(of_copy),
        host_us_median=statistics.median(host) if host else None,
        ratio_to_ours=(median / row.parameters) / (nearest.ms_median / nearest.parameters) if nearest else None,
    )


def print_table(rows: list[Row]) -> None:
    width = max(len(row.optimizer) for row in rows)
    print(
        f"{'optimizer':{width}} {'parameters':>12} {'bytes':>6} {'ms':>9} {'min':>9} {'GB/s':>8} {'of copy':>8} "
        f"{'host us':>8} {'to ours':>8}"
    )

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in rows:
        start = f"{row.optimizer:{width}} {row.parameters:>12} {row.bytes_per_parameter:>6.2f}"
        if row.skipped is not None:
            print(f"{start}  skipped: {row.skipped}")
            continue
        print(
            f"{start} {cell(row.ms_median, '.3f'):>9} {cell(row.ms_min, '.3f'):>9} {cell(row.gb_per_s, '.1f'):>8} "
            f"{cell(row.fraction_of_copy, '.0%'):>8} {cell(row.host_us_median, '.0f'):>8} {cell(row.ratio_to_ours, '.2f'):>8}"
        )


def notes(device: torch.device, ours: Ours | None, rows: list[Row]) -> Iterator[str]:
    """Remarks that a reader of the table needs."""
    if ours is not None:
        alike = {row.mode for row in ours.rows if row.tensors == rows[0].tensors}
        for mode in sorted({row.mode for row in rows} - alike):
            yield f"No ratio to {mode} with {rows[0].tensors} tensor(s): the file of --ours has no such row."
    hosts = [row.optimizer for row in rows if row.host_us_median and row.host_us_median >= 1e3 * row.ms_median]
    if hosts:
        yield f"Bound by the host, whose launches take longer than the kernels: {', '.join(hosts)}."
    if device.type == "cpu" or (ours is not None and ours.is_software):
        yield (
            "These ratios say nothing about a GPU: on a CPU, torch runs native kernels, but adamod runs shaders on a software "
            "Vulkan driver."
        )


def versions() -> str:
    installed = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(installed)


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0, expected a positive integer")
    return number


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times PyTorch's optimizer steps beside those of `adamod bench --json`.")
    parser.add_argument("--ours", type=pathlib.Path, metavar="FILE", help="the report of `adamod bench --json`")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a device")
    parser.add_argument("--shapes", choices=("flat", "gpt2"), default="flat", help="one tensor, or the 148 of GPT-2 small")
    parser.add_argument("--parameters", type=positive, metavar="N", help="elements of the flat tensor; default: as --ours, or 2^24")
    parser.add_argument("--runs", type=positive, default=30, metavar="N", help="timed rounds")
    parser.add_argument("--warmup", type=positive, default=5, metavar="N", help="steps of each peer before the first round")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="also write the rows to this file")
    arguments = parser.parse_args()
    if arguments.shapes == "gpt2" and arguments.parameters is not None:
        parser.error("--parameters requires --shapes flat: the size of GPT-2 small is fixed")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no CUDA device")
    if arguments.ours is not None:
        try:
            arguments.ours = Ours.read(arguments.ours)
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"--ours: {reason(error)}")
    return arguments


def main() -> None:
    arguments = parse()
    ours: Ours | None = arguments.ours
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    comparable = ours.largest({peer.mode for peer in PEERS}) if ours else None
    parameters = arguments.parameters or comparable or 1 << 24
    shapes = gpt2_shapes() if arguments.shapes == "gpt2" else [(parameters,)]
    problem = Problem(shapes, device)
    rows = measure(problem, arguments.runs, arguments.warmup, ours)

    print(f"peers: {describe(device)}; {versions()}")
    print(f"tensors: {len(shapes)}, parameters: {problem.parameters}, rounds: {arguments.runs}")
    shown = list(rows)
    if ours is not None:
        print(f"ours:  {ours.adapter} ({ours.backend}, {ours.driver})")
        nearest = (ours.nearest(mode, len(shapes), problem.parameters) for mode in sorted({row.mode for row in rows}))
        shown = [row for row in nearest if row is not None] + shown
    print()
    print_table(shown)
    remarks = list(notes(device, ours, rows))
    for remark in remarks:
        print(f"\n{remark}")

    if arguments.json is not None:
        report = {
            "device": describe(device),
            "versions": versions(),
            "tensors": len(shapes),
            "runs": arguments.runs,
            "ours": dataclasses.asdict(ours) if ours else None,
            "results": [dataclasses.asdict(row) for row in rows],
            "notes": remarks,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
