#!/usr/bin/env python3
"""Trains in PyTorch, continues in the Rust crate on a GPU and then in PyTorch again, and compares with PyTorch alone.

    python3 -m venv venv && venv/bin/pip install -r examples/pytorch/requirements.txt
    venv/bin/python examples/pytorch/there_and_back.py
    venv/bin/python examples/pytorch/there_and_back.py --fixture    # writes the files that the example's tests expect
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
from adamod import AdaMod
from safetensors.torch import load_file, save_file

import adamod_checkpoint

HERE = pathlib.Path(__file__).resolve().parent
FIXTURE = HERE / "fixture"
SHAPES = {"embedding": (17, 8), "layer.0.weight": (8, 13), "layer.0.bias": (13,), "head.weight": (3, 5, 7)}
THERE, BACK, END = 10, 20, 30


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

RULES = {
    "adamod.AdaMod": lambda groups: AUTHORS(groups, lr=1e-2, betas=(0.9, 0.98), beta3=0.99, eps=1e-9),
    "torch.optim.Adam": lambda groups: torch.optim.Adam(groups, lr=1e-2),
    "torch.optim.AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "torch.optim.SGD": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


class Run:
    """Parameters and their optimizer."""

    def __init__(self, make_optimizer, values):
        self.parameters = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
        decayed = [self.parameters[name] for name in ["embedding", "layer.0.weight"]]
        others = [self.parameters[name] for name in ["layer.0.bias", "head.weight"]]
        self.optimizer = make_optimizer(
            [{"params": decayed, "weight_decay": 0.05}, {"params": others, "lr": 3e-3, "weight_decay": 0.0}]
        )
        self.names = {parameter: name for name, parameter in self.parameters.items()}

    def steps(self, gradients, first, last):
        for step in range(first + 1, last + 1):
            for name, parameter in self.parameters.items():
                gradient = gradients.get(f"grad.{step}.{name}")
                parameter.grad = None if gradient is None else gradient.clone()
            self.optimizer.step()

    def values(self):
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def everything(self):
        found = {f"param.{name}": value for name, value in self.values().items()}
        for parameter, state in self.optimizer.state.items():
            for kind, value in state.items():
                if kind != "step" and value is not None:
                    found[f"{kind}.{self.names[parameter]}"] = value.detach().clone()
        return found


def initial():
    rng = numpy.random.default_rng(7)
    return {name: torch.from_numpy(rng.uniform(-1, 1, shape).astype(numpy.float32)) for name, shape in SHAPES.items()}


def gradients():
    """Heavy-tailed gradients. The bias has none at first, so its step count differs."""
    rng = numpy.random.default_rng(11)
    found = {}
    for step in range(1, END + 1):
        for name, shape in SHAPES.items():
            gradient = torch.from_numpy(rng.standard_t(2.0, shape).astype(numpy.float32))
            if not (name == "layer.0.bias" and step < 5):
                found[f"grad.{step}.{name}"] = gradient
    return found


def hand_over(rule, folder):
    """Takes PyTorch's first steps and writes files for the crate: a checkpoint, the values, and the gradients of the next steps."""
    run, all_gradients = Run(RULES[rule], initial()), gradients()
    run.steps(all_gradients, 0, THERE)
    adamod_checkpoint.save(run.optimizer, run.names, folder / "checkpoint.safetensors")
    tensors = {f"param.{name}": value for name, value in run.values().items()}
    for step in range(THERE + 1, BACK + 1):
        for name in SHAPES:
            tensors[f"grad.{step - THERE}.{name}"] = all_gradients[f"grad.{step}.{name}"]
    save_file(tensors, folder / "run.safetensors")
    return run


def compare(what, found, expected):
    worst = 0.0
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs()
        # Values are about 1. State has no such scale, so its largest element stands in.
        allowed = 1e-5 * value.double().abs() + 1e-6 * max(1.0 if "param" in name else 0.0, value.abs().max().item())
        worst = max(worst, (difference / allowed).max().item())
    print(f"{what:<20} {worst:.3f} of the tolerance")
    return worst <= 1.0


def there_and_back(rule):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        hand_over(rule, folder)
        command = ["cargo", "run", "--quiet", "--example", "pytorch", "--", folder, folder / "out"]
        subprocess.run(command, check=True, cwd=HERE.parent.parent)
        values = load_file(folder / "out" / "values.safetensors")
        shaped = {name: values[f"param.{name}"].reshape(shape) for name, shape in SHAPES.items()}
        back = Run(RULES[rule], shaped)
        adamod_checkpoint.load(folder / "out" / "checkpoint.safetensors", back.optimizer, back.names)
    alone = Run(RULES[rule], initial())
    alone.steps(gradients(), 0, BACK)
    there = compare(f"{rule}, there", back.everything(), alone.everything())
    back.steps(gradients(), BACK, END)
    alone.steps(gradients(), BACK, END)
    return compare(f"{rule}, and back", back.everything(), alone.everything()) and there


def write_fixture():
    """Writes what follows from the fixture's checkpoint, which is of version 1 and stays: its version 2, and PyTorch's next steps."""
    run = load_file(FIXTURE / "run.safetensors")
    back = Run(RULES["adamod.AdaMod"], {name: run[f"param.{name}"] for name in SHAPES})
    adamod_checkpoint.load(FIXTURE / "checkpoint.safetensors", back.optimizer, back.names)
    adamod_checkpoint.save(back.optimizer, back.names, FIXTURE / "version-2.safetensors")
    back.steps(run, 0, BACK - THERE)
    found = {name: value.contiguous() for name, value in back.everything().items()}
    save_file(found, FIXTURE / "expected.safetensors")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--fixture", action="store_true", help="write the files that the example's tests expect")
    if arguments.parse_args().fixture:
        write_fixture()
        return
    passed = [there_and_back(rule) for rule in RULES]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
