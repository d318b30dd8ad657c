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
STATES = {
    "adamod": ["exp_avg", "exp_avg_sq", "exp_avg_lr"],
    "adam": ["exp_avg", "exp_avg_sq"],
    "sgd": ["momentum_buffer"],
}


def rule_of(optimizer):
    rule = {"AdaMod": "adamod", "Adam": "adam", "AdamW": "adam", "SGD": "sgd"}.get(type(optimizer).__name__)
    if rule is None:
        raise ValueError(f"{type(optimizer).__name__} has no counterpart in adamod")
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


def decay_is_decoupled(optimizer, group):
    return type(optimizer).__name__ in ("AdaMod", "AdamW") or group.get("decoupled_weight_decay", False)


def save(optimizer, names, path):
    """Writes an optimizer's state. `names` gives each parameter's name: {parameter: name}."""
    rule = rule_of(optimizer)
    header = {
        "version": VERSION,
        "crate_version": "0.1.0",
        "adapter": f"PyTorch {torch.__version__}",
        "driver": "",
        "rule": rule,
        # torch.optim.Adam adds epsilon to the corrected root, as the paper does; only the authors' AdaMod departs from it.
        "formula": "authors" if rule == "adamod" else "paper",
        "seed": 0,
        "groups": [],
        "parameters": [],
        "control": None,
    }
    tensors = {}
    for index, group in enumerate(optimizer.param_groups):
        decay = float(group.get("weight_decay", 0))
        kind = "none" if decay == 0 else "decoupled" if decay_is_decoupled(optimizer, group) else "coupled"
        beta1, beta2 = group.get("betas", (0.9, 0.999))
        header["groups"].append(
            {
                "learning_rate": bits(float(group["lr"])),
                "betas": [bits(beta1), bits(beta2), bits(group.get("beta3", 0.999))],
                "epsilon": bits(group.get("eps", 1e-8)),
                "momentum": bits(group.get("momentum", 0.9)),
                "weight_decay": kind,
                "weight_decay_value": bits(decay),
                "maximize": bool(group.get("maximize", False)),
                "state": "f32",
                "master_weights": "none",
                "f32_state_below": 4096,
            }
        )
        for parameter in group["params"]:
            name = names[parameter]
            if parameter.dtype != torch.float32:
                raise ValueError(f"{name} is {parameter.dtype}, needed is float32")
            state = optimizer.state.get(parameter, {})
            step = int(state.get("step", 0))
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
                    "step": step,
                    "state": "f32",
                    "master_weights": "none",
                }
            )
    text = json.dumps(header)
    checksum = zlib.crc32(text.encode())
    # The checksum takes the metadata, then each parameter's states.
    for tensor in tensors.values():
        checksum = zlib.crc32(tensor.numpy().tobytes(), checksum)
    save_file(tensors, path, {"adamod.checkpoint": text, "adamod.checksum": f"{checksum:08x}"})


def load(path, optimizer, names):
    """Gives the state of a checkpoint, in f32, to an optimizer with the same parameters and groups."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        header = json.loads(metadata["adamod.checkpoint"])
        if header["version"] != VERSION:
            raise ValueError(f"the checkpoint has version {header['version']}, needed is {VERSION}")
        rule = rule_of(optimizer)
        formula = "authors" if rule == "adamod" else "paper"
        if header["rule"] != rule or (rule == "adamod" and header["formula"] != formula):
            raise ValueError(f"the checkpoint is of {header['rule']}, {header['formula']}; needed is {rule}, {formula}")
        checksum = zlib.crc32(metadata["adamod.checkpoint"].encode())
        saved = {}
        for parameter in header["parameters"]:
            if parameter["state"] != "f32" or parameter["dtype"] != "f32":
                raise ValueError(f"{parameter['name']} is not in f32: restore it into an f32 group first")
            states = {kind: file.get_tensor(f"{kind}.{parameter['name']}") for kind in STATES[rule]}
            for tensor in states.values():
                checksum = zlib.crc32(tensor.numpy().tobytes(), checksum)
            saved[parameter["name"]] = (parameter, states)
    if f"{checksum:08x}" != metadata["adamod.checksum"]:
        raise ValueError("the checkpoint is damaged")
    for index, group in enumerate(optimizer.param_groups):
        of = header["groups"][index]
        group["lr"] = number(of["learning_rate"])
        if rule == "sgd":
            group["momentum"] = number(of["momentum"])
        else:
            group["betas"] = tuple(number(beta) for beta in of["betas"][:2])
            group["eps"] = number(of["epsilon"])
        if rule == "adamod":
            group["beta3"] = number(of["betas"][2])
        group["weight_decay"] = number(of["weight_decay_value"]) if of["weight_decay"] != "none" else 0.0
        for parameter in group["params"]:
            entry, states = saved.pop(names[parameter])
            if entry["group"] != index or entry["len"] != parameter.numel():
                raise ValueError(f"{names[parameter]} has another group or length in the checkpoint")
            if entry["step"] == 0:
                optimizer.state.pop(parameter, None)
                continue
            state = {kind: tensor.reshape(parameter.shape).clone() for kind, tensor in states.items()}
            if rule != "sgd":
                # torch.optim counts in a tensor, the authors' optimizer in an int.
                state["step"] = entry["step"] if rule == "adamod" else torch.tensor(float(entry["step"]))
            optimizer.state[parameter] = state
    if saved:
        raise ValueError(f"the checkpoint has parameters that the optimizer lacks: {sorted(saved)}")
