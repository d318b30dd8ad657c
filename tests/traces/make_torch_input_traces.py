#!/usr/bin/env python3
"""Writes the traces `torch-inputs-*` for `adamod replay`: PyTorch's own lists of optimizer inputs, with which its test suite runs every
optimizer, and `torch-error-inputs.json`: its lists of inputs that an optimizer has to refuse.

The lists are `torch.testing._internal.common_optimizers.optim_db`. Each input is a group of its optimizer's trace, with the parameters of
PyTorch's tests: the weight and the bias of a linear layer from 5 to 10. Arguments that choose an implementation (`IMPLEMENTATION`) change
nothing here, and a learning rate or betas given as tensors are numbers. torch.optim computes in float64 from float32 parameters and
gradients, and the results are rounded to float32 once.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 numpy==2.4.6 safetensors==0.8.0 lion-pytorch==0.2.3 expecttest==0.3.0
    venv/bin/pip install --no-deps adabound==0.0.5
    venv/bin/python tests/traces/make_torch_input_traces.py [FOLDER]

The random numbers are seeded, so the same versions write the same bytes.
"""

import inspect
import json
import pathlib
import sys

import torch
from torch.testing._internal.common_optimizers import optim_db

from make_family_traces import make

HERE = pathlib.Path(__file__).resolve().parent

IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")

# Rule, and the names that hyperparameters have besides `NAMES`.
RULES = {
    "Adadelta": ("adadelta", ["rho"]),
    "Adagrad": ("adagrad", ["lr_decay", "initial_accumulator_value"]),
    "Adam": ("adam", ["amsgrad"]),
    "AdamW": ("adam", ["amsgrad"]),
    "NAdam": ("nadam", ["momentum_decay"]),
    "RAdam": ("radam", []),
    "RMSprop": ("rmsprop", ["alpha", "centered", "momentum"]),
    "SGD": ("sgd", ["momentum", "dampening", "nesterov"]),
}
NAMES = {"lr": "learning_rate", "betas": "betas", "eps": "epsilon", "maximize": "maximize"}


def number(value):
    """Numbers of tensors with one element."""
    if isinstance(value, torch.Tensor):
        return value.item()
    return [number(entry) for entry in value] if isinstance(value, tuple) else value


def group_of(optimizer_class, kwargs):
    """The group of a trace with all arguments of an optimizer, or None if it has one that no group has."""
    _, own = RULES[optimizer_class.__name__]
    defaults = {name: of.default for name, of in inspect.signature(optimizer_class).parameters.items() if name != "params"}
    arguments = {name: number(value) for name, value in {**defaults, **kwargs}.items() if name not in IMPLEMENTATION}
    decoupled = arguments.pop("decoupled_weight_decay", False) or optimizer_class is torch.optim.AdamW
    decay = arguments.pop("weight_decay")
    group = {"weight_decay": {"kind": ("decoupled" if decoupled else "coupled") if decay else "none", "value": decay}}
    for name, value in arguments.items():
        group[NAMES.get(name, name)] = float(value) if isinstance(value, bool) and name in own else value
    unknown = set(group) - set(own) - set(NAMES.values()) - {"weight_decay"}
    return None if unknown else group


def inputs_of(info):
    """Every input with another meaning than those before it, and its group. Those for CUDA are all of them."""
    seen = []
    for entry in info.optim_inputs_func(device="cuda"):
        kwargs = {name: value for name, value in entry.kwargs.items() if name not in IMPLEMENTATION}
        group = group_of(info.optim_cls, kwargs)
        assert group is not None, f"{info.optim_cls.__name__}: {entry.desc}"
        if group not in seen:
            seen.append(group)
            yield entry.desc, kwargs, group


def write_inputs(number_of_optimizer, info, folder):
    optimizer_class = info.optim_cls
    all_kwargs, groups = [], []
    for _, kwargs, group in inputs_of(info):
        all_kwargs.append({name: number(value) for name, value in kwargs.items()})
        groups.append({**group, "shapes": [(10, 5), (10,)]})
    remaining = iter(all_kwargs)

    def make_optimizer(_rule, _of, parameters):
        return optimizer_class(parameters, foreach=False, **next(remaining))

    case = {
        "name": f"torch-inputs-{optimizer_class.__name__.lower()}",
        "rule": RULES[optimizer_class.__name__][0],
        "seed": 301 + number_of_optimizer,
        "steps": 20,
        "groups": groups,
    }
    make(case, folder, make_optimizer, lambda _rule, _of, optimizer, _learning_rate: optimizer.step())


def error_inputs():
    """Inputs that have to be refused: those with numbers, and the descriptions of the others."""
    refused, others = [], set()
    for info in optim_db:
        name = info.optim_cls.__name__
        if name not in RULES:
            continue
        for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            of = error.optimizer_error_input
            values = of.kwargs.values()
            has_tensors = any(isinstance(entry, torch.Tensor) for value in values for entry in (value if isinstance(value, tuple) else [value]))
            if not of.kwargs or has_tensors:
                others.add(of.desc)
                continue
            group = group_of(info.optim_cls, of.kwargs)
            changed = [name for name in of.kwargs if name != "lr"]
            assert len(changed) == 1, of.desc
            refused.append({"optimizer": name, "rule": RULES[name][0], "description": of.desc, "argument": changed[0], "group": group})
    return {"refused": refused, "others": sorted(others), "optimizers": sorted({info.optim_cls.__name__ for info in optim_db} - set(RULES))}


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    for number_of_optimizer, info in enumerate(info for info in optim_db if info.optim_cls.__name__ in RULES):
        write_inputs(number_of_optimizer, info, folder)
    path = folder / "torch-error-inputs.json"
    path.write_text(json.dumps(error_inputs(), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
