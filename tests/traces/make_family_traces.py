#!/usr/bin/env python3
"""Writes the traces `family-*` for `adamod replay`: the rules with their options, and the options that all rules have.

torch.optim computes Adam, AdamW, SGD, NAdam, RAdam, RMSprop, Adagrad and Adadelta. The authors' packages compute AdaMod and AdaBound (PyPI
`adamod`, `adabound`), and the most used one Lion (PyPI `lion-pytorch`). NosAdam has no package: `NosAdam` below is the loop of the authors' repository, written
down from its formulas. All of them compute in float64 from float32 parameters and gradients, and the results are rounded to float32 once.

No package has every kind of weight decay, or cautious updates. `step_of_group` puts them around the packages' own steps, from the papers'
formulas: it takes what an optimizer without decoupled decay subtracts, and masks and decays outside of it.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 numpy==2.4.6 safetensors==0.8.0 lion-pytorch==0.2.3 && venv/bin/pip install --no-deps adabound==0.0.5 adamod==0.0.3
    venv/bin/python tests/traces/make_family_traces.py [FOLDER]

The random numbers are seeded, so the same versions write the same bytes.
"""

import json
import pathlib
import sys
import warnings

import adabound
import adamod
import lion_pytorch
import numpy
import torch
from safetensors.numpy import save_file

from make_torch_traces import MIDDLE, SHORT, heavy_tailed, schedule

HERE = pathlib.Path(__file__).resolve().parent


class NosAdam:
    """NosAdam as in github.com/andrehuang/NostalgicAdam-NosAdam, of one group."""

    def __init__(self, params, lr, betas, eps, gamma, weight_decay=0.0, maximize=False):
        self.param_groups = [dict(params=params, lr=lr)]
        self.beta1, self.eps, self.gamma = betas[0], eps, gamma
        self.weight_decay, self.maximize = weight_decay, maximize
        self.state = {}

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            if p.grad is None:
                continue
            zero = torch.zeros_like(p)
            state = self.state.setdefault(p, {"step": 0, "weights": 0.0, "exp_avg": zero.clone(), "exp_avg_sq": zero.clone()})
            g = (-p.grad if self.maximize else p.grad) + self.weight_decay * p
            state["step"] += 1
            weight = state["step"] ** -self.gamma
            beta2 = state["weights"] / (state["weights"] + weight)
            state["weights"] += weight
            state["exp_avg"] = self.beta1 * state["exp_avg"] + (1.0 - self.beta1) * g
            state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1.0 - beta2) * g * g
            mean = state["exp_avg"] / (1.0 - self.beta1 ** state["step"])
            p -= self.param_groups[0]["lr"] * mean / (state["exp_avg_sq"].sqrt() + self.eps)


class Negated:
    """Maximizes with an optimizer that can only minimize."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

    def step(self):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.grad = -p.grad
        self.optimizer.step()


def make_optimizer(rule, of, params):
    """The optimizer of a group, which couples weight decay if the group does, and decays nothing otherwise."""
    options = dict(of.get("hyperparameters", {}))
    betas, epsilon = tuple(of.get("betas", ())), of.get("epsilon")
    decay = of["weight_decay"]["value"] if of["weight_decay"]["kind"] == "coupled" else 0.0
    common = dict(lr=of["learning_rate"], weight_decay=decay)
    of_torch = dict(common, maximize=of["maximize"], foreach=False)
    match rule:
        case "adam":
            return torch.optim.Adam(params, betas=betas, eps=epsilon, amsgrad=bool(options.get("amsgrad")), **of_torch)
        case "sgd":
            nesterov = bool(options.pop("nesterov", 0))
            return torch.optim.SGD(params, momentum=of["momentum"], nesterov=nesterov, **options, **of_torch)
        case "nadam":
            return torch.optim.NAdam(params, betas=betas, eps=epsilon, **options, **of_torch)
        case "radam":
            return torch.optim.RAdam(params, betas=betas, eps=epsilon, **of_torch)
        case "rmsprop":
            centered = bool(options.pop("centered", 0))
            return torch.optim.RMSprop(params, eps=epsilon, momentum=of["momentum"], centered=centered, **options, **of_torch)
        case "adagrad":
            return torch.optim.Adagrad(params, eps=epsilon, **options, **of_torch)
        case "adadelta":
            return torch.optim.Adadelta(params, eps=epsilon, **options, **of_torch)
        case "nosadam":
            return NosAdam(params, betas=betas, eps=epsilon, maximize=of["maximize"], **options, **common)
    if rule == "adabound":
        base_lr = options.pop("base_lr")
        amsbound = bool(options.pop("amsbound", 0))
        optimizer = adabound.AdaBound(params, betas=betas, eps=epsilon, amsbound=amsbound, **options, **common)
        # The package takes the learning rate with which it is made.
        optimizer.base_lrs = [base_lr]
    elif rule == "adamod":
        # It has decoupled decay only, so coupled decay is added to the gradient.
        optimizer = adamod.AdaMod(params, lr=of["learning_rate"], betas=betas[:2], beta3=betas[2], eps=epsilon)
    else:
        # It has decoupled decay only, so coupled decay is added to the gradient.
        optimizer = lion_pytorch.Lion(params, lr=of["learning_rate"], betas=betas)
    return Negated(optimizer) if of["maximize"] else optimizer


def step_of_group(rule, of, optimizer, learning_rate):
    """One step of a group with its weight decay and its caution."""
    kind, value = of["weight_decay"]["kind"], of["weight_decay"]["value"]
    group = optimizer.param_groups[0]
    group["lr"] = learning_rate
    present = [p for p in group["params"] if p.grad is not None]
    before = [p.detach().clone() for p in present]
    gradients = []
    for p in present:
        gradient = -p.grad if of["maximize"] else p.grad.clone()
        gradient = gradient + value * p.detach() if kind == "coupled" else gradient
        gradients.append(gradient)
        if rule in ("lion", "adamod") and kind == "coupled":
            p.grad = -gradient if of["maximize"] else gradient
    optimizer.step()
    factor = {"decoupled": learning_rate * value, "none": 0.0, "coupled": 0.0}.get(kind)
    if kind == "fully_decoupled":
        factor = learning_rate / of["weight_decay"]["max_learning_rate"] * value
    for p, old, gradient in zip(present, before, gradients):
        step = old - p.detach()
        decay = factor * old
        if of.get("cautious_weight_decay"):
            decay = torch.where(step * old >= 0.0, decay, 0.0)
        if of.get("cautious"):
            step = torch.where(step * gradient > 0.0, step, 0.0)
        if factor != 0.0 or of.get("cautious"):
            p.data.copy_(old - decay - step)


def cases():
    none = {"kind": "none", "value": 0.0}
    coupled = {"kind": "coupled", "value": 0.1}
    decoupled = {"kind": "decoupled", "value": 0.1}
    fully = {"kind": "fully_decoupled", "value": 1e-3, "max_learning_rate": 4e-3}

    def groups(base, *changes):
        """The options of a rule one after the other, then decay and caution with the first of them."""
        first = changes[0]
        general = [
            {**first, "weight_decay": decoupled, "shapes": [SHORT, MIDDLE]},
            {**first, "weight_decay": coupled, "maximize": True, "cautious": True},
            {**first, "weight_decay": decoupled, "cautious_weight_decay": True},
            {**first, "weight_decay": fully, "cautious": True, "cautious_weight_decay": True},
        ]
        return [{"weight_decay": none, "maximize": False, "shapes": [MIDDLE], **base, **change} for change in [*changes, *general]]

    def with_options(**options):
        return {"hyperparameters": options}

    adam = {"learning_rate": 1e-3, "betas": [0.9, 0.999], "epsilon": 1e-8}
    rules = {
        "sgd": groups(
            {"learning_rate": 1e-3, "momentum": 0.9},
            {**with_options(dampening=0.0, nesterov=1.0), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            with_options(dampening=0.5, nesterov=0.0),
            {**with_options(dampening=0.5, nesterov=0.0), "momentum": 0.0},
            {**with_options(dampening=0.0, nesterov=1.0), "maximize": True, "momentum": 0.5},
            {**with_options(dampening=1.0, nesterov=0.0), "maximize": True, "weight_decay": coupled},
        ),
        "adam": groups(
            adam,
            {**with_options(amsgrad=1.0), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {**with_options(amsgrad=1.0), "maximize": True, "betas": [0.5, 0.9]},
            with_options(amsgrad=0.0),
        ),
        "nadam": groups(
            {**adam, "learning_rate": 2e-3},
            {**with_options(momentum_decay=4e-3), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {**with_options(momentum_decay=0.0), "betas": [0.8, 0.98], "epsilon": 1e-6},
            {**with_options(momentum_decay=1.0), "maximize": True},
            {**with_options(momentum_decay=0.1), "betas": [0.0, 0.9]},
        ),
        "radam": groups(
            adam,
            {"weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {"betas": [0.8, 0.98], "epsilon": 1e-4},
            # Never rectified.
            {"betas": [0.9, 0.6], "maximize": True},
        ),
        "adabound": groups(
            adam,
            {**with_options(final_lr=0.1, base_lr=1e-3, gamma=1e-3, amsbound=0.0), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            # Both bounds are reached.
            with_options(final_lr=5e-4, base_lr=2e-3, gamma=0.5, amsbound=0.0),
            with_options(final_lr=5e-4, base_lr=2e-3, gamma=0.5, amsbound=1.0),
            {**with_options(final_lr=0.1, base_lr=1e-3, gamma=1e-3, amsbound=1.0), "maximize": True},
        ),
        "nosadam": groups(
            {**adam, "betas": [0.9]},
            {**with_options(gamma=0.1), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {**with_options(gamma=0.0), "maximize": True},
            {**with_options(gamma=1.0), "betas": [0.0]},
        ),
        "rmsprop": groups(
            {"learning_rate": 1e-3, "epsilon": 1e-8, "momentum": 0.0},
            {**with_options(alpha=0.99, centered=0.0), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {**with_options(alpha=0.9, centered=0.0), "momentum": 0.9},
            {**with_options(alpha=0.9, centered=0.0), "momentum": 0.5, "maximize": True, "epsilon": 1e-3},
        ),
        # Not in fewer bits than 32.
        "rmsprop-centered": groups(
            {"learning_rate": 1e-3, "epsilon": 1e-8, "momentum": 0.0},
            {**with_options(alpha=0.99, centered=1.0), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {**with_options(alpha=0.9, centered=1.0), "momentum": 0.9, "maximize": True},
        ),
        "adagrad": groups(
            {"learning_rate": 1e-2, "epsilon": 1e-10},
            {**with_options(lr_decay=0.0, initial_accumulator_value=0.0), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {**with_options(lr_decay=0.1, initial_accumulator_value=0.0), "maximize": True},
            with_options(lr_decay=0.0, initial_accumulator_value=0.5),
        ),
        "adadelta": groups(
            {"learning_rate": 1.0, "epsilon": 1e-6},
            {**with_options(rho=0.9), "weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {**with_options(rho=0.5), "maximize": True, "epsilon": 1e-3},
        ),
        "lion": groups(
            {"learning_rate": 1e-4, "betas": [0.9, 0.99]},
            {"weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {"maximize": True, "betas": [0.5, 0.9]},
        ),
        "adamod": groups(
            {**adam, "betas": [0.9, 0.999, 0.999], "formula": "authors"},
            {"weight_decay": coupled, "shapes": [MIDDLE, SHORT]},
            {"maximize": True, "betas": [0.5, 0.9, 0.8]},
            {"betas": [0.9, 0.999, 0.0]},
        ),
    }
    for number, (name, of) in enumerate(rules.items()):
        rule = name.split("-")[0]
        peak = 2.0 * of[0]["learning_rate"]
        yield {"name": f"family-{name}", "rule": rule, "seed": 101 + number, "steps": 25, "groups": of}
        # Only what depends on the step count or the learning rate of a step.
        few = [{**of[0], "shapes": [MIDDLE]}, {**of[1], "shapes": [SHORT]}, {**of[-1], "shapes": [SHORT]}]
        yield {"name": f"family-{name}-schedule-missing", "rule": rule, "seed": 201 + number, "steps": 60, "groups": few,
               "learning_rates": schedule(peak, 60), "missing": 0.4}


STATES = ("exp_avg", "exp_avg_sq", "exp_avg_lr", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum", "acc_delta")


def make(case, folder, make_optimizer=make_optimizer, step_of_group=step_of_group):
    rng = numpy.random.default_rng(case["seed"])
    groups, initial, parameters, optimizers = [], {}, {}, []
    for number, of in enumerate(case["groups"]):
        of = dict(of)
        shapes = of.pop("shapes")
        of["params"] = [f"group{number}.{'x'.join(map(str, shape)) or 'scalar'}" for shape in shapes]
        for name, shape in zip(of["params"], shapes):
            initial[name] = numpy.asarray(rng.standard_normal(shape), dtype=numpy.float32)
            parameters[name] = torch.nn.Parameter(torch.from_numpy(initial[name].astype(numpy.float64)))
        groups.append(of)
        optimizers.append(make_optimizer(case["rule"], of, [parameters[name] for name in of["params"]]))
    gradients = {}
    for step in range(1, case["steps"] + 1):
        for name, parameter in parameters.items():
            parameter.grad = None
            gradient = numpy.asarray(heavy_tailed(rng, initial[name].shape), dtype=numpy.float32)
            if step == 1 or rng.random() >= case.get("missing", 0.0):
                gradients[step, name] = gradient
                parameter.grad = torch.from_numpy(gradient.astype(numpy.float64))
        for of, optimizer in zip(groups, optimizers):
            learning_rate = case["learning_rates"][step - 1] if "learning_rates" in case else of["learning_rate"]
            step_of_group(case["rule"], of, optimizer, learning_rate)
    tensors = {}
    for of, optimizer in zip(groups, optimizers):
        for name in of["params"]:
            tensors[f"expected.param.{name}"] = parameters[name].detach().numpy()
            for kind in STATES:
                state = optimizer.state[parameters[name]].get(kind)
                if state is not None:
                    tensors[f"expected.{kind}.{name}"] = state.numpy()
    tensors = {name: numpy.asarray(values, dtype=numpy.float32) for name, values in tensors.items()}
    tensors.update({f"param.{name}": values for name, values in initial.items()})
    tensors.update({f"grad.{step}.{name}": gradient for (step, name), gradient in gradients.items()})
    assert all(numpy.isfinite(values).all() for values in tensors.values())
    makers = {"adamod": "PyPI adamod 0.0.3", "adabound": "PyPI adabound 0.0.5", "lion": "PyPI lion-pytorch 0.2.3", "nosadam": "the formulas of the NosAdam authors"}
    maker = makers.get(case["rule"], "torch.optim")
    description = {key: case[key] for key in ("rule", "steps", "learning_rates") if key in case}
    description["groups"] = [of | of.pop("hyperparameters", {}) for of in groups]
    release = torch.__version__.split("+")[0]
    description["made_by"] = f"{maker} on torch {release} in float64, gradients by numpy {numpy.__version__}"
    path = folder / f"{case['name']}.safetensors"
    tensors = {name: numpy.ascontiguousarray(values).reshape(values.shape) for name, values in sorted(tensors.items())}
    save_file(tensors, path, metadata={"adamod.trace": json.dumps(description)})
    path.chmod(0o644)
    print(path)


def main():
    # adabound uses an old way to call add_.
    warnings.simplefilter("ignore")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        make(case, folder)


if __name__ == "__main__":
    main()
