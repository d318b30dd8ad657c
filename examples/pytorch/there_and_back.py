#!/usr/bin/env python3
"""Trains in PyTorch, continues in the Rust crate on a GPU and then in PyTorch again, and compares with PyTorch alone. In float32, and with
a model in bfloat16 or float16 whose master weights the optimizer has. Then lets the crate read hyperparameters at the edges of its ranges.

    .ci/with-pytorch python examples/pytorch/there_and_back.py
    .ci/with-pytorch python examples/pytorch/there_and_back.py --fixture    # writes the files that the example's tests expect
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
    "AdamW, amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "SGD, dampening": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, dampening=0.5),
    "SGD, nesterov": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
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


def rounded(tensors, dtype):
    return {name: value.to(dtype).to(torch.float32) for name, value in tensors.items()}


def low_precision_of(run, dtype):
    """The model in 16 bits; nothing in float32."""
    return None if dtype == torch.float32 else {of: of.detach().to(dtype) for of in run.parameters.values()}


def hand_over(rule, dtype, folder):
    """Takes PyTorch's first steps and writes files for the crate: a checkpoint with values, and the gradients of the next steps."""
    run, all_gradients = Run(RULES[rule], initial()), gradients()
    run.steps(rounded(all_gradients, dtype), 0, THERE)
    low_precision = low_precision_of(run, dtype)
    path = folder / "checkpoint.safetensors"
    adamod_checkpoint.save(run.optimizer, run.names, path, low_precision=low_precision, values=True)
    tensors = {}
    for step in range(THERE + 1, BACK + 1):
        for name in SHAPES:
            tensors[f"grad.{step - THERE}.{name}"] = all_gradients[f"grad.{step}.{name}"].to(dtype)
    save_file(tensors, folder / "run.safetensors")


def compare(what, found, expected):
    worst = 0.0
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs()
        # Values are about 1. State has no such scale, so its largest element stands in.
        allowed = 1e-5 * value.double().abs() + 1e-6 * max(1.0 if "param" in name else 0.0, value.abs().max().item())
        worst = max(worst, (difference / allowed).max().item())
    print(f"{what:<36} {worst:.3f} of the tolerance")
    return worst <= 1.0


def crate(*arguments):
    """Runs the example in Rust and returns what it prints."""
    command = ["cargo", "run", "--quiet", "--example", "pytorch", "--", *arguments]
    return subprocess.run(command, check=True, cwd=HERE.parent.parent, stdout=subprocess.PIPE, text=True).stdout


def there_and_back(rule, dtype):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        hand_over(rule, dtype, folder)
        crate(folder, folder / "out")
        back = Run(RULES[rule], {name: torch.zeros(shape) for name, shape in SHAPES.items()})
        low_precision = low_precision_of(back, dtype)
        path = folder / "out" / "checkpoint.safetensors"
        adamod_checkpoint.load(path, back.optimizer, back.names, low_precision=low_precision, values=True)
    what = f"{rule}, {str(dtype).removeprefix('torch.')}"
    # The crate has rounded the master weights as PyTorch does.
    same = all(torch.equal(low, master.detach().to(dtype)) for master, low in (low_precision or {}).items())
    alone, all_gradients = Run(RULES[rule], initial()), rounded(gradients(), dtype)
    alone.steps(all_gradients, 0, BACK)
    there = compare(f"{what}, there", back.everything(), alone.everything())
    back.steps(all_gradients, BACK, END)
    alone.steps(all_gradients, BACK, END)
    return compare(f"{what}, and back", back.everything(), alone.everything()) and there and same


# Hyperparameters of PyTorch's optimizers that the crate refuses, each with what the converter says, and some at the edges that it takes.
HUGE, TINY, NAN = 3.5e38, 1e-39, float("nan")
OUT_OF_RANGE = [
    ("torch.optim.Adam", {"lr": -1e-3}, "lr of group 1 is -0.001, expected a finite number, at least 0"),
    ("torch.optim.Adam", {"lr": NAN}, "lr of group 1 is nan"),
    ("torch.optim.SGD", {"lr": HUGE}, r"lr of group 1 is 3.5e\+38, expected a finite number"),
    ("torch.optim.Adam", {"eps": 0.0}, "eps of group 1 is 0.0, expected a number above 0 and normal in float32"),
    ("torch.optim.Adam", {"eps": -1e-8}, "eps of group 1 is -1e-08"),
    ("torch.optim.AdamW", {"eps": TINY}, "eps of group 1 is 1e-39"),
    ("adamod.AdaMod", {"eps": 0.0}, "eps of group 1 is 0.0"),
    ("torch.optim.Adam", {"betas": (1.0, 0.999)}, r"betas\[0\] of group 1 is 1.0, expected a number in \[0, 1\)"),
    ("torch.optim.Adam", {"betas": (0.9, -0.5)}, r"betas\[1\] of group 1 is -0.5"),
    ("adamod.AdaMod", {"beta3": 1.0}, r"beta3 of group 1 is 1.0, expected a number in \[0, 1\)"),
    ("torch.optim.SGD", {"momentum": 1.0}, r"momentum of group 1 is 1.0, expected a number in \[0, 1\)"),
    ("torch.optim.SGD", {"momentum": 1.5}, "momentum of group 1 is 1.5"),
    ("torch.optim.SGD", {"dampening": 1.5}, r"dampening of group 1 is 1.5, expected a number in \[0, 1\]"),
    ("torch.optim.SGD", {"nesterov": True, "momentum": 0.0}, r"nesterov of group 1 is 1.0, expected 0 \(False\)"),
    ("torch.optim.SGD", {"nesterov": True, "dampening": 0.5}, "nesterov of group 1 is 1.0"),
    ("torch.optim.SGD", {"weight_decay": -0.1}, "weight_decay of group 1 is -0.1"),
    ("torch.optim.SGD", {"weight_decay": NAN}, "weight_decay of group 1 is nan"),
    ("torch.optim.SGD", {"lr": 1e30, "weight_decay": 1e30}, r"lr \* weight_decay of group 1"),
    ("torch.optim.Adam", {"lr": 1e38, "eps": 1e38}, r"lr / \(1 - betas\[0\]\) of group 1 is 1.0.*e\+39"),
    ("torch.optim.Adam", {"lr": 1e3, "eps": 1e-37}, r"lr / \(1 - betas\[0\]\) / eps of group 1"),
]
IN_RANGE = [
    ("torch.optim.Adam", {"lr": 0.0, "eps": 1.2e-38, "betas": (0.0, 0.0)}),
    ("torch.optim.Adam", {"lr": 1e37, "eps": 1e20, "betas": (0.9, 1 - 1e-16)}),
    ("torch.optim.SGD", {"dampening": 1.0, "momentum": 0.5}),
    ("torch.optim.SGD", {"lr": 3.4028235e38, "momentum": 1 - 1e-16, "weight_decay": 0.0}),
    ("adamod.AdaMod", {"beta3": 0.0, "weight_decay": 3e38, "lr": 1e-38}),
]


def ranges_agree():
    """The crate refuses and takes the same hyperparameters as the converter."""
    check_ranges, adamod_checkpoint.check_ranges = adamod_checkpoint.check_ranges, lambda *_: None
    cases = [(*case, True) for case in OUT_OF_RANGE] + [(*case, None, False) for case in IN_RANGE]
    with tempfile.TemporaryDirectory() as name:
        paths = [pathlib.Path(name) / str(index) for index in range(len(cases))]
        for (rule, changes, _, _), path in zip(cases, paths):
            run = Run(RULES[rule], initial())
            run.optimizer.param_groups[1].update(changes)
            adamod_checkpoint.save(run.optimizer, run.names, path)
        verdicts = crate("--check", *paths).splitlines()
    adamod_checkpoint.check_ranges = check_ranges
    passed = len(verdicts) == len(cases)
    for (rule, changes, _, is_refused), verdict in zip(cases, verdicts):
        refusal = "the hyperparameters of group 1 of the checkpoint: "
        if not (refusal in verdict if is_refused else verdict == "ok"):
            print(f"{rule} with {changes}: the crate says {verdict!r}")
            passed = False
    print(f"{len(cases)} hyperparameters at the edges: the crate {'agrees' if passed else 'DISAGREES'}")
    return passed


def write_fixture():
    """Writes what follows from the fixture's checkpoint, which is of version 1 and stays: its version 3, and PyTorch's next steps."""
    run = load_file(FIXTURE / "run.safetensors")
    back = Run(RULES["adamod.AdaMod"], {name: run[f"param.{name}"] for name in SHAPES})
    adamod_checkpoint.load(FIXTURE / "checkpoint.safetensors", back.optimizer, back.names)
    adamod_checkpoint.save(back.optimizer, back.names, FIXTURE / "version-3.safetensors")
    back.steps(run, 0, BACK - THERE)
    found = {name: value.contiguous() for name, value in back.everything().items()}
    save_file(found, FIXTURE / "expected.safetensors")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--fixture", action="store_true", help="write the files that the example's tests expect")
    if arguments.parse_args().fixture:
        write_fixture()
        return
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    passed = [there_and_back(rule, dtype) for rule in RULES for dtype in dtypes] + [ranges_agree()]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
