#!/usr/bin/env python3
"""Makes traces for `adamod replay` with public packages (PyPI: torch, adamod, safetensors, numpy).

Formula "authors" is run by the AdaMod authors' own optimizer, `adamod.AdaMod`, in float32. Formula "paper" is Algorithm 2 of the
paper, written plainly in numpy's float64.

    python3 -m venv venv && venv/bin/pip install -r examples/pytorch/requirements.txt
    venv/bin/python tests/traces/make_traces.py          # the small traces that are committed
    venv/bin/python tests/traces/make_traces.py --all    # and those of 3,000 steps, into target/traces
"""

import argparse
import json
import pathlib

import numpy
import torch
from adamod import AdaMod
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent

SHAPES = {"embedding": (17, 8), "layer.0.weight": (8, 13), "layer.0.bias": (13,), "scale": (), "head.weight": (3, 5, 7)}


def modernize(optimizer_class):
    """The authors' code calls torch's in-place operations with the scalar first, which torch has deprecated."""

    add, addcmul = torch.Tensor.add_, torch.Tensor.addcmul_

    def add_(self, first, second=None, **rest):
        return add(self, first, **rest) if second is None else add(self, second, alpha=first)

    def addcmul_(self, first, second, third=None, **rest):
        return addcmul(self, first, second, **rest) if third is None else addcmul(self, second, third, value=first)

    torch.Tensor.add_, torch.Tensor.addcmul_ = add_, addcmul_
    return optimizer_class


AUTHORS = modernize(AdaMod)


def heavy_tailed(rng, shape):
    """Student's t with 2 degrees of freedom: rare gradients are a hundred times the usual ones."""
    return rng.standard_t(2.0, shape).astype(numpy.float32)


def tiny_and_zero(rng, shape):
    """A third of the elements zero, a third around 1e-12, a third usual."""
    gradient = rng.standard_normal(shape).astype(numpy.float32)
    kind = numpy.arange(gradient.size).reshape(shape) % 3
    return numpy.where(kind == 0, 0.0, numpy.where(kind == 1, gradient * 1e-12, gradient)).astype(numpy.float32)


def group(params, **changes):
    return {
        "learning_rate": 1e-3,
        "betas": [0.9, 0.999, 0.999],
        "epsilon": 1e-8,
        "weight_decay": {"kind": "none", "value": 0.0},
        "params": params,
        **changes,
    }


def run_authors(case, initial, gradients):
    parameters = {name: torch.nn.Parameter(torch.from_numpy(values.copy())) for name, values in initial.items()}
    optimizer = AUTHORS(
        [
            {
                "params": [parameters[name] for name in of["params"]],
                "lr": of["learning_rate"],
                "betas": tuple(of["betas"][:2]),
                "beta3": of["betas"][2],
                "eps": of["epsilon"],
                # Their decay is decoupled: taken from the old value, before the step.
                "weight_decay": of["weight_decay"]["value"],
            }
            for of in case["groups"]
        ]
    )
    for step in range(1, case["steps"] + 1):
        if "learning_rates" in case:
            for of in optimizer.param_groups:
                of["lr"] = case["learning_rates"][step - 1]
        for name, parameter in parameters.items():
            gradient = gradients.get((step, name))
            parameter.grad = None if gradient is None else torch.from_numpy(gradient.copy())
        optimizer.step()
    expected = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        expected[f"expected.param.{name}"] = parameter.detach().numpy()
        for kind in ("exp_avg", "exp_avg_sq", "exp_avg_lr"):
            expected[f"expected.{kind}.{name}"] = state[kind].numpy()
    return expected


def run_paper(case, initial, gradients):
    expected = {}
    for of in case["groups"]:
        beta1, beta2, beta3 = of["betas"]
        decay = of["weight_decay"]
        for name in of["params"]:
            theta = initial[name].astype(numpy.float64)
            m, v, s = (numpy.zeros_like(theta) for _ in range(3))
            t = 0
            for step in range(1, case["steps"] + 1):
                if (step, name) not in gradients:
                    continue
                t += 1
                alpha = case["learning_rates"][step - 1] if "learning_rates" in case else of["learning_rate"]
                g = gradients[step, name].astype(numpy.float64)
                if decay["kind"] == "coupled":
                    g = g + decay["value"] * theta
                m = beta1 * m + (1 - beta1) * g
                v = beta2 * v + (1 - beta2) * g * g
                m_hat = m / (1 - beta1**t)
                v_hat = v / (1 - beta2**t)
                eta = alpha / (numpy.sqrt(v_hat) + of["epsilon"])
                s = beta3 * s + (1 - beta3) * eta
                if decay["kind"] == "decoupled":
                    theta = theta - alpha * decay["value"] * theta
                theta = theta - numpy.minimum(eta, s) * m_hat
            for kind, values in {"param": theta, "exp_avg": m, "exp_avg_sq": v, "exp_avg_lr": s}.items():
                expected[f"expected.{kind}.{name}"] = values.astype(numpy.float32)
    return expected


def cases():
    names = list(SHAPES)
    warmup = [1e-3 * min(step / 10, 1.0) for step in range(1, 41)]
    groups = [
        group(names[:2], weight_decay={"kind": "decoupled", "value": 1e-2}),
        group(names[2:4], learning_rate=5e-4, betas=[0.9, 0.98, 0.9999], epsilon=1e-9),
        group(names[4:], betas=[0.5, 0.9, 0.0]),
    ]
    for formula in ("authors", "paper"):
        common = {"formula": formula, "seed": 1}
        yield {**common, "name": f"{formula}-heavy-tailed", "steps": 40, "draw": heavy_tailed, "groups": groups}
        yield {**common, "name": f"{formula}-schedule-missing", "steps": 40, "draw": heavy_tailed, "groups": groups,
               "learning_rates": warmup, "missing": 0.4}
        yield {**common, "name": f"{formula}-tiny-and-zero", "steps": 25, "draw": tiny_and_zero,
               "groups": [group(names)]}
        yield {**common, "name": f"{formula}-3000", "steps": 3000, "draw": heavy_tailed, "groups": groups, "missing": 0.1}
    coupled = [group(names[:3], weight_decay={"kind": "coupled", "value": 0.1}), group(names[3:])]
    yield {"formula": "paper", "seed": 2, "name": "paper-coupled", "steps": 25, "draw": heavy_tailed, "groups": coupled}


def make(case, folder):
    rng = numpy.random.default_rng(case["seed"])
    initial = {name: rng.standard_normal(shape).astype(numpy.float32) for name, shape in SHAPES.items()}
    gradients = {}
    for step in range(1, case["steps"] + 1):
        for name, shape in SHAPES.items():
            gradient = numpy.asarray(case["draw"](rng, shape), dtype=numpy.float32)
            # Every parameter has a gradient in the first step, so that every one has state.
            if step == 1 or rng.random() >= case.get("missing", 0.0):
                gradients[step, name] = gradient
    run = run_authors if case["formula"] == "authors" else run_paper
    tensors = run(case, initial, gradients)
    tensors.update({f"param.{name}": values for name, values in initial.items()})
    tensors.update({f"grad.{step}.{name}": gradient for (step, name), gradient in gradients.items()})
    description = {key: case[key] for key in ("formula", "steps", "groups", "learning_rates") if key in case}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case['name']}.safetensors"
    tensors = {name: numpy.ascontiguousarray(values).reshape(values.shape) for name, values in tensors.items()}
    save_file(tensors, path, metadata={"adamod.trace": json.dumps(description)})
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also the traces of 3,000 steps, into target/traces")
    arguments = parser.parse_args()
    for case in cases():
        if case["steps"] <= 100:
            make(case, HERE)
        elif arguments.all:
            make(case, HERE.parent.parent / "target" / "traces")


if __name__ == "__main__":
    main()
