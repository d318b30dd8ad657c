"""Converts optimizer state of PyTorch to checkpoints of the Rust crate `adamod`, and back. Needs torch and safetensors.

Rules: the AdaMod authors' optimizer (PyPI `adamod`), and torch.optim.Adam, AdamW, SGD, NAdam, RAdam, RMSprop, Adagrad and Adadelta with all
their options. Parameters: float32, bfloat16, float16.
"""

import collections
import functools
import json
import math
import struct
import zlib
from typing import Callable, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# Version 1 had one rule for all groups, and version 2 fewer hyperparameters. `read` takes all, `write` writes this one.
VERSION = 3
# AdaMod's formulas in the order of their numbers. PyTorch's side has the second: that of the authors' package.
FORMULAS = ["paper", "authors"]
# torch.optim counts steps in a float32, which is exact up to here. The crate counts up to the second number.
MOST_FLOAT32_STEPS, MOST_STEPS = 1 << 24, 1 << 53
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}
# The type of the differences that master weights store, and how many bits these are shifted by.
MASTERS = {"f32": (torch.int32, 0), "split32": (torch.int16, 0), "split24": (torch.int8, 8)}


def rounded(value):
    """The float32 next to a number; infinity past the largest one."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


class Range(NamedTuple):
    """The finite numbers that the crate takes."""

    expected: str
    holds: Callable[[float], bool]


OPTION = Range("True or False", lambda x: x in [0, 1])
BETA = Range("a number in [0, 1)", lambda x: 0 <= x < 1)
SHARE = Range("a number in [0, 1]", lambda x: 0 <= x <= 1)
NORMAL = Range("a number above 0 and normal in float32 (1.18e-38 to 3.4e38)", lambda x: 2.0**-126 <= rounded(x) < math.inf)
NON_NEGATIVE = Range("a finite number, at least 0 and representable in float32", lambda x: x >= 0 and math.isfinite(rounded(x)))
TO_1E6 = Range("a number from 0 to 1e6", lambda x: 0 <= x <= 1e6)
TO_2_126 = Range("a number from 0 to 8.5e37 (2^126)", lambda x: 0 <= x <= 2.0**126)
AT_MOST_2_127 = Range("at most 1.7e38 (2^127)", lambda x: x <= 2.0**127)
AT_MOST_2_64 = Range("at most 1.8e19 (2^64)", lambda x: x <= 2.0**64)


class Hyperparameter(NamedTuple):
    """A hyperparameter of PyTorch: `group[key]`, or `group[key][index]`."""

    key: str
    range: Range
    index: int | None = None

    @property
    def name(self):
        return self.key if self.index is None else f"{self.key}[{self.index}]"


class Limit(NamedTuple):
    """A range of an expression of the learning rate and the hyperparameters."""

    name: str
    value: Callable[[float, dict], float]
    range: Range


class Rule(NamedTuple):
    """A rule of the crate. Keys of dictionaries are names in checkpoints."""

    # Classes of torch.optim that compute it.
    classes: list
    # Each state and the hyperparameter that has to differ from 0 for it; None if it is always there.
    states: dict
    hyperparameters: dict
    limits: list = []
    # Hyperparameters that PyTorch does not have, and what it computes with.
    fixed: dict = {}
    # States that PyTorch creates with the optimizer, and the hyperparameter that fills them. The crate adds it in the first step.
    filled: dict = {}
    # Numbers that PyTorch keeps for each parameter: what they are after a number of steps. The crate computes them.
    computed: dict = {}
    # Whether PyTorch counts steps, and up to where.
    counts_steps: bool = True
    most_steps: int = MOST_FLOAT32_STEPS


@functools.lru_cache
def product_of_momenta(beta1, momentum_decay, steps):
    """NAdam's `mu_product`, with the rounding to float32 of every step of PyTorch."""
    product = 1.0
    for step in range(1, steps + 1):
        following = rounded(product * rounded(beta1 * (1.0 - 0.5 * 0.96 ** (step * momentum_decay))))
        # Momenta only grow, so later ones leave it as it is, too.
        if following == product:
            break
        product = following
    return product


BETAS = {
    "betas[0]": Hyperparameter("betas", BETA, 0),
    "betas[1]": Hyperparameter("betas", BETA, 1),
    "epsilon": Hyperparameter("eps", NORMAL),
}
LIMITS_OF_BETAS = [
    Limit("lr / (1 - betas[0])", lambda lr, of: lr / (1 - of["betas[0]"]), AT_MOST_2_127),
    Limit("lr / (1 - betas[0]) / eps", lambda lr, of: lr / (1 - of["betas[0]"]) / of["epsilon"], AT_MOST_2_64),
]
MOMENTS = {"exp_avg": None, "exp_avg_sq": None}

RULES = {
    # The authors' class counts steps in an int.
    "adamod": Rule(
        classes=[],
        states={**MOMENTS, "exp_avg_lr": None},
        hyperparameters={**BETAS, "betas[2]": Hyperparameter("beta3", BETA)},
        limits=LIMITS_OF_BETAS,
        fixed={"formula": FORMULAS.index("authors")},
        most_steps=MOST_STEPS,
    ),
    "adam": Rule(
        classes=[torch.optim.Adam, torch.optim.AdamW],
        states={**MOMENTS, "max_exp_avg_sq": "amsgrad"},
        hyperparameters={**BETAS, "amsgrad": Hyperparameter("amsgrad", OPTION)},
        limits=LIMITS_OF_BETAS,
    ),
    "sgd": Rule(
        classes=[torch.optim.SGD],
        states={"momentum_buffer": "momentum"},
        hyperparameters={
            "momentum": Hyperparameter("momentum", BETA),
            "dampening": Hyperparameter("dampening", SHARE),
            "nesterov": Hyperparameter("nesterov", OPTION),
        },
        limits=[
            Limit(
                "nesterov",
                lambda _, of: 0.0 if of["momentum"] > 0 and of["dampening"] == 0 else of["nesterov"],
                Range("0 (False) without momentum or with dampening", lambda x: x == 0),
            )
        ],
        counts_steps=False,
        most_steps=MOST_STEPS,
    ),
    "nadam": Rule(
        classes=[torch.optim.NAdam],
        states=MOMENTS,
        hyperparameters={**BETAS, "momentum_decay": Hyperparameter("momentum_decay", TO_1E6)},
        limits=LIMITS_OF_BETAS,
        computed={"mu_product": lambda of, steps: product_of_momenta(of["betas[0]"], of["momentum_decay"], steps)},
    ),
    "radam": Rule(classes=[torch.optim.RAdam], states=MOMENTS, hyperparameters=BETAS, limits=LIMITS_OF_BETAS),
    "rmsprop": Rule(
        classes=[torch.optim.RMSprop],
        states={"square_avg": None, "momentum_buffer": "momentum", "grad_avg": "centered"},
        hyperparameters={
            "alpha": Hyperparameter("alpha", BETA),
            "momentum": Hyperparameter("momentum", BETA),
            "epsilon": Hyperparameter("eps", NORMAL),
            "centered": Hyperparameter("centered", OPTION),
        },
        limits=[
            Limit(
                "1 / (1 - momentum) / eps",
                lambda _, of: 1 / (1 - of["momentum"]) / of["epsilon"] if of["momentum"] > 0 else 0.0,
                AT_MOST_2_64,
            ),
            Limit(
                "lr / (1 - momentum) / eps",
                lambda lr, of: lr * (1 / (1 - of["momentum"]) / of["epsilon"]),
                AT_MOST_2_64,
            ),
        ],
    ),
    "adagrad": Rule(
        classes=[torch.optim.Adagrad],
        states={"sum": None},
        hyperparameters={
            "lr_decay": Hyperparameter("lr_decay", TO_2_126),
            "initial_accumulator_value": Hyperparameter("initial_accumulator_value", TO_2_126),
            "epsilon": Hyperparameter("eps", NORMAL),
        },
        limits=[Limit("lr / eps", lambda lr, of: lr / of["epsilon"], AT_MOST_2_64)],
        filled={"sum": "initial_accumulator_value"},
    ),
    "adadelta": Rule(
        classes=[torch.optim.Adadelta],
        states={"square_avg": None, "acc_delta": None},
        hyperparameters={"rho": Hyperparameter("rho", BETA), "epsilon": Hyperparameter("eps", NORMAL)},
        limits=[Limit("lr", lambda lr, _: lr, AT_MOST_2_64)],
    ),
}
# Files before version 3 lack these hyperparameters, which are off there. Momentum chose no state.
SINCE_VERSION_3 = ["amsgrad", "dampening", "nesterov"]


def rule_of(optimizer):
    if isinstance(optimizer, dict):
        what = "a state_dict of an optimizer" if "param_groups" in optimizer else "a dict"
        raise ValueError(
            f"the optimizer is {what}, expected the optimizer itself, which knows its algorithm and its parameters: make it as for "
            "training, torch.optim.AdamW(model.parameters()) for example, and call optimizer.load_state_dict(state_dict) first"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"the optimizer is of type {type(optimizer).__qualname__}, expected one of torch.optim.Optimizer")
    kind = type(optimizer)
    # The authors' class is known by its beta3, so that a copy of their file will do. AdaMod of other packages has none.
    is_authors = kind.__name__ == "AdaMod" and all("beta3" in group for group in optimizer.param_groups)
    rule = "adamod" if is_authors else next((name for name, rule in RULES.items() if kind in rule.classes), None)
    if rule is None:
        raise ValueError(f"{kind.__module__}.{kind.__qualname__} has no counterpart in adamod")
    return rule


def names_of_hyperparameters(rule):
    """Those that only the rule has, sorted."""
    return sorted([*RULES[rule].hyperparameters, *RULES[rule].fixed])


def states_of(rule, of_rule, version=VERSION):
    """The states of a rule. Its hyperparameters choose some of them."""

    def is_there(option):
        if version < 3:
            return option not in SINCE_VERSION_3
        return option is None or of_rule[option] != 0

    return [name for name, option in RULES[rule].states.items() if is_there(option)]


def bits(value):
    """An f64 as 16 hexadecimal digits."""
    return struct.pack(">d", float(value)).hex()


def number(digits):
    return struct.unpack(">d", bytes.fromhex(digits))[0]


def formula_of(saved):
    code = number(saved["hyperparameters"]["formula"])
    return FORMULAS[int(code)] if code in range(len(FORMULAS)) else code


def decay_kind(optimizer, group):
    # AdamW has had the option only since it became a kind of Adam.
    decoupled = rule_of(optimizer) == "adamod" or isinstance(optimizer, torch.optim.AdamW)
    return "decoupled" if decoupled or group.get("decoupled_weight_decay", False) else "coupled"


def decay_of(saved):
    return 0.0 if saved["weight_decay"] == "none" else number(saved["weight_decay_value"])


def float_of(what, value):
    """A hyperparameter as a number. PyTorch takes tensors of one element, too."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (bool, str, torch.Tensor)) or not hasattr(value, "__float__"):
        raise ValueError(f"{what} is {value!r}, expected a number")
    return float(value)


def check_ranges(index, rule, lr, decay, of_rule):
    """Refuses what the crate refuses when it reads a checkpoint, in the names of PyTorch."""

    def check(name, value, of):
        if not (math.isfinite(value) and of.holds(value)):
            raise ValueError(f"{name} of group {index} is {value}, expected {of.expected}")

    check("lr", lr, NON_NEGATIVE)
    if decay != 0:
        check("weight_decay", decay, NON_NEGATIVE)
        check("lr * weight_decay", lr * decay, NON_NEGATIVE)
    for name, hyperparameter in RULES[rule].hyperparameters.items():
        check(hyperparameter.name, of_rule[name], hyperparameter.range)
    for limit in RULES[rule].limits:
        check(limit.name, limit.value(lr, of_rule), limit.range)


def hyperparameters_of(rule, index, group):
    """The hyperparameters that only the rule has: from PyTorch's names to those of checkpoints."""
    of = RULES[rule].hyperparameters
    for key, length in collections.Counter(one.key for one in of.values() if one.index is not None).items():
        if len(group[key]) != length:
            raise ValueError(f"{key} of group {index} has {len(group[key])} entries, expected {length}")

    def value(one):
        if one.range is OPTION:
            # PyTorch's older versions lack some.
            return 1.0 if group.get(one.key, False) else 0.0
        return float_of(f"{one.name} of group {index}", group[one.key] if one.index is None else group[one.key][one.index])

    found = {**RULES[rule].fixed, **{name: value(one) for name, one in of.items()}}
    return {name: found[name] for name in names_of_hyperparameters(rule)}


def of_rule_in(saved):
    return {name: number(digits) for name, digits in saved["hyperparameters"].items()}


def group_of(saved):
    """All hyperparameters of a group that are numbers: from the names of checkpoints to PyTorch's."""
    found = {"lr": number(saved["learning_rate"]), "weight_decay": decay_of(saved)}
    of_rule = of_rule_in(saved)
    for name, one in RULES[saved["rule"]].hyperparameters.items():
        if one.index is not None:
            # A table has the entries in their order.
            found[one.key] = (*found.get(one.key, ()), of_rule[name])
        elif one.range is not OPTION:
            found[one.key] = of_rule[name]
    return found


def stripped(name, strip):
    """A name without these prefixes, however many stand before it."""
    prefix = next((prefix for prefix in strip if prefix and name.startswith(prefix)), None)
    return name if prefix is None else stripped(name[len(prefix) :], strip)


def by_name(optimizer, names, strip=(), low_precision=None):
    """{name: (index of its group, parameter)}, in the optimizer's order."""
    strip = [strip] if isinstance(strip, str) else strip
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError("names is no {parameter: name}, expected {p: name for name, p in model.named_parameters()}")
    found = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in names:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} in group {index} has no name")
            name = stripped(names[parameter], strip)
            if name in found:
                raise ValueError(f"two parameters have the name {name!r}")
            if name == "":
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} in group {index} has an empty name")
            if parameter.numel() == 0:
                raise ValueError(f"{name} has shape {tuple(parameter.shape)} and no elements, expected at least 1 element")
            if parameter.dtype not in NAMES_OF_DTYPES:
                raise ValueError(f"{name} is {parameter.dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
            low = (low_precision or {}).get(parameter)
            if low is not None:
                if parameter.dtype != torch.float32:
                    raise ValueError(f"{name} is {parameter.dtype} and has low precision, too, expected torch.float32")
                if low.dtype not in [torch.bfloat16, torch.float16]:
                    raise ValueError(f"{name} in low precision is {low.dtype}, expected torch.bfloat16 or torch.float16")
                if low.shape != parameter.shape:
                    shapes = f"{tuple(low.shape)}, expected {tuple(parameter.shape)}"
                    raise ValueError(f"{name} in low precision has shape {shapes}")
            found[name] = (index, parameter)
    known = {parameter for _, parameter in found.values()}
    if not known.issuperset(low_precision or {}):
        raise ValueError("low_precision has a parameter that is not in the optimizer")
    return found


def checksum_of(text, tensors):
    # It covers the metadata, then the states, master weights and values of each parameter.
    checksum = zlib.crc32(text.encode())
    for tensor in tensors.values():
        checksum = zlib.crc32(tensor.view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def write(path, header, tensors):
    text = json.dumps(header)
    save_file(tensors, path, {"adamod.checkpoint": text, "adamod.checksum": checksum_of(text, tensors)})


def upgraded(header):
    """A header of version 1, with one rule and one formula for all groups, as one of version 2."""
    rule, formula = header["rule"], header["formula"]

    def group(saved):
        every = {f"betas[{index}]": digits for index, digits in enumerate(saved["betas"])}
        every.update(epsilon=saved["epsilon"], momentum=saved["momentum"], formula=bits(FORMULAS.index(formula)))
        own = names_of_hyperparameters(rule) if rule in RULES else []
        of_rule = {name: digits for name, digits in every.items() if name in own}
        rest = {key: value for key, value in saved.items() if key not in ["betas", "epsilon", "momentum"]}
        return {**rest, "rule": rule, "hyperparameters": of_rule}

    rest = {key: value for key, value in header.items() if key not in ["rule", "formula"]}
    return {**rest, "version": 2, "groups": [group(saved) for saved in header["groups"]]}


def read(path):
    """The header in version 3 and the tensors of a checkpoint with state in f32, whole and undamaged."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if not {"adamod.checkpoint", "adamod.checksum"} <= metadata.keys():
            raise ValueError("the file is not a checkpoint of adamod")
        header = json.loads(metadata["adamod.checkpoint"])
        if header["version"] not in range(1, VERSION + 1):
            raise ValueError(f"the checkpoint has version {header['version']}, expected at most {VERSION}")
        if header["version"] == 1:
            header = upgraded(header)
        version, header["version"] = header["version"], VERSION
        for index, group in enumerate(header["groups"]):
            if group["rule"] not in RULES:
                raise ValueError(f"the rule of group {index} is {group['rule']!r}, expected one of {', '.join(RULES)}")
            expected = names_of_hyperparameters(group["rule"])
            if version < 3:
                for name in set(SINCE_VERSION_3).intersection(expected):
                    group["hyperparameters"].setdefault(name, bits(0))
            found = sorted(group["hyperparameters"])
            if found != expected:
                raise ValueError(f"the hyperparameters of group {index} are {found}, expected {expected}")
        expected_tensors, labels = {}, set()
        for entry in header["parameters"]:
            if entry["name"] in labels:
                raise ValueError(f"the checkpoint is damaged: {entry['name']} is listed twice")
            if entry["group"] not in range(len(header["groups"])):
                raise ValueError(f"the checkpoint is damaged: {entry['name']} has group {entry['group']}")
            if entry["state"] != "f32":
                raise ValueError(f"{entry['name']} has state in {entry['state']}: restore it into a group with f32 state first")
            for key, known in [("dtype", DTYPES), ("master_weights", ["none", *MASTERS])]:
                if entry[key] not in known:
                    raise ValueError(f"the {key} of {entry['name']} is {entry[key]!r}, expected one of {', '.join(known)}")
            if entry.get("shard") is not None:
                raise ValueError(f"{entry['name']} is a shard of a tensor, expected a whole tensor")
            labels.add(entry["name"])
            group = header["groups"][entry["group"]]
            kinds = dict.fromkeys(states_of(group["rule"], of_rule_in(group), version), torch.float32)
            if entry["master_weights"] != "none":
                kinds["master"] = MASTERS[entry["master_weights"]][0]
            if entry.get("values"):
                kinds["param"] = DTYPES[entry["dtype"]]
            expected_tensors.update({f"{kind}.{entry['name']}": (dtype, (entry["len"],)) for kind, dtype in kinds.items()})
        if expected_tensors.keys() != set(file.keys()):
            differing = sorted(expected_tensors.keys() ^ set(file.keys()))
            raise ValueError(f"the checkpoint is damaged: parameters and tensors differ in {differing}")
        tensors = {name: file.get_tensor(name) for name in expected_tensors}
    for name, tensor in tensors.items():
        dtype, shape = expected_tensors[name]
        if tensor.dtype != dtype or tensor.shape != shape:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"the checkpoint is damaged: {name} is {found}, expected {dtype} {shape}")
    found, expected = checksum_of(metadata["adamod.checkpoint"], tensors), metadata["adamod.checksum"]
    if found != expected:
        raise ValueError(f"the checkpoint is damaged: the checksum of its content is {found}, expected {expected}")
    return header, tensors


def check(header, optimizer, parameters, low_precision, values):
    """Refuses a checkpoint that the optimizer could not continue from, or only with another algorithm."""

    def same(what, found, expected):
        if found != expected:
            raise ValueError(f"{what} of the checkpoint is {found}, expected {expected} as in the optimizer")

    rule = rule_of(optimizer)
    same("the number of groups", len(header["groups"]), len(optimizer.param_groups))
    for index, (saved, group) in enumerate(zip(header["groups"], optimizer.param_groups)):
        same(f"the rule of group {index}", saved["rule"], rule)
        # torch.optim.Adam adds epsilon to the corrected root, as the paper does. Only the authors' AdaMod departs from it.
        if "formula" in RULES[rule].fixed:
            same(f"the formula of group {index}", formula_of(saved), "authors")
        if decay_of(saved) != 0:
            same(f"the weight decay of group {index}", saved["weight_decay"], decay_kind(optimizer, group))
        same(f"maximize of group {index}", saved["maximize"], bool(group.get("maximize", False)))
        for name, one in RULES[rule].hyperparameters.items():
            if one.range is OPTION:
                same(f"{one.name} of group {index}", of_rule_in(saved)[name] != 0, bool(group.get(one.key, False)))
        for option in ["cautious", "cautious_weight_decay"]:
            same(f"{option} of group {index}", saved.get(option, False), False)
    entries = {entry["name"]: entry for entry in header["parameters"]}
    if entries.keys() != parameters.keys():
        there, here = sorted(entries.keys() - parameters.keys()), sorted(parameters.keys() - entries.keys())
        raise ValueError(f"only the checkpoint has the parameters {there}, only the optimizer has the parameters {here}")
    for name, (index, parameter) in parameters.items():
        entry, low = entries[name], low_precision.get(parameter)
        same(f"the group of {name}", entry["group"], index)
        same(f"the length of {name}", entry["len"], parameter.numel())
        same(f"the data type of {name}", DTYPES[entry["dtype"]], (parameter if low is None else low).dtype)
        # Parameters of a pure bfloat16 run would lose what master weights have. Those of float16 have no other kind.
        if parameter.dtype == torch.bfloat16 and entry["master_weights"] != "none":
            found = entry["master_weights"]
            raise ValueError(f"{name} has master weights {found}, expected none, or low_precision and a float32 parameter")
        if low is not None and entry["master_weights"] == "none":
            raise ValueError(f"{name} has no master weights, expected some for the float32 parameter of the optimizer")
        if values and not entry.get("values"):
            raise ValueError(f"the checkpoint has no values of {name}, expected some, or values=False")
        step, most = entry["step"], RULES[rule].most_steps
        if step > most:
            of = type(optimizer).__name__
            raise ValueError(f"the step count of {name} is {step}, expected at most {most}, up to which {of} counts without rounding")


def flat(tensor, dtype=None):
    return tensor.detach().to("cpu", dtype).reshape(-1).contiguous()


def bits_of(tensor):
    """The bits of the float32 next to each element."""
    return flat(tensor, torch.float32).view(torch.int32)


def step_of(rule, name, state):
    # torch.optim.SGD counts no steps. All that matters is whether there was one: the first one has no dampening.
    counted = RULES[rule].counts_steps
    step = float(state.get("step", 0)) if counted else float(any(state.get(kind) is not None for kind in RULES[rule].states))
    if not (step.is_integer() and 0 <= step <= MOST_STEPS):
        raise ValueError(f"the step count of {name} is {step}, expected a whole number from 0 to 2^53")
    return int(step)


def check_computed(rule, name, state, of_rule, step):
    """Refuses numbers of PyTorch that the crate would not compute from the step count and the hyperparameters."""
    for kind, compute in RULES[rule].computed.items():
        if kind in state:
            found, expected = float(state[kind]), compute(of_rule, step)
            # With `capturable` momenta are computed in float32: at most 0.06 of this apart, for betas from 0 to 1 - 1e-6 and up to 20,000
            # steps. Where both products are small, a difference does not matter: steps divide by 1 - mu_product.
            if not abs(found - expected) <= 1e-6 + step * 2.0**-22 * expected:
                raise ValueError(
                    f"{kind} of {name} is {found}, expected {expected} as after {step} steps with the hyperparameters of now: they have "
                    "changed during the run"
                )


def before_first_step(rule, kind, name, value, of_rule):
    """A state before the first step, from PyTorch to the crate."""
    filled_with = RULES[rule].filled.get(kind)
    if filled_with is None:
        return value
    if not torch.equal(value, torch.full_like(value, of_rule[filled_with])):
        raise ValueError(
            f"{kind} of {name} is not {filled_with} before the first step, expected {of_rule[filled_with]} in all elements"
        )
    return torch.zeros_like(value)


def save(optimizer, names, path, *, strip=(), low_precision=None, values=False):
    """Writes an optimizer's state.

    `names` gives each parameter's name: {parameter: name}. Prefixes in `strip`, such as "module." and "_orig_mod.", are taken off the
    names. If the optimizer has float32 master weights of a model in 16 bits, `low_precision` gives the model's tensor for each of them:
    {parameter: tensor}. With `values` the file has the parameters, too.
    """
    rule, low_precision = rule_of(optimizer), low_precision or {}
    parameters = by_name(optimizer, names, strip, low_precision)
    header = {
        "version": VERSION,
        "crate_version": "0.1.0",
        "adapter": f"PyTorch {torch.__version__}",
        "driver": "",
        "seed": 0,
        "groups": [],
        "parameters": [],
        "control": None,
    }
    of_rules = []
    for index, group in enumerate(optimizer.param_groups):
        lr = float_of(f"lr of group {index}", group["lr"])
        decay = float_of(f"weight_decay of group {index}", group.get("weight_decay", 0))
        of_rule = hyperparameters_of(rule, index, group)
        check_ranges(index, rule, lr, decay, of_rule)
        of_rules.append(of_rule)
        # A group has one kind of master weights. The crate needs some for float16.
        halves = [parameter in low_precision or parameter.dtype == torch.float16 for parameter in group["params"]]
        header["groups"].append(
            {
                "rule": rule,
                "learning_rate": bits(lr),
                "hyperparameters": {name: bits(value) for name, value in of_rule.items()},
                "weight_decay": "none" if decay == 0 else decay_kind(optimizer, group),
                "weight_decay_value": bits(decay),
                "maximize": bool(group.get("maximize", False)),
                "state": "f32",
                "master_weights": "f32" if any(halves) else "none",
                "f32_state_below": 4096,
            }
        )
    tensors = {}
    for name, (index, parameter) in parameters.items():
        state, stored = optimizer.state.get(parameter, {}), low_precision.get(parameter, parameter)
        step = step_of(rule, name, state)
        check_computed(rule, name, state, of_rules[index], step)
        for kind in states_of(rule, of_rules[index]):
            value = state.get(kind)
            if value is None:
                tensors[f"{kind}.{name}"] = flat(torch.zeros_like(parameter), torch.float32)
                continue
            if value.shape != parameter.shape:
                shapes = f"{tuple(value.shape)}, expected {tuple(parameter.shape)}"
                raise ValueError(f"{kind} of {name} has shape {shapes}, the shape of the parameter")
            if step == 0:
                value = before_first_step(rule, kind, name, value, of_rules[index])
            tensors[f"{kind}.{name}"] = flat(value, torch.float32)
        masters = header["groups"][index]["master_weights"] if stored.dtype != torch.float32 else "none"
        if masters != "none":
            tensors[f"master.{name}"] = bits_of(parameter) - bits_of(stored)
        if values:
            tensors[f"param.{name}"] = flat(stored)
        header["parameters"].append(
            {
                "name": name,
                "len": parameter.numel(),
                "dtype": NAMES_OF_DTYPES[stored.dtype],
                "group": index,
                "step": step,
                "state": "f32",
                "master_weights": masters,
                **({"values": True} if values else {}),
            }
        )
    write(path, header, tensors)


def like(old, new):
    """A hyperparameter in the form that the optimizer has it: the same tensor, a tuple with such tensors, or the number itself."""
    if isinstance(old, torch.Tensor):
        with torch.no_grad():
            return old.fill_(new)
    if isinstance(old, (list, tuple)):
        return type(old)(like(*pair) for pair in zip(old, new))
    # An int that PyTorch has by default stays one.
    return old if old == new else new


def load(path, optimizer, names, *, strip=(), low_precision=None, values=False):
    """Gives the state of a checkpoint, in f32, to an optimizer with the same parameters and groups.

    Everything is compared before anything changes: after a ValueError the optimizer is as it was. `names` and `low_precision` are as in
    `save`. Prefixes in `strip` are taken off these names and those of the checkpoint. With `values` the parameters, and the model's
    tensors in `low_precision`, get the values of the checkpoint; otherwise they stay, even if the checkpoint has some.
    """
    rule, low_precision = rule_of(optimizer), low_precision or {}
    parameters = by_name(optimizer, names, strip, low_precision)
    header, tensors = read(path)
    labels = {}
    for entry in header["parameters"]:
        label = entry["name"]
        entry["name"] = stripped(label, [strip] if isinstance(strip, str) else strip)
        if labels.setdefault(entry["name"], label) != label:
            raise ValueError(f"{labels[entry['name']]} and {label} of the checkpoint would both be {entry['name']}")
    check(header, optimizer, parameters, low_precision, values)
    entries = {entry["name"]: entry for entry in header["parameters"]}
    names_of = {parameter: name for name, (_, parameter) in parameters.items()}
    originals = [dict(group) for group in optimizer.param_groups]
    described = optimizer.state_dict()
    described["state"] = {}
    of = RULES[rule]
    for saved, group, packed in zip(header["groups"], optimizer.param_groups, described["param_groups"]):
        packed.update(group_of(saved))
        for parameter, key in zip(group["params"], packed["params"]):
            name = names_of[parameter]
            step = entries[name]["step"]
            of_rule = of_rule_in(saved)
            kinds = [kind for kind in states_of(rule, of_rule) if f"{kind}.{labels[name]}" in tensors]
            state = {kind: tensors[f"{kind}.{labels[name]}"].reshape(parameter.shape) for kind in kinds}
            if step == 0:
                state.update({kind: state[kind] + of_rule[filled_with] for kind, filled_with in of.filled.items()})
            # PyTorch has no state before the first step if it does not fill any. Files of version 2 have counted no steps of its SGD.
            if not state or (step == 0 and not of.filled and not any(value.any() for value in state.values())):
                continue
            if of.counts_steps:
                # The authors' optimizer counts in an int. torch.optim makes a tensor of it when it takes the state.
                state["step"] = step
            state.update({kind: compute(of_rule, step) for kind, compute in of.computed.items()})
            described["state"][key] = state
    optimizer.load_state_dict(described)
    for saved, group, original in zip(header["groups"], optimizer.param_groups, originals):
        group.update({key: like(original[key], value) for key, value in group_of(saved).items()})
    if values:
        for name, (_, parameter) in parameters.items():
            stored = tensors[f"param.{labels[name]}"].reshape(parameter.shape)
            low, masters = low_precision.get(parameter), entries[name]["master_weights"]
            with torch.no_grad():
                if low is None:
                    parameter.copy_(stored)
                else:
                    low.copy_(stored)
                    differences = tensors[f"master.{labels[name]}"].to(torch.int32) << MASTERS[masters][1]
                    parameter.copy_((bits_of(stored) + differences).view(torch.float32).reshape(parameter.shape))
