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
# The first step in which a parameter has a gradient, if it is not the first of all.
FIRST_STEPS = {"layer.0.bias": 5}
# The crate takes this bias before its first step.
FIRST_STEPS_THERE = {"embedding": 3, "layer.0.bias": 15}


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
    "SGD without momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.0),
    "torch.optim.NAdam": lambda groups: torch.optim.NAdam(groups, lr=1e-2),
    "NAdam, decoupled": lambda groups: torch.optim.NAdam(groups, lr=1e-2, momentum_decay=0.1, decoupled_weight_decay=True),
    "torch.optim.RAdam": lambda groups: torch.optim.RAdam(groups, lr=1e-2),
    "RAdam, decoupled": lambda groups: torch.optim.RAdam(groups, lr=1e-2, betas=(0.8, 0.95), decoupled_weight_decay=True),
    "torch.optim.RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-2),
    "RMSprop, momentum": lambda groups: torch.optim.RMSprop(groups, lr=1e-2, alpha=0.9, momentum=0.9),
    "RMSprop, centered": lambda groups: torch.optim.RMSprop(groups, lr=1e-2, centered=True),
    "RMSprop, centered, momentum": lambda groups: torch.optim.RMSprop(groups, lr=1e-2, momentum=0.9, centered=True),
    "torch.optim.Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
    "Adagrad, initial": lambda groups: torch.optim.Adagrad(groups, lr=1e-2, lr_decay=0.1, initial_accumulator_value=0.1),
    "torch.optim.Adadelta": lambda groups: torch.optim.Adadelta(groups, rho=0.95),
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


def gradients(first_steps=FIRST_STEPS):
    """Heavy-tailed gradients. Some parameters have none at first, so their step counts differ."""
    rng = numpy.random.default_rng(11)
    found = {}
    for step in range(1, END + 1):
        for name, shape in SHAPES.items():
            gradient = torch.from_numpy(rng.standard_t(2.0, shape).astype(numpy.float32))
            if step >= first_steps.get(name, 1):
                found[f"grad.{step}.{name}"] = gradient
    return found


def rounded(tensors, dtype):
    return {name: value.to(dtype).to(torch.float32) for name, value in tensors.items()}


def low_precision_of(run, dtype):
    """The model in 16 bits; nothing in float32."""
    return None if dtype == torch.float32 else {of: of.detach().to(dtype) for of in run.parameters.values()}


def hand_over(rule, dtype, folder):
    """Takes PyTorch's first steps and writes files for the crate: a checkpoint with values, and the gradients of the next steps."""
    run, all_gradients = Run(RULES[rule], initial()), gradients(FIRST_STEPS_THERE)
    run.steps(rounded(all_gradients, dtype), 0, THERE)
    low_precision = low_precision_of(run, dtype)
    path = folder / "checkpoint.safetensors"
    adamod_checkpoint.save(run.optimizer, run.names, path, low_precision=low_precision, values=True)
    tensors = {}
    for step in range(THERE + 1, BACK + 1):
        for name in SHAPES:
            gradient = all_gradients.get(f"grad.{step}.{name}")
            if gradient is not None:
                tensors[f"grad.{step - THERE}.{name}"] = gradient.to(dtype)
    save_file(tensors, folder / "run.safetensors")


def compare(what, found, expected):
    worst = 0.0
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs()
        # Values are about 1. State has no such scale, so its largest element stands in. On lavapipe the worst difference of all rules is
        # 0.08 of what is allowed.
        allowed = 1e-5 * value.double().abs() + 1e-6 * max(1.0 if "param" in name else 0.0, value.abs().max().item())
        worst = max(worst, (difference / allowed).max().item())
    print(f"{what:<48} {worst:.3f} of the tolerance")
    return worst <= 1.0


def crate(*arguments):
    """Runs the example in Rust and returns what it prints."""
    command = ["cargo", "run", "--quiet", "--example", "pytorch", "--", *arguments]
    return subprocess.run(command, check=True, cwd=HERE.parent.parent, stdout=subprocess.PIPE, text=True).stdout


def take_back(rule, dtype, out):
    """Continues in PyTorch from what the crate wrote, and compares with PyTorch alone."""
    back = Run(RULES[rule], {name: torch.zeros(shape) for name, shape in SHAPES.items()})
    low_precision = low_precision_of(back, dtype)
    path = out / "checkpoint.safetensors"
    adamod_checkpoint.load(path, back.optimizer, back.names, low_precision=low_precision, values=True)
    what = f"{rule}, {str(dtype).removeprefix('torch.')}"
    # The crate has rounded the master weights as PyTorch does.
    same = all(torch.equal(low, master.detach().to(dtype)) for master, low in (low_precision or {}).items())
    alone, all_gradients = Run(RULES[rule], initial()), rounded(gradients(FIRST_STEPS_THERE), dtype)
    alone.steps(all_gradients, 0, BACK)
    there = compare(f"{what}, there", back.everything(), alone.everything())
    back.steps(all_gradients, BACK, END)
    alone.steps(all_gradients, BACK, END)
    return compare(f"{what}, and back", back.everything(), alone.everything()) and there and same


def there_and_back():
    """Every rule in every data type. One run of the crate takes all of them."""
    cases = [(rule, dtype) for rule in RULES for dtype in [torch.float32, torch.bfloat16, torch.float16]]
    with tempfile.TemporaryDirectory() as name:
        folders = [pathlib.Path(name) / str(index) for index in range(len(cases))]
        for case, folder in zip(cases, folders):
            folder.mkdir()
            hand_over(*case, folder)
        crate(*[path for folder in folders for path in [folder, folder / "out"]])
        return all([take_back(*case, folder / "out") for case, folder in zip(cases, folders)])


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
    ("adamod.AdaMod", {"betas": (1.0, 0.999)}, r"betas\[0\] of group 1 is 1.0"),
    ("adamod.AdaMod", {"betas": (0.9, 1.0)}, r"betas\[1\] of group 1 is 1.0"),
    ("adamod.AdaMod", {"lr": 1e38, "eps": 1e38}, r"lr / \(1 - betas\[0\]\) of group 1 is 1.0.*e\+39"),
    ("adamod.AdaMod", {"lr": 1e3, "eps": 1e-37}, r"lr / \(1 - betas\[0\]\) / eps of group 1"),
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
    ("torch.optim.NAdam", {"betas": (1.0, 0.999)}, r"betas\[0\] of group 1 is 1.0"),
    ("torch.optim.NAdam", {"eps": 0.0}, "eps of group 1 is 0.0"),
    ("torch.optim.NAdam", {"momentum_decay": 1.1e6}, "momentum_decay of group 1 is 1100000.0, expected a number from 0 to 1e6"),
    ("torch.optim.NAdam", {"momentum_decay": -1e-3}, "momentum_decay of group 1 is -0.001"),
    ("torch.optim.NAdam", {"betas": (0.9, 1.0)}, r"betas\[1\] of group 1 is 1.0"),
    ("torch.optim.NAdam", {"lr": 1e38, "eps": 1e38}, r"lr / \(1 - betas\[0\]\) of group 1 is 1.0.*e\+39"),
    ("torch.optim.NAdam", {"lr": 1e3, "eps": 1e-37}, r"lr / \(1 - betas\[0\]\) / eps of group 1"),
    ("torch.optim.RAdam", {"betas": (-0.1, 0.999)}, r"betas\[0\] of group 1 is -0.1"),
    ("torch.optim.RAdam", {"betas": (0.9, 1.0)}, r"betas\[1\] of group 1 is 1.0"),
    ("torch.optim.RAdam", {"eps": TINY}, "eps of group 1 is 1e-39"),
    ("torch.optim.RAdam", {"lr": 1e38, "eps": 1e38}, r"lr / \(1 - betas\[0\]\) of group 1 is 1.0.*e\+39"),
    ("torch.optim.RAdam", {"lr": 1e3, "eps": 1e-37}, r"lr / \(1 - betas\[0\]\) / eps of group 1"),
    ("torch.optim.RMSprop", {"alpha": 1.0}, r"alpha of group 1 is 1.0, expected a number in \[0, 1\)"),
    ("torch.optim.RMSprop", {"momentum": 1.0}, "momentum of group 1 is 1.0"),
    ("torch.optim.RMSprop", {"eps": 0.0}, "eps of group 1 is 0.0"),
    ("torch.optim.RMSprop", {"lr": 1e-30, "eps": 1e-19, "momentum": 0.9}, r"1 / \(1 - momentum\) / eps of group 1 is"),
    ("torch.optim.RMSprop", {"lr": 1e3, "eps": 1e-17}, r"lr / \(1 - momentum\) / eps of group 1 is"),
    ("torch.optim.Adagrad", {"lr_decay": -0.1}, r"lr_decay of group 1 is -0.1, expected a number from 0 to 8.5e37 \(2\^126\)"),
    ("torch.optim.Adagrad", {"lr_decay": 8.6e37}, r"lr_decay of group 1 is 8.6e\+37"),
    ("torch.optim.Adagrad", {"initial_accumulator_value": -0.1}, "initial_accumulator_value of group 1 is -0.1"),
    ("torch.optim.Adagrad", {"initial_accumulator_value": 8.6e37}, r"initial_accumulator_value of group 1 is 8.6e\+37"),
    ("torch.optim.Adagrad", {"eps": 0.0}, "eps of group 1 is 0.0"),
    ("torch.optim.Adagrad", {"lr": 1e3, "eps": 1e-17}, "lr / eps of group 1 is"),
    ("torch.optim.Adadelta", {"rho": 1.0}, r"rho of group 1 is 1.0, expected a number in \[0, 1\)"),
    ("torch.optim.Adadelta", {"eps": 0.0}, "eps of group 1 is 0.0"),
    ("torch.optim.Adadelta", {"lr": 1.9e19}, r"lr of group 1 is 1.9e\+19, expected at most 1.8e19 \(2\^64\)"),
]
IN_RANGE = [
    ("torch.optim.Adam", {"lr": 0.0, "eps": 1.2e-38, "betas": (0.0, 0.0)}),
    ("torch.optim.Adam", {"lr": 1e37, "eps": 1e20, "betas": (0.9, 1 - 1e-16)}),
    ("torch.optim.SGD", {"dampening": 1.0, "momentum": 0.5}),
    ("torch.optim.SGD", {"lr": 3.4028235e38, "momentum": 1 - 1e-16, "weight_decay": 0.0}),
    ("adamod.AdaMod", {"lr": 0.0, "eps": 1.2e-38, "betas": (0.0, 1 - 1e-16)}),
    ("adamod.AdaMod", {"beta3": 0.0, "weight_decay": 3e38, "lr": 1e-38}),
    ("torch.optim.NAdam", {"betas": (0.0, 0.0), "momentum_decay": 1e6, "eps": 1.2e-38, "lr": 0.0}),
    ("torch.optim.NAdam", {"momentum_decay": 0.0, "lr": 1e37, "eps": 1e20}),
    ("torch.optim.RAdam", {"betas": (0.0, 1 - 1e-16), "eps": 1.2e-38, "lr": 0.0}),
    ("torch.optim.RMSprop", {"alpha": 0.0, "momentum": 0.0, "eps": 1.2e-38, "lr": 0.0}),
    ("torch.optim.RMSprop", {"alpha": 1 - 1e-16, "momentum": 0.5, "eps": 1.1e-19, "lr": 1.0}),
    ("torch.optim.Adagrad", {"lr_decay": 0.0, "initial_accumulator_value": 2.0**126, "eps": 1.2e-38, "lr": 0.0}),
    ("torch.optim.Adagrad", {"lr_decay": 2.0**126, "initial_accumulator_value": 0.0, "eps": 1.0, "lr": 2.0**64}),
    ("torch.optim.Adadelta", {"rho": 0.0, "eps": 1.2e-38, "lr": 2.0**64}),
    ("torch.optim.Adadelta", {"rho": 1 - 1e-16, "lr": 0.0}),
]


def ranges_agree():
    """The crate refuses and takes the same hyperparameters as the converter."""
    check_ranges, adamod_checkpoint.check_ranges = adamod_checkpoint.check_ranges, lambda *_: None
    cases = [(*case, True) for case in OUT_OF_RANGE] + [(*case, None, False) for case in IN_RANGE]
    with tempfile.TemporaryDirectory() as name:
        paths = [pathlib.Path(name) / str(index) for index in range(len(cases))]
        for (rule, changes, _, _), path in zip(cases, paths):
            run = Run(RULES[rule], initial())
            # State of the other hyperparameters.
            run.optimizer.state.clear()
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
    passed = [there_and_back(), ranges_agree()]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
