"""Converts optimizer state of PyTorch to checkpoints of the Rust crate `adamod`, and back. Needs torch and safetensors.

Rules: the AdaMod authors' optimizer (PyPI `adamod`), torch.optim.Adam, AdamW and SGD with momentum; parameters in float32.
"""

import json
import struct
import zlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# Version 1 had one rule for all groups. `read` takes both, `write` writes this one.
VERSION = 2
RULES = {torch.optim.Adam: "adam", torch.optim.AdamW: "adam", torch.optim.SGD: "sgd"}
STATES = {
    "adamod": ["exp_avg", "exp_avg_sq", "exp_avg_lr"],
    "adam": ["exp_avg", "exp_avg_sq"],
    "sgd": ["momentum_buffer"],
}
# The hyperparameters that only the rule has.
HYPERPARAMETERS = {
    "adamod": ["betas[0]", "betas[1]", "betas[2]", "epsilon", "formula"],
    "adam": ["betas[0]", "betas[1]", "epsilon"],
    "sgd": ["momentum"],
}
# AdaMod's formulas in the order of their numbers. PyTorch's side has the second: that of the authors' package.
FORMULAS = ["paper", "authors"]
# torch.optim.Adam counts steps in a float32, which is exact up to here.
MOST_ADAM_STEPS = 1 << 24


def rule_of(optimizer):
    kind = type(optimizer)
    # The authors' class is known by its beta3, so that a copy of their file will do. AdaMod of other packages has none.
    is_authors = kind.__name__ == "AdaMod" and all("beta3" in group for group in optimizer.param_groups)
    rule = "adamod" if is_authors else RULES.get(kind)
    if rule is None:
        raise ValueError(f"{kind.__module__}.{kind.__qualname__} has no counterpart in adamod")
    for group in optimizer.param_groups:
        for option in ["amsgrad", "nesterov", "dampening"]:
            if group.get(option):
                raise ValueError(f"{option}={group[option]} has no counterpart in adamod")
    return rule


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


def hyperparameters_of(rule, group):
    """The hyperparameters that only the rule has: from PyTorch's names to those of checkpoints."""
    if rule == "sgd":
        found = {"momentum": group["momentum"]}
    else:
        beta1, beta2 = group["betas"]
        found = {"betas[0]": beta1, "betas[1]": beta2, "epsilon": group["eps"]}
    if rule == "adamod":
        found.update({"betas[2]": group["beta3"], "formula": FORMULAS.index("authors")})
    return {name: bits(found[name]) for name in HYPERPARAMETERS[rule]}


def group_of(saved):
    """All hyperparameters of a group that are numbers: from the names of checkpoints to PyTorch's."""
    found = {"lr": number(saved["learning_rate"]), "weight_decay": decay_of(saved)}
    of_rule = {name: number(digits) for name, digits in saved["hyperparameters"].items()}
    if saved["rule"] == "sgd":
        found["momentum"] = of_rule["momentum"]
    else:
        found.update(betas=(of_rule["betas[0]"], of_rule["betas[1]"]), eps=of_rule["epsilon"])
    if saved["rule"] == "adamod":
        found["beta3"] = of_rule["betas[2]"]
    return found


def by_name(optimizer, names):
    """{name: (index of its group, parameter)}, in the optimizer's order."""
    found = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in names:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} in group {index} has no name")
            name = names[parameter]
            if name in found:
                raise ValueError(f"two parameters have the name {name!r}")
            if parameter.dtype != torch.float32:
                raise ValueError(f"{name} is {parameter.dtype}, expected torch.float32")
            found[name] = (index, parameter)
    return found


def checksum_of(text, tensors):
    # It covers the metadata, then the states and values of each parameter.
    checksum = zlib.crc32(text.encode())
    for tensor in tensors.values():
        checksum = zlib.crc32(tensor.numpy().tobytes(), checksum)
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
        of_rule = {name: every[name] for name in HYPERPARAMETERS.get(rule, [])}
        rest = {key: value for key, value in saved.items() if key not in ["betas", "epsilon", "momentum"]}
        return {**rest, "rule": rule, "hyperparameters": of_rule}

    rest = {key: value for key, value in header.items() if key not in ["rule", "formula"]}
    return {**rest, "version": VERSION, "groups": [group(saved) for saved in header["groups"]]}


def read(path):
    """The header in version 2 and the tensors of a checkpoint in f32, whole and undamaged."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if not {"adamod.checkpoint", "adamod.checksum"} <= metadata.keys():
            raise ValueError("the file is not a checkpoint of adamod")
        header = json.loads(metadata["adamod.checkpoint"])
        if header["version"] not in range(1, VERSION + 1):
            raise ValueError(f"the checkpoint has version {header['version']}, expected at most {VERSION}")
        if header["version"] == 1:
            header = upgraded(header)
        for index, group in enumerate(header["groups"]):
            if group["rule"] not in STATES:
                raise ValueError(f"the rule of group {index} is {group['rule']!r}, expected one of {', '.join(STATES)}")
            found, expected = sorted(group["hyperparameters"]), HYPERPARAMETERS[group["rule"]]
            if found != expected:
                raise ValueError(f"the hyperparameters of group {index} are {found}, expected {expected}")
        lengths, labels = {}, set()
        for entry in header["parameters"]:
            if entry["name"] in labels:
                raise ValueError(f"the checkpoint is damaged: {entry['name']} is listed twice")
            if entry["group"] not in range(len(header["groups"])):
                raise ValueError(f"the checkpoint is damaged: {entry['name']} has group {entry['group']}")
            if entry["state"] != "f32" or entry["dtype"] != "f32":
                raise ValueError(f"{entry['name']} is not in f32: restore it into an f32 group first")
            if entry.get("shard") is not None:
                raise ValueError(f"{entry['name']} is a shard of a tensor, expected a whole tensor")
            labels.add(entry["name"])
            kinds = STATES[header["groups"][entry["group"]]["rule"]] + (["param"] if entry.get("values") else [])
            lengths.update({f"{kind}.{entry['name']}": entry["len"] for kind in kinds})
        if lengths.keys() != set(file.keys()):
            differing = sorted(lengths.keys() ^ set(file.keys()))
            raise ValueError(f"the checkpoint is damaged: parameters and tensors differ in {differing}")
        tensors = {name: file.get_tensor(name) for name in lengths}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.shape != (lengths[name],):
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            expected = f"torch.float32 {(lengths[name],)}"
            raise ValueError(f"the checkpoint is damaged: {name} is {found}, expected {expected}")
    found, expected = checksum_of(metadata["adamod.checkpoint"], tensors), metadata["adamod.checksum"]
    if found != expected:
        raise ValueError(f"the checkpoint is damaged: the checksum of its content is {found}, expected {expected}")
    return header, tensors


def check(header, optimizer, names):
    """Refuses a checkpoint that the optimizer could not continue from, or only with another algorithm."""

    def same(what, found, expected):
        if found != expected:
            raise ValueError(f"{what} of the checkpoint is {found}, expected {expected} as in the optimizer")

    rule, parameters = rule_of(optimizer), by_name(optimizer, names)
    same("the number of groups", len(header["groups"]), len(optimizer.param_groups))
    for index, (saved, group) in enumerate(zip(header["groups"], optimizer.param_groups)):
        same(f"the rule of group {index}", saved["rule"], rule)
        # torch.optim.Adam adds epsilon to the corrected root, as the paper does. Only the authors' AdaMod departs from it.
        if rule == "adamod":
            same(f"the formula of group {index}", formula_of(saved), "authors")
        if decay_of(saved) != 0:
            same(f"the weight decay of group {index}", saved["weight_decay"], decay_kind(optimizer, group))
        same(f"maximize of group {index}", saved["maximize"], bool(group.get("maximize", False)))
    entries = {entry["name"]: entry for entry in header["parameters"]}
    if entries.keys() != parameters.keys():
        there, here = sorted(entries.keys() - parameters.keys()), sorted(parameters.keys() - entries.keys())
        raise ValueError(f"only the checkpoint has the parameters {there}, only the optimizer has the parameters {here}")
    for name, (index, parameter) in parameters.items():
        same(f"the group of {name}", entries[name]["group"], index)
        same(f"the length of {name}", entries[name]["len"], parameter.numel())
        step = entries[name]["step"]
        if rule == "adam" and step > MOST_ADAM_STEPS:
            raise ValueError(f"the step count of {name} is {step}, expected at most {MOST_ADAM_STEPS} for torch.optim.Adam")


def save(optimizer, names, path):
    """Writes an optimizer's state. `names` gives each parameter's name: {parameter: name}."""
    rule, parameters = rule_of(optimizer), by_name(optimizer, names)
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
    for group in optimizer.param_groups:
        decay = float(group.get("weight_decay", 0))
        header["groups"].append(
            {
                "rule": rule,
                "learning_rate": bits(group["lr"]),
                "hyperparameters": hyperparameters_of(rule, group),
                "weight_decay": "none" if decay == 0 else decay_kind(optimizer, group),
                "weight_decay_value": bits(decay),
                "maximize": bool(group.get("maximize", False)),
                "state": "f32",
                "master_weights": "none",
                "f32_state_below": 4096,
            }
        )
    tensors = {}
    for name, (index, parameter) in parameters.items():
        state = optimizer.state.get(parameter, {})
        for kind in STATES[rule]:
            value = state.get(kind)
            if value is None:
                value = torch.zeros_like(parameter)
            tensors[f"{kind}.{name}"] = value.detach().cpu().reshape(-1).contiguous()
        header["parameters"].append(
            {
                "name": name,
                "len": parameter.numel(),
                "dtype": "f32",
                "group": index,
                "step": int(state.get("step", 0)),
                "state": "f32",
                "master_weights": "none",
            }
        )
    write(path, header, tensors)


def load(path, optimizer, names):
    """Gives the state of a checkpoint, in f32, to an optimizer with the same parameters and groups.

    Everything is compared before anything changes: after a ValueError the optimizer is as it was. The values of the parameters stay, even
    if the checkpoint has some.
    """
    header, tensors = read(path)
    check(header, optimizer, names)
    rule = rule_of(optimizer)
    entries = {entry["name"]: entry for entry in header["parameters"]}
    described = optimizer.state_dict()
    described["state"] = {}
    for saved, group, packed in zip(header["groups"], optimizer.param_groups, described["param_groups"]):
        packed.update(group_of(saved))
        for parameter, key in zip(group["params"], packed["params"]):
            name = names[parameter]
            step = entries[name]["step"]
            state = {kind: tensors[f"{kind}.{name}"].reshape(parameter.shape) for kind in STATES[rule]}
            # PyTorch has no state before the first step. Its SGD counts no steps, so the state itself shows whether there was one.
            if step == 0 and not any(value.any() for value in state.values()):
                continue
            if rule != "sgd":
                # The authors' optimizer counts in an int. torch.optim makes a tensor of it when it takes the state.
                state["step"] = step
            described["state"][key] = state
    optimizer.load_state_dict(described)
