#!/usr/bin/env python3
"""Writes the traces of torch.optim's Adam, AdamW and SGD for `adamod replay`.

PyTorch computes every trace in float64 from float32 parameters and gradients, and the results are rounded to float32 once.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 numpy==2.4.6 safetensors==0.8.0
    venv/bin/python tests/traces/make_torch_traces.py [FOLDER]

The random numbers are seeded, so the same versions write the same bytes. The metadata of each file names the versions.
"""

import json
import math
import pathlib
import sys

import numpy
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent

# Lengths 1, 5, 33, 257 and 1,032: one past a vector of 4, one past a quant block of 32, and more than a chunk of 1,024.
SCALAR, SHORT, MIDDLE, ODD, LONG = (), (5,), (3, 11), (257,), (8, 129)


def heavy_tailed(rng, shape):
    """Student's t with 2 degrees of freedom: rare gradients are a hundred times the usual ones."""
    return rng.standard_t(2.0, shape)


def tiny_and_zero(rng, shape):
    """Equal shares of elements are zero, about 1e-20, 1e-12 and 1e-8, and of the usual size.

    An element keeps its size for the whole run. The squares of 1e-20 are subnormal in float32, and 1e-8 is Adam's usual epsilon.
    """
    sizes = numpy.array([0.0, 1e-20, 1e-12, 1e-8, 1.0])
    kind = numpy.arange(math.prod(shape)).reshape(shape) % len(sizes)
    return rng.standard_normal(shape) * sizes[kind]


def some_steps_zero(rng, shape):
    """The whole gradient is zero in half of the steps, which is not the same as no gradient."""
    return rng.standard_normal(shape) * rng.integers(0, 2)


def adam_group(shapes, **changes):
    return {
        "learning_rate": 1e-3,
        "betas": [0.9, 0.999],
        "epsilon": 1e-8,
        "weight_decay": {"kind": "none", "value": 0.0},
        "maximize": False,
        "shapes": shapes,
        **changes,
    }


def sgd_group(shapes, **changes):
    return {
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": {"kind": "none", "value": 0.0},
        "maximize": False,
        "shapes": shapes,
        **changes,
    }


def coupled(value):
    return {"kind": "coupled", "value": value}


def decoupled(value):
    return {"kind": "decoupled", "value": value}


def schedule(peak, steps):
    """Linear warmup from zero, half a cosine down to zero, and a restart for the last quarter."""
    warmup, restart = steps // 5, steps - steps // 4
    rates = []
    for step in range(steps):
        if step < warmup:
            rates.append(peak * step / warmup)
        elif step < restart:
            rates.append(peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (restart - 1 - warmup))))
        else:
            rates.append(peak)
    return rates


def own(case, of, key):
    """A group's rule or optimizer: its own one, or that of the case."""
    return of.get(key, case[key])


def optimizers_of(case, parameters):
    """The torch optimizers of a case, with one parameter group for each group, and these groups beside their descriptions."""
    groups = {}
    for of in case["groups"]:
        group = {
            "params": [parameters[name] for name in of["params"]],
            "lr": of["learning_rate"],
            "weight_decay": of["weight_decay"]["value"],
            "maximize": of["maximize"],
        }
        if own(case, of, "rule") == "adam":
            group.update(betas=tuple(of["betas"]), eps=of["epsilon"])
        else:
            group.update(momentum=of["momentum"])
            if of["weight_decay"]["kind"] == "decoupled":
                group.update(weight_decay=0.0)
        groups.setdefault(own(case, of, "optimizer"), []).append((of, group))
    # The plain loops, not the variants that batch tensors or fuse kernels.
    optimizers = [kind([group for _, group in of_kind], lr=0.0, foreach=False) for kind, of_kind in groups.items()]
    described = [of for of_kind in groups.values() for of, _ in of_kind]
    return optimizers, list(zip(described, [group for optimizer in optimizers for group in optimizer.param_groups]))


def check_decay(case):
    """torch.optim.Adam and SGD couple weight decay and AdamW decouples it; a group must not say otherwise."""
    for of in case["groups"]:
        kind = of["weight_decay"]["kind"]
        if own(case, of, "optimizer") is torch.optim.AdamW:
            assert kind == "decoupled"
        elif own(case, of, "optimizer") is torch.optim.Adam:
            assert kind in ("none", "coupled")


def run(case, initial, gradients, dtypes):
    """What PyTorch has after the last step, with parameters rounded once to these data types."""
    parameters = {name: torch.nn.Parameter(values.to(torch.float64)) for name, values in initial.items()}
    optimizers, groups = optimizers_of(case, parameters)
    for step in range(1, case["steps"] + 1):
        for name, parameter in parameters.items():
            gradient = gradients.get((step, name))
            parameter.grad = None if gradient is None else gradient.to(torch.float64)
        for of, group in groups:
            if "learning_rates" in case:
                group["lr"] = case["learning_rates"][step - 1]
            if own(case, of, "rule") == "sgd" and of["weight_decay"]["kind"] == "decoupled":
                # torch.optim.SGD has no decoupled decay. This is what AdamW does before its step.
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.data.mul_(1.0 - group["lr"] * of["weight_decay"]["value"])
        for optimizer in optimizers:
            optimizer.step()
    expected = {}
    for name, parameter in parameters.items():
        expected[f"expected.param.{name}"] = parameter.detach().to(dtypes[name])
        for kind in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            # Without momentum SGD has no buffer, and without a gradient a parameter has no state.
            states = [optimizer.state[parameter].get(kind) for optimizer in optimizers if parameter in optimizer.state]
            for state in states:
                if state is not None:
                    expected[f"expected.{kind}.{name}"] = state.to(torch.float32)
    return expected


def cases():
    adam = {"rule": "adam", "optimizer": torch.optim.Adam}
    adamw = {"rule": "adam", "optimizer": torch.optim.AdamW}
    sgd = {"rule": "sgd", "optimizer": torch.optim.SGD}

    yield {**adam, "name": "torch-adam", "seed": 11, "steps": 25, "draw": heavy_tailed, "groups": [
        adam_group([LONG, SCALAR], weight_decay=coupled(0.1)),
        adam_group([ODD, SHORT]),
        adam_group([SHORT, SCALAR], maximize=True, learning_rate=5e-4, betas=[0.8, 0.98], epsilon=1e-6),
        adam_group([SHORT], maximize=True, weight_decay=coupled(0.5), betas=[0.0, 0.9], epsilon=1e-3),
        adam_group([SHORT], betas=[0.9, 0.0], weight_decay=coupled(1e-2)),
    ]}
    yield {**adamw, "name": "torch-adamw", "seed": 12, "steps": 25, "draw": heavy_tailed, "groups": [
        adam_group([LONG, SCALAR], weight_decay=decoupled(0.1)),
        adam_group([ODD, SHORT], weight_decay=decoupled(1e-2), learning_rate=5e-4, betas=[0.9, 0.95], epsilon=1e-3),
        adam_group([SHORT, SCALAR], maximize=True, weight_decay=decoupled(0.5), betas=[0.5, 0.9999]),
    ]}
    yield {**sgd, "name": "torch-sgd", "seed": 13, "steps": 25, "draw": heavy_tailed, "groups": [
        sgd_group([LONG, SCALAR], weight_decay=coupled(0.1)),
        sgd_group([ODD, SHORT]),
        sgd_group([SHORT, SCALAR], momentum=0.0),
        sgd_group([SHORT], momentum=0.0, weight_decay=coupled(0.1), learning_rate=5e-3),
        sgd_group([SHORT], maximize=True, learning_rate=2e-3),
        sgd_group([SHORT], maximize=True, weight_decay=coupled(0.5), momentum=0.5),
        sgd_group([SHORT], maximize=True, weight_decay=coupled(0.5), momentum=0.0),
    ]}
    # AdamW's decay with SGD's step, which torch.optim does not have as one optimizer.
    yield {**sgd, "name": "torch-sgd-decoupled", "seed": 14, "steps": 40, "draw": heavy_tailed, "groups": [
        sgd_group([ODD, SCALAR], weight_decay=decoupled(0.5)),
        sgd_group([SHORT], weight_decay=decoupled(0.5), momentum=0.0),
        sgd_group([SHORT], weight_decay=decoupled(0.1), maximize=True),
    ]}
    # The buffer of SGD forgets a large gradient only slowly. Formats of state with few bits then leave an error that is large next to
    # the last value of a single element, so SGD's scalar is not in the trace with missing gradients.
    for number, (kind, base, group, decay, shapes) in enumerate([
        ("adam", adam, adam_group, coupled, [ODD, SCALAR, SHORT]),
        ("adamw", adamw, adam_group, decoupled, [ODD, SCALAR, SHORT]),
        ("sgd", sgd, sgd_group, coupled, [ODD, SHORT]),
    ]):
        # AdamW without decay is AdamW with a decay of zero.
        plain = decoupled(0.0) if kind == "adamw" else {"kind": "none", "value": 0.0}
        # "late" has its first gradient in step 7, and "frozen" never has one.
        yield {**base, "name": f"torch-{kind}-schedule-missing", "seed": 21 + number, "steps": 60, "draw": heavy_tailed,
               "learning_rates": schedule(2e-3, 60), "missing": 0.4, "groups": [
                   group(shapes, weight_decay=decay(0.1)),
                   group([SHORT], weight_decay=plain, maximize=True),
                   group([MIDDLE], weight_decay=decay(0.1), first_step=7, title="late"),
                   group([SHORT], weight_decay=decay(0.1), first_step=None, title="frozen"),
               ]}
        yield {**base, "name": f"torch-{kind}-tiny-and-zero", "seed": 31 + number, "steps": 20, "draw": tiny_and_zero,
               "groups": [
                   group([ODD, SCALAR, SHORT], weight_decay=plain),
                   group([MIDDLE], weight_decay=decay(0.1), maximize=True),
                   group([MIDDLE], weight_decay=plain, draw=some_steps_zero, title="pausing"),
               ]}


    # One rule for each group.
    of_adam, of_adamw, of_sgd = [{"rule": of["rule"], "optimizer": of["optimizer"]} for of in (adam, adamw, sgd)]
    yield {**adam, "name": "torch-mixed-rules", "seed": 41, "steps": 25, "draw": heavy_tailed, "groups": [
        sgd_group([SHORT, SCALAR], **of_sgd, weight_decay=coupled(0.1)),
        adam_group([ODD, SHORT], **of_adamw, weight_decay=decoupled(0.1)),
        adam_group([MIDDLE], weight_decay=coupled(0.1), maximize=True),
        sgd_group([MIDDLE], **of_sgd, momentum=0.5),
        adam_group([SCALAR], **of_adam),
    ]}
    # Parameters and gradients in 16 bits. An engine has either the parameters or their master weights, in float32.
    bf16, f16 = {"dtype": torch.bfloat16}, {"dtype": torch.float16}
    yield {**adamw, "name": "torch-adamw-16-bit", "seed": 42, "steps": 25, "draw": heavy_tailed, "groups": [
        adam_group([LONG, SCALAR], weight_decay=decoupled(0.1), **bf16),
        adam_group([ODD, SHORT], weight_decay=decoupled(0.0), gradient_dtype=torch.float32, **f16),
        adam_group([SHORT], weight_decay=decoupled(0.1), gradient_dtype=torch.bfloat16),
        sgd_group([MIDDLE], **of_sgd, weight_decay=coupled(0.1), expected_dtype=torch.float32, **f16),
        adam_group([MIDDLE], weight_decay=decoupled(0.1), expected_dtype=torch.float32, **bf16),
    ]}


def make(case, folder):
    check_decay(case)
    rng = numpy.random.default_rng(case["seed"])
    initial, gradients, rules, dtypes = {}, {}, {}, {}

    def numbers(values, dtype):
        return torch.from_numpy(numpy.asarray(values, dtype=numpy.float32)).to(dtype)

    for number, of in enumerate(case["groups"]):
        title = of.pop("title", f"group{number}")
        dtype = of.pop("dtype", torch.float32)
        rule = (of.pop("first_step", 1), of.pop("draw", case["draw"]), of.pop("gradient_dtype", dtype))
        expected_dtype = of.pop("expected_dtype", dtype)
        shapes = of.pop("shapes")
        of["params"] = [f"{title}.{'x'.join(map(str, shape)) or 'scalar'}" for shape in shapes]
        for name, shape in zip(of["params"], shapes):
            initial[name] = numbers(rng.standard_normal(shape), dtype)
            rules[name], dtypes[name] = rule, expected_dtype
    for step in range(1, case["steps"] + 1):
        for name, (first_step, draw, dtype) in rules.items():
            if first_step is None or step < first_step:
                continue
            gradient = numbers(draw(rng, tuple(initial[name].shape)), dtype)
            if step == first_step or rng.random() >= case.get("missing", 0.0):
                gradients[step, name] = gradient
    tensors = run(case, initial, gradients, dtypes)
    tensors.update({f"param.{name}": values for name, values in initial.items()})
    tensors.update({f"grad.{step}.{name}": gradient for (step, name), gradient in gradients.items()})
    assert all(values.isfinite().all() for values in tensors.values())
    optimizers = dict.fromkeys(own(case, of, "optimizer") for of in case["groups"])
    for of in case["groups"]:
        of.pop("optimizer", None)
    description = {key: case[key] for key in ("rule", "steps", "groups", "learning_rates") if key in case}
    optimizer = " and ".join(f"torch.optim.{kind.__name__}" for kind in optimizers)
    release = torch.__version__.split("+")[0]
    description["made_by"] = f"{optimizer} of torch {release} in float64, gradients by numpy {numpy.__version__}"
    path = folder / f"{case['name']}.safetensors"
    tensors = {name: values.contiguous() for name, values in sorted(tensors.items())}
    save_file(tensors, path, metadata={"adamod.trace": json.dumps(description)})
    path.chmod(0o644)
    print(path)


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        make(case, folder)


if __name__ == "__main__":
    main()
