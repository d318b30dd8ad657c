"""Optimizer state of PyTorch as checkpoints of the Rust crate `adamod`, and back. Needs torch and safetensors.

Rules: the AdaMod authors' optimizer (PyPI `adamod`), torch.optim.Adam, AdamW and SGD with momentum; parameters in float32.
"""

import json
import struct
import zlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

VERSION = 1
RULES = {torch.optim.Adam: "adam", torch.optim.AdamW: "adam", torch.optim.SGD: "sgd"}
STATES = {
    "adamod": ["exp_avg", "exp_avg_sq", "exp_avg_lr"],
    "adam": ["exp_avg", "exp_avg_sq"],
    "sgd": ["momentum_buffer"],
}
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
    return struct.pack(">d", value).hex()


def number(digits):
    return struct.unpack(">d", bytes.fromhex(digits))[0]


def formula_of(rule):
    # torch.optim.Adam adds epsilon to the corrected root, as the paper does; only the authors' AdaMod departs from it.
    return "authors" if rule == "adamod" else "paper"


def decay_kind(optimizer, group):
    # AdamW has had the option only since it became a kind of Adam.
    decoupled = rule_of(optimizer) == "adamod" or isinstance(optimizer, torch.optim.AdamW)
    return "decoupled" if decoupled or group.get("decoupled_weight_decay", False) else "coupled"


def decay_of(saved):
    return 0.0 if saved["weight_decay"] == "none" else number(saved["weight_decay_value"])


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
                raise ValueError(f"{name} is {parameter.dtype}, needed is float32")
            found[name] = (index, parameter)
    return found


def checksum_of(text, tensors):
    # It takes the metadata, then each parameter's states.
    checksum = zlib.crc32(text.encode())
    for tensor in tensors.values():
        checksum = zlib.crc32(tensor.numpy().tobytes(), checksum)
    return f"{checksum:08x}"


def write(path, header, tensors):
    text = json.dumps(header)
    save_file(tensors, path, {"adamod.checkpoint": text, "adamod.checksum": checksum_of(text, tensors)})


def read(path):
    """Header and tensors of a checkpoint in f32, whole and undamaged."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if not {"adamod.checkpoint", "adamod.checksum"} <= metadata.keys():
            raise ValueError("the file is no checkpoint of adamod")
        header = json.loads(metadata["adamod.checkpoint"])
        if header["version"] != VERSION:
            raise ValueError(f"the checkpoint has version {header['version']}, needed is {VERSION}")
        if header["rule"] not in STATES:
            raise ValueError(f"the rule is {header['rule']!r}, needed is one of {', '.join(STATES)}")
        lengths = {}
        for entry in header["parameters"]:
            if f"{STATES[header['rule']][0]}.{entry['name']}" in lengths:
                raise ValueError(f"the checkpoint is damaged: {entry['name']} is listed twice")
            if entry["state"] != "f32" or entry["dtype"] != "f32":
                raise ValueError(f"{entry['name']} is not in f32: restore it into an f32 group first")
            lengths.update({f"{kind}.{entry['name']}": entry["len"] for kind in STATES[header["rule"]]})
        if lengths.keys() != set(file.keys()):
            differing = sorted(lengths.keys() ^ set(file.keys()))
            raise ValueError(f"the checkpoint is damaged: parameters and tensors differ in {differing}")
        tensors = {name: file.get_tensor(name) for name in lengths}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.shape != (lengths[name],):
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"the checkpoint is damaged: {name} is {found}, needed is float32 {(lengths[name],)}")
    if checksum_of(metadata["adamod.checkpoint"], tensors) != metadata["adamod.checksum"]:
        raise ValueError("the checkpoint is damaged: its checksum is another one")
    return header, tensors


def check(header, optimizer, names):
    """Refuses what the optimizer could not go on from, or only with another algorithm."""

    def same(what, found, needed):
        if found != needed:
            raise ValueError(f"{what} of the checkpoint is {found}, the optimizer has {needed}")

    rule, parameters = rule_of(optimizer), by_name(optimizer, names)
    same("the rule", header["rule"], rule)
    # Adam and SGD have one.
    if rule == "adamod":
        same("the formula", header["formula"], formula_of(rule))
    same("the number of groups", len(header["groups"]), len(optimizer.param_groups))
    for index, (saved, group) in enumerate(zip(header["groups"], optimizer.param_groups)):
        if decay_of(saved) != 0:
            same(f"the weight decay of group {index}", saved["weight_decay"], decay_kind(optimizer, group))
        same(f"maximize of group {index}", saved["maximize"], bool(group.get("maximize", False)))
    entries = {entry["name"]: entry for entry in header["parameters"]}
    if entries.keys() != parameters.keys():
        there, here = sorted(entries.keys() - parameters.keys()), sorted(parameters.keys() - entries.keys())
        raise ValueError(f"parameters that only the checkpoint has: {there}, that only the optimizer has: {here}")
    for name, (index, parameter) in parameters.items():
        same(f"the group of {name}", entries[name]["group"], index)
        same(f"the length of {name}", entries[name]["len"], parameter.numel())
        step = entries[name]["step"]
        if rule == "adam" and step > MOST_ADAM_STEPS:
            raise ValueError(f"the step count of {name} is {step}, torch.optim.Adam counts to {MOST_ADAM_STEPS}")


def hyperparameters(rule, saved):
    """A group's, as PyTorch names them."""
    found = {"lr": number(saved["learning_rate"]), "weight_decay": decay_of(saved)}
    beta1, beta2, beta3 = map(number, saved["betas"])
    if rule == "sgd":
        found["momentum"] = number(saved["momentum"])
    else:
        found.update(betas=(beta1, beta2), eps=number(saved["epsilon"]))
    if rule == "adamod":
        found["beta3"] = beta3
    return found


def save(optimizer, names, path):
    """Writes an optimizer's state. `names` gives each parameter's name: {parameter: name}."""
    rule, parameters = rule_of(optimizer), by_name(optimizer, names)
    header = {
        "version": VERSION,
        "crate_version": "0.1.0",
        "adapter": f"PyTorch {torch.__version__}",
        "driver": "",
        "rule": rule,
        "formula": formula_of(rule),
        "seed": 0,
        "groups": [],
        "parameters": [],
        "control": None,
    }
    for group in optimizer.param_groups:
        decay = float(group.get("weight_decay", 0))
        beta1, beta2 = group.get("betas", (0.9, 0.999))
        header["groups"].append(
            {
                "learning_rate": bits(float(group["lr"])),
                "betas": [bits(beta1), bits(beta2), bits(group.get("beta3", 0.999))],
                "epsilon": bits(group.get("eps", 1e-8)),
                "momentum": bits(group.get("momentum", 0.9)),
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

    Everything is compared before anything changes: after a ValueError the optimizer is as it was.
    """
    header, tensors = read(path)
    check(header, optimizer, names)
    rule = header["rule"]
    entries = {entry["name"]: entry for entry in header["parameters"]}
    described = optimizer.state_dict()
    described["state"] = {}
    for saved, group, packed in zip(header["groups"], optimizer.param_groups, described["param_groups"]):
        packed.update(hyperparameters(rule, saved))
        for parameter, key in zip(group["params"], packed["params"]):
            name = names[parameter]
            step = entries[name]["step"]
            state = {kind: tensors[f"{kind}.{name}"].reshape(parameter.shape) for kind in STATES[rule]}
            # PyTorch has no state before the first step. Its SGD counts none, so there the state itself tells.
            if step == 0 and not any(value.any() for value in state.values()):
                continue
            if rule != "sgd":
                # The authors' optimizer counts in an int. torch.optim makes a tensor of it when it takes the state.
                state["step"] = step
            described["state"][key] = state
    optimizer.load_state_dict(described)
