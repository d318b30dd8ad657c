#!/usr/bin/env python3
"""Tests adamod_checkpoint.py with PyTorch alone, without the crate. examples/pytorch/README.md says how to run them."""

import copy
import itertools
import pathlib
import re
import tempfile
import unittest

import torch
from safetensors.torch import save_file

import adamod_checkpoint
from adamod_checkpoint import FORMULAS, SINCE_VERSION_3, bits, formula_of
from there_and_back import AUTHORS, FIXTURE, IN_RANGE, OUT_OF_RANGE, RULES, Run, gradients, initial

# After 10 steps every parameter has state. After 4 steps the bias has none.
STEPS, STEPS_WITHOUT_BIAS = 10, 4

OPTIMIZERS = {
    **RULES,
    "coupled, up": lambda groups: torch.optim.Adam(groups, lr=1e-2, maximize=True),
    "decoupled by an option": lambda groups: torch.optim.Adam(groups, lr=1e-2, decoupled_weight_decay=True),
    "decoupled, up": lambda groups: torch.optim.AdamW(groups, lr=1e-2, maximize=True),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "SGD, up": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, maximize=True),
    "NAdam, up": lambda groups: torch.optim.NAdam(groups, lr=1e-2, maximize=True),
    "NAdam, foreach": lambda groups: torch.optim.NAdam(groups, lr=1e-2, foreach=True),
    "RAdam, up": lambda groups: torch.optim.RAdam(groups, lr=1e-2, maximize=True),
    "RMSprop, up": lambda groups: torch.optim.RMSprop(groups, lr=1e-2, maximize=True),
    "Adagrad, up": lambda groups: torch.optim.Adagrad(groups, lr=1e-2, maximize=True),
    "Adagrad, fused": lambda groups: torch.optim.Adagrad(groups, lr=1e-2, initial_accumulator_value=0.1, fused=True),
    "Adadelta, up": lambda groups: torch.optim.Adadelta(groups, maximize=True),
}
# One of each rule, with its options.
OF_EACH_RULE = {
    "adamod": "adamod.AdaMod",
    "adam": "AdamW, amsgrad",
    "sgd": "SGD, nesterov",
    "nadam": "NAdam, decoupled",
    "radam": "RAdam, decoupled",
    "rmsprop": "RMSprop, centered, momentum",
    "adagrad": "Adagrad, initial",
    "adadelta": "torch.optim.Adadelta",
}
# Version 2 had neither other rules nor these options.
OF_VERSION_2 = ["adamod.AdaMod", "torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD", "SGD without momentum"]
OF_VERSION_2 += ["coupled, up", "decoupled by an option", "decoupled, up", "fused", "SGD, up"]
OTHER_VALUES = {"betas": (0.5, 0.5), "lr_decay": 0.5, "momentum_decay": 0.5, "initial_accumulator_value": 0.5}
OTHER_VALUES.update(dict.fromkeys(["lr", "beta3", "eps", "momentum", "weight_decay", "alpha", "rho"], 0.5))


def frozen(value):
    """A copy that equals another one only if types, shapes and bits are the same."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: frozen(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(frozen(of) for of in value)
    return type(value).__name__, repr(value)


def version_1(header):
    """A header as version 1 of the format had it. Rules take the hyperparameters that they have from those of all rules."""
    [rule] = {group["rule"] for group in header["groups"]}
    formula = formula_of(header["groups"][0]) if rule == "adamod" else "paper"

    def group(saved):
        own = saved["hyperparameters"]
        return {
            "learning_rate": saved["learning_rate"],
            "betas": [own.get(f"betas[{index}]", bits(beta)) for index, beta in enumerate([0.9, 0.999, 0.999])],
            "epsilon": own.get("epsilon", bits(1e-8)),
            "momentum": own.get("momentum", bits(0.9)),
            **{key: value for key, value in saved.items() if key not in ["rule", "learning_rate", "hyperparameters"]},
        }

    groups = [group(saved) for saved in header["groups"]]
    return {**header, "version": 1, "rule": rule, "formula": formula, "groups": groups}


def version_2(header):
    """A header as version 2 of the format had it, without options."""

    def group(saved):
        own = {name: digits for name, digits in saved["hyperparameters"].items() if name not in SINCE_VERSION_3}
        return {**saved, "hyperparameters": own}

    return {**header, "version": 2, "groups": [group(saved) for saved in header["groups"]]}


class TestOfCheckpoints(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "state.safetensors"

    def trained(self, optimizer, steps=STEPS):
        run = Run(OPTIMIZERS[optimizer], initial())
        run.steps(gradients(), 0, steps)
        return run

    def saved(self, optimizer, steps=STEPS):
        run = self.trained(optimizer, steps)
        adamod_checkpoint.save(run.optimizer, run.names, self.path)
        return run

    def change(self, change_header=None, change_tensors=None):
        """Changes the checkpoint and its checksum."""
        header, tensors = adamod_checkpoint.read(self.path)
        for change, of in [(change_header, header), (change_tensors, tensors)]:
            if change is not None:
                change(of)
        adamod_checkpoint.write(self.path, header, tensors)

    def refused(self, run, *said):
        """`load` refuses the checkpoint and says why. The optimizer is as it was, and continues as if nothing had happened."""
        twin = copy.deepcopy((run.parameters, run.optimizer))
        before = frozen(run.optimizer.state_dict())
        with self.assertRaises(ValueError) as refusal:
            adamod_checkpoint.load(self.path, run.optimizer, run.names)
        for part in said:
            self.assertIn(part, str(refusal.exception))
        self.assertEqual(frozen(run.optimizer.state_dict()), before)
        parameters, optimizer = twin
        for steps_of in [run.optimizer, optimizer]:
            for group in steps_of.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.ones_like(parameter)
            steps_of.step()
        self.assertEqual(frozen(run.parameters), frozen(parameters))
        self.assertEqual(frozen(run.optimizer.state_dict()), frozen(optimizer.state_dict()))


class RoundTrips(TestOfCheckpoints):
    def test_a_run_that_was_saved_and_loaded_continues_with_the_same_bits(self):
        for optimizer in OPTIMIZERS:
            for steps in [0, STEPS_WITHOUT_BIAS, STEPS]:
                with self.subTest(optimizer=optimizer, steps=steps):
                    run = self.saved(optimizer, steps)
                    other = Run(OPTIMIZERS[optimizer], run.values())
                    other.steps(gradients(), STEPS, STEPS + 1)
                    for group in other.optimizer.param_groups:
                        # A default of PyTorch that is an int stays one only if it is not changed.
                        others = {key: value for key, value in OTHER_VALUES.items() if type(group.get(key)) is type(value)}
                        group.update(others)
                    for name, value in run.values().items():
                        other.parameters[name].data.copy_(value)
                    self.assertNotEqual(frozen(other.optimizer.state_dict()), frozen(run.optimizer.state_dict()))
                    adamod_checkpoint.load(self.path, other.optimizer, other.names)
                    self.assertEqual(frozen(other.optimizer.state_dict()), frozen(run.optimizer.state_dict()))
                    for of in [run, other]:
                        of.steps(gradients(), STEPS, 2 * STEPS)
                    self.assertEqual(frozen(other.everything()), frozen(run.everything()))

    def test_a_checkpoint_of_a_loaded_optimizer_is_the_same_checkpoint(self):
        for optimizer in OPTIMIZERS:
            with self.subTest(optimizer=optimizer):
                self.saved(optimizer)
                first = adamod_checkpoint.read(self.path)
                run = Run(OPTIMIZERS[optimizer], initial())
                adamod_checkpoint.load(self.path, run.optimizer, run.names)
                adamod_checkpoint.save(run.optimizer, run.names, self.path)
                self.assertEqual(frozen(adamod_checkpoint.read(self.path)), frozen(first))

    def test_older_versions_are_the_same_checkpoint(self):
        for optimizer in OF_VERSION_2:
            for version in [1, 2]:
                with self.subTest(optimizer=optimizer, version=version):
                    run = self.saved(optimizer)
                    header, tensors = adamod_checkpoint.read(self.path)
                    if optimizer == "SGD without momentum":
                        # It had a state all the same.
                        tensors = {f"momentum_buffer.{name}": torch.zeros(value.numel()) for name, value in initial().items()}
                    expected = frozen((header, tensors))
                    adamod_checkpoint.write(self.path, [version_1, version_2][version - 1](header), tensors)
                    self.assertEqual(frozen(adamod_checkpoint.read(self.path)), expected)
                    other = Run(OPTIMIZERS[optimizer], initial())
                    adamod_checkpoint.load(self.path, other.optimizer, other.names)
                    self.assertEqual(frozen(other.optimizer.state_dict()), frozen(run.optimizer.state_dict()))

    def test_the_fixture_is_the_same_in_all_versions(self):
        names = ["checkpoint.safetensors", "version-2.safetensors", "version-3.safetensors"]
        read = [adamod_checkpoint.read(FIXTURE / name) for name in names]
        for header, _ in read:
            del header["adapter"]
        for other in read[1:]:
            self.assertEqual(frozen(read[0]), frozen(other))
        self.assertEqual([formula_of(group) for group in read[0][0]["groups"]], ["authors"] * 2)

    def test_the_largest_step_count_is_kept(self):
        for rule, optimizer in OF_EACH_RULE.items():
            if rule == "sgd":
                # It counts no steps.
                continue
            most = 1 << 40 if rule == "adamod" else 1 << 24
            with self.subTest(optimizer=optimizer):
                run = self.saved(optimizer)
                self.change(lambda header: [entry.update(step=most) for entry in header["parameters"]])
                adamod_checkpoint.load(self.path, run.optimizer, run.names)
                self.assertEqual([state["step"] for state in run.optimizer.state.values()], [most] * 4)

    def test_values_in_a_checkpoint_are_verified_and_stay_there(self):
        run = self.saved("torch.optim.Adam")

        def change_tensors(tensors):
            states = [(name, tensors.pop(name)) for name in list(tensors)]
            for name, tensor in states:
                tensors[name] = tensor
                kind, label = name.split(".", 1)
                if kind == "exp_avg_sq":
                    tensors[f"param.{label}"] = torch.full_like(tensor, 2.0)

        self.change(lambda header: [entry.update(values=True) for entry in header["parameters"]], change_tensors)
        other = Run(OPTIMIZERS["torch.optim.Adam"], run.values())
        adamod_checkpoint.load(self.path, other.optimizer, other.names)
        self.assertEqual(frozen(other.everything()), frozen(run.everything()))
        self.change(None, lambda tensors: tensors.pop("param.embedding"))
        self.refused(other, "param.embedding")

    def test_weight_decay_of_0_fits_every_kind(self):
        self.saved("torch.optim.Adam")
        self.change(lambda header: [group.update(weight_decay_value="0" * 16) for group in header["groups"]])
        run = self.trained("torch.optim.AdamW")
        adamod_checkpoint.load(self.path, run.optimizer, run.names)
        self.assertEqual([group["weight_decay"] for group in run.optimizer.param_groups], [0.0, 0.0])

    def test_identical_means_identical(self):
        zero = torch.zeros(2)
        for other in [-zero, zero.double(), zero.reshape(1, 2), torch.tensor([0.0, 1e-45])]:
            self.assertNotEqual(frozen({"a": [zero]}), frozen({"a": [other]}))
        for one, other in [(0.0, -0.0), (1, 1.0), (0, False), ((), []), ({}, {"step": 0})]:
            self.assertNotEqual(frozen(one), frozen(other))


class Halves(TestOfCheckpoints):
    """Parameters in 16 bits: with float32 master weights in the optimizer, or without."""

    OPTIMIZERS = ["torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD", *OF_EACH_RULE.values()]

    def with_masters(self, optimizer, steps=STEPS):
        """A run whose optimizer has the master weights of a model in bfloat16, and in float16 for one tensor."""
        run = self.trained(optimizer, steps)
        return run, self.low_precision_of(run)

    def low_precision_of(self, run):
        dtypes = {"head.weight": torch.float16, "layer.0.bias": None}
        dtype_of = {name: dtypes.get(name, torch.bfloat16) for name in run.parameters}
        return {of: of.detach().to(dtype_of[name]) for name, of in run.parameters.items() if dtype_of[name] is not None}

    def test_master_weights_come_back_with_the_same_bits(self):
        for optimizer in self.OPTIMIZERS:
            with self.subTest(optimizer=optimizer):
                run, low = self.with_masters(optimizer)
                adamod_checkpoint.save(run.optimizer, run.names, self.path, low_precision=low, values=True)
                header, tensors = adamod_checkpoint.read(self.path)
                dtypes = {entry["name"]: (entry["dtype"], entry["master_weights"]) for entry in header["parameters"]}
                self.assertEqual(dtypes["embedding"], ("bf16", "f32"))
                self.assertEqual(dtypes["head.weight"], ("f16", "f32"))
                self.assertEqual(dtypes["layer.0.bias"], ("f32", "none"))
                self.assertEqual([group["master_weights"] for group in header["groups"]], ["f32", "f32"])
                self.assertEqual(tensors["master.embedding"].dtype, torch.int32)
                other = Run(OPTIMIZERS[optimizer], {name: torch.zeros_like(value) for name, value in initial().items()})
                other_low = self.low_precision_of(other)
                adamod_checkpoint.load(
                    self.path, other.optimizer, other.names, low_precision=other_low, values=True
                )
                self.assertEqual(frozen(other.everything()), frozen(run.everything()))
                self.assertEqual(frozen(other.optimizer.state_dict()), frozen(run.optimizer.state_dict()))
                for parameter, name in run.names.items():
                    if parameter in low:
                        self.assertEqual(frozen(other_low[other.parameters[name]]), frozen(low[parameter]))
                for of in [run, other]:
                    of.steps(gradients(), STEPS, 2 * STEPS)
                self.assertEqual(frozen(other.everything()), frozen(run.everything()))

    def test_split_master_weights_are_joined(self):
        for kind, dtype, shift in [("split24", torch.int8, 8), ("split32", torch.int16, 0)]:
            with self.subTest(kind=kind):
                run, low = self.with_masters("torch.optim.AdamW")
                embedding = run.parameters["embedding"]
                # What the crate stores: the difference of the bits, of which split24 has the upper 16.
                bits_of = embedding.detach().reshape(-1).view(torch.int32)
                kept = ((bits_of + (1 << shift >> 1)) >> shift) << shift
                stored = ((kept + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)
                difference = (kept - (stored.to(torch.float32).view(torch.int32))) >> shift
                adamod_checkpoint.save(run.optimizer, run.names, self.path, low_precision=low, values=True)

                def change_tensors(tensors):
                    tensors["master.embedding"] = difference.to(dtype)
                    tensors["param.embedding"] = stored

                entry_of = lambda header: next(of for of in header["parameters"] if of["name"] == "embedding")
                header, tensors = adamod_checkpoint.read(self.path)
                entry_of(header).update(master_weights=kind)
                change_tensors(tensors)
                adamod_checkpoint.write(self.path, header, tensors)
                adamod_checkpoint.load(self.path, run.optimizer, run.names, low_precision=low, values=True)
                self.assertEqual(frozen(embedding.detach().reshape(-1)), frozen(kept.view(torch.float32)))
                self.assertEqual(frozen(low[embedding].reshape(-1)), frozen(stored))

    def test_runs_in_16_bits_alone(self):
        for optimizer in ["torch.optim.AdamW", *OF_EACH_RULE.values()]:
            for dtype, masters in [(torch.bfloat16, "none"), (torch.float16, "f32")]:
                for steps in [0, STEPS]:
                    with self.subTest(optimizer=optimizer, dtype=dtype, steps=steps):
                        values = {name: value.to(dtype) for name, value in initial().items()}
                        halves = {name: value.to(dtype) for name, value in gradients().items()}
                        run = Run(OPTIMIZERS[optimizer], values)
                        run.steps(halves, 0, steps)
                        adamod_checkpoint.save(run.optimizer, run.names, self.path, values=True)
                        header, tensors = adamod_checkpoint.read(self.path)
                        self.assertEqual({entry["master_weights"] for entry in header["parameters"]}, {masters})
                        states = [name for name in tensors if not name.startswith(("param.", "master."))]
                        self.assertGreaterEqual(len(states), len(values))
                        self.assertEqual({tensors[name].dtype for name in states}, {torch.float32})
                        self.assertEqual(tensors["param.embedding"].dtype, dtype)
                        if masters != "none":
                            self.assertFalse(any(tensors[f"master.{name}"].any() for name in values))
                        other = Run(OPTIMIZERS[optimizer], {name: torch.zeros_like(of) for name, of in values.items()})
                        adamod_checkpoint.load(self.path, other.optimizer, other.names, values=True)
                        self.assertEqual(frozen(other.everything()), frozen(run.everything()))
                        for of in [run, other]:
                            of.steps(halves, STEPS, 2 * STEPS)
                        self.assertEqual(frozen(other.everything()), frozen(run.everything()))

    def test_values_that_are_not_wanted_or_not_there(self):
        run = self.saved("torch.optim.Adam")
        other = Run(OPTIMIZERS["torch.optim.Adam"], {name: value + 1 for name, value in run.values().items()})
        with self.assertRaisesRegex(ValueError, "no values of embedding"):
            adamod_checkpoint.load(self.path, other.optimizer, other.names, values=True)
        adamod_checkpoint.save(run.optimizer, run.names, self.path, values=True)
        adamod_checkpoint.load(self.path, other.optimizer, other.names)
        self.assertEqual(frozen(other.values()), frozen({name: value + 1 for name, value in run.values().items()}))
        adamod_checkpoint.load(self.path, other.optimizer, other.names, values=True)
        self.assertEqual(frozen(other.values()), frozen(run.values()))

    def test_what_does_not_fit(self):
        run, low = self.with_masters("torch.optim.AdamW")
        embedding = run.parameters["embedding"]
        cases = [
            ({embedding: low[embedding].to(torch.float32)}, "embedding in low precision is torch.float32"),
            ({embedding: low[embedding][:3]}, r"embedding in low precision has shape \(3, 8\), expected \(17, 8\)"),
            ({torch.nn.Parameter(torch.zeros(3)): torch.zeros(3, dtype=torch.bfloat16)}, "not in the optimizer"),
        ]
        for wrong, said in cases:
            for call in [
                adamod_checkpoint.save,
                lambda optimizer, names, path, **more: adamod_checkpoint.load(path, optimizer, names, **more),
            ]:
                with self.subTest(said=said), self.assertRaisesRegex(ValueError, said):
                    call(run.optimizer, run.names, self.path, low_precision=wrong)
        adamod_checkpoint.save(run.optimizer, run.names, self.path, low_precision=low)
        self.refused(self.trained("torch.optim.AdamW"), "the data type of embedding", "bfloat16", "float32")
        halves = Run(OPTIMIZERS["torch.optim.AdamW"], {name: low.get(of, of).detach() for name, of in run.parameters.items()})
        self.refused(halves, "embedding has master weights f32, expected none")
        # A float32 parameter of the optimizer cannot come from 16 bits alone.
        bf16 = Run(OPTIMIZERS["torch.optim.AdamW"], {name: value.to(torch.bfloat16) for name, value in initial().items()})
        adamod_checkpoint.save(bf16.optimizer, bf16.names, self.path)
        all_low = {of: of.detach().to(torch.bfloat16) for of in run.parameters.values()}
        with self.assertRaisesRegex(ValueError, "embedding has no master weights"):
            adamod_checkpoint.load(self.path, run.optimizer, run.names, low_precision=all_low)


class Names(TestOfCheckpoints):
    def test_prefixes_are_stripped_on_request(self):
        run = self.trained("torch.optim.AdamW")
        plain = dict(run.names)
        prefixes = ["_orig_mod.", "module."]
        wrapped = {parameter: f"module._orig_mod.module.{name}" for parameter, name in plain.items()}
        adamod_checkpoint.save(run.optimizer, wrapped, self.path)
        labels = [entry["name"] for entry in adamod_checkpoint.read(self.path)[0]["parameters"]]
        self.assertEqual(labels, list(wrapped.values()))
        adamod_checkpoint.save(run.optimizer, wrapped, self.path, strip=prefixes)
        labels = [entry["name"] for entry in adamod_checkpoint.read(self.path)[0]["parameters"]]
        self.assertEqual(labels, list(plain.values()))
        # One prefix alone, as a string, stays within the name.
        adamod_checkpoint.save(run.optimizer, wrapped, self.path, strip="module.")
        labels = [entry["name"] for entry in adamod_checkpoint.read(self.path)[0]["parameters"]]
        self.assertEqual(labels[0], "_orig_mod.module.embedding")
        for names_there, names_here in [(plain, wrapped), (wrapped, plain)]:
            adamod_checkpoint.save(run.optimizer, names_there, self.path, values=True)
            other = Run(OPTIMIZERS["torch.optim.AdamW"], {name: value + 1 for name, value in initial().items()})
            of_other = {other.parameters[plain[parameter]]: name for parameter, name in names_here.items()}
            with self.assertRaisesRegex(ValueError, "only the checkpoint has the parameters"):
                adamod_checkpoint.load(self.path, other.optimizer, of_other)
            adamod_checkpoint.load(self.path, other.optimizer, of_other, strip=prefixes, values=True)
            self.assertEqual(frozen(other.everything()), frozen(run.everything()))
            self.assertEqual(frozen(other.optimizer.state_dict()), frozen(run.optimizer.state_dict()))

    def test_names_that_become_one(self):
        run = self.trained("torch.optim.AdamW")
        run.names[run.parameters["layer.0.bias"]] = "module.embedding"
        with self.assertRaisesRegex(ValueError, "two parameters have the name 'embedding'"):
            adamod_checkpoint.save(run.optimizer, run.names, self.path, strip=["module."])
        self.assertFalse(self.path.exists())
        adamod_checkpoint.save(run.optimizer, run.names, self.path)
        other = self.trained("torch.optim.AdamW")
        with self.assertRaisesRegex(ValueError, "embedding and module.embedding of the checkpoint would both be embedding"):
            adamod_checkpoint.load(self.path, other.optimizer, other.names, strip=["module."])
        run.names[run.parameters["layer.0.bias"]] = "module."
        with self.assertRaisesRegex(ValueError, r"shape \(13,\) in group 1 has an empty name"):
            adamod_checkpoint.save(run.optimizer, run.names, self.path, strip=["module."])


class OtherArguments(TestOfCheckpoints):
    def both(self, optimizer, names):
        return [
            lambda: adamod_checkpoint.save(optimizer, names, self.path),
            lambda: adamod_checkpoint.load(self.path, optimizer, names),
        ]

    def test_what_is_no_optimizer(self):
        run = self.saved("torch.optim.AdamW")
        cases = [
            (run.optimizer.state_dict(), "a state_dict of an optimizer, expected the optimizer itself", "load_state_dict"),
            ({"weight": torch.zeros(3)}, "a dict, expected the optimizer itself", "load_state_dict"),
            (torch.nn.Linear(2, 2), "of type Linear, expected one of torch.optim.Optimizer", ""),
            (None, "of type NoneType", ""),
        ]
        before = self.path.read_bytes()
        for optimizer, *said in cases:
            for call in self.both(optimizer, run.names):
                with self.subTest(said=said), self.assertRaises(ValueError) as refusal:
                    call()
                for part in said:
                    self.assertIn(part, str(refusal.exception))
        self.assertEqual(self.path.read_bytes(), before)

    def test_what_are_no_names(self):
        run = self.saved("torch.optim.AdamW")
        for names in [run.parameters, list(run.parameters.items()), torch.nn.Linear(2, 2)]:
            for call in self.both(run.optimizer, names):
                with self.subTest(names=type(names)), self.assertRaisesRegex(ValueError, "model.named_parameters"):
                    call()

    def test_tensors_as_hyperparameters_stay_the_same_tensors(self):
        def make_optimizer(groups):
            for group in groups:
                group["lr"] = torch.tensor(group.get("lr", 1e-2))
            return torch.optim.AdamW(groups, betas=(torch.tensor(0.5), torch.tensor(0.75)), foreach=False)

        def single(groups):
            groups = [{**group, "lr": torch.tensor(0.25, dtype=torch.float64)} for group in groups]
            return torch.optim.SGD(groups, momentum=0.5)

        for make in [make_optimizer, single]:
            with self.subTest(make=make):
                run = Run(make, initial())
                run.steps(gradients(), 0, STEPS)
                adamod_checkpoint.save(run.optimizer, run.names, self.path)
                other = Run(make, initial())
                tensors = [group["lr"] for group in other.optimizer.param_groups]
                with torch.no_grad():
                    for tensor in tensors:
                        tensor.fill_(0.125)
                adamod_checkpoint.load(self.path, other.optimizer, other.names)
                for tensor, group, expected in zip(tensors, other.optimizer.param_groups, run.optimizer.param_groups):
                    # A graph or a compiled step has this tensor.
                    self.assertIs(group["lr"], tensor)
                    self.assertEqual(frozen(group["lr"]), frozen(expected["lr"]))
                    self.assertEqual(frozen(group.get("betas")), frozen(expected.get("betas")))
                for of in [run, other]:
                    for name, value in initial().items():
                        of.parameters[name].data.copy_(value)
                    of.steps(gradients(), STEPS, 2 * STEPS)
                self.assertEqual(frozen(other.everything()), frozen(run.everything()))


class Ranges(TestOfCheckpoints):
    def test_hyperparameters_out_of_the_crates_ranges_are_refused_by_name(self):
        for optimizer, changes, said in OUT_OF_RANGE:
            with self.subTest(optimizer=optimizer, changes=changes):
                run = self.trained(optimizer)
                run.optimizer.param_groups[1].update(changes)
                with self.assertRaisesRegex(ValueError, said):
                    adamod_checkpoint.save(run.optimizer, run.names, self.path)
                self.assertFalse(self.path.exists())

    def test_hyperparameters_at_the_edges_are_written(self):
        for optimizer, changes in IN_RANGE:
            with self.subTest(optimizer=optimizer, changes=changes):
                run = Run(OPTIMIZERS[optimizer], initial())
                # State of the other hyperparameters.
                run.optimizer.state.clear()
                run.optimizer.param_groups[1].update(changes)
                adamod_checkpoint.save(run.optimizer, run.names, self.path)
                group = adamod_checkpoint.group_of(adamod_checkpoint.read(self.path)[0]["groups"][1])
                for name, value in changes.items():
                    self.assertEqual(group[name], value)

    def test_every_range_has_cases_in_it_and_out_of_it(self):
        for rule, of in adamod_checkpoint.RULES.items():
            refused = [said.replace("\\", "") for optimizer, _, said in OUT_OF_RANGE if self.rule_of(optimizer) == rule]
            taken = [changes for optimizer, changes in IN_RANGE if self.rule_of(optimizer) == rule]
            for one in of.hyperparameters.values():
                with self.subTest(rule=rule, name=one.name):
                    self.assertTrue(any(one.key in changes for changes in taken) or one.range is adamod_checkpoint.OPTION)
                    self.assertTrue(
                        any(said.startswith(f"{one.name} of group 1") for said in refused) or one.range is adamod_checkpoint.OPTION
                    )
            for limit in of.limits:
                with self.subTest(rule=rule, name=limit.name):
                    self.assertTrue(any(said.startswith(f"{limit.name} of group 1") for said in refused))

    def rule_of(self, optimizer):
        return adamod_checkpoint.rule_of(Run(OPTIMIZERS[optimizer], initial()).optimizer)

    def test_hyperparameters_that_are_no_numbers_are_refused_by_name(self):
        cases = [
            ("torch.optim.Adam", {"lr": "1e-3"}, "lr of group 1 is '1e-3', expected a number"),
            ("torch.optim.Adam", {"lr": torch.zeros(2)}, "lr of group 1 is tensor"),
            ("torch.optim.Adam", {"eps": None}, "eps of group 1 is None, expected a number"),
            ("torch.optim.Adam", {"weight_decay": True}, "weight_decay of group 1 is True, expected a number"),
            ("torch.optim.Adam", {"betas": (0.9,)}, "betas of group 1 has 1 entries, expected 2"),
            ("torch.optim.Adam", {"betas": (0.9, "1")}, r"betas\[1\] of group 1 is '1', expected a number"),
        ]
        for optimizer in OF_EACH_RULE.values():
            for name in Run(OPTIMIZERS[optimizer], initial()).optimizer.param_groups[1]:
                if name in OTHER_VALUES and name != "betas":
                    cases.append((optimizer, {name: None}, f"{name} of group 1 is None, expected a number"))
        for optimizer, changes, said in cases:
            with self.subTest(optimizer=optimizer, changes=changes):
                run = self.trained(optimizer)
                run.optimizer.param_groups[1].update(changes)
                with self.assertRaisesRegex(ValueError, said):
                    adamod_checkpoint.save(run.optimizer, run.names, self.path)
                self.assertFalse(self.path.exists())

    def test_parameters_without_elements(self):
        run = Run(OPTIMIZERS["torch.optim.Adam"], {**initial(), "head.weight": torch.zeros(3, 0)})
        with self.assertRaisesRegex(ValueError, r"head.weight has shape \(3, 0\) and no elements, expected at least 1"):
            adamod_checkpoint.save(run.optimizer, run.names, self.path)
        self.assertFalse(self.path.exists())

    def test_states_that_are_not_of_their_parameter(self):
        for rule, optimizer in OF_EACH_RULE.items():
            run = self.trained(optimizer)
            state = run.optimizer.state[run.parameters["embedding"]]
            kinds = [kind for kind, value in state.items() if isinstance(value, torch.Tensor) and value.shape]
            self.assertEqual(sorted(kinds), sorted(adamod_checkpoint.RULES[rule].states))
            cases = [
                ({kind: torch.zeros(8, 17)}, rf"{kind} of embedding has shape \(8, 17\), expected \(17, 8\)") for kind in kinds
            ]
            if rule != "sgd":
                cases += [
                    ({"step": torch.tensor(1.5)}, "the step count of embedding is 1.5, expected a whole number"),
                    ({"step": torch.tensor(-1.0)}, "the step count of embedding is -1.0"),
                    ({"step": 2.0**54}, "the step count of embedding is 1.8"),
                ]
            for changes, said in cases:
                with self.subTest(optimizer=optimizer, said=said):
                    before = dict(state)
                    state.update(changes)
                    with self.assertRaisesRegex(ValueError, said):
                        adamod_checkpoint.save(run.optimizer, run.names, self.path)
                    state.update(before)


class ComputedAndFilled(TestOfCheckpoints):
    """What PyTorch keeps and the crate computes: NAdam's mu_product, and Adagrad's sum before the first step."""

    def nadam(self, steps, **options):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.NAdam([parameter], **options)
        for _ in range(steps):
            parameter.grad = torch.ones(1)
            optimizer.step()
        return parameter, optimizer

    def test_mu_product_has_pytorchs_bits_after_any_number_of_steps(self):
        # After 250 steps the product has reached subnormal numbers, and does not change any more.
        for steps in [1, 2, 30, 250]:
            for options in [
                {},
                {"betas": (0.5, 0.9), "momentum_decay": 0.0},
                {"betas": (0.999, 0.9), "momentum_decay": 100.0},
                {"betas": (0.0, 0.9)},
            ]:
                with self.subTest(steps=steps, options=options):
                    parameter, optimizer = self.nadam(steps, **options)
                    group, state = optimizer.param_groups[0], optimizer.state[parameter]
                    found = adamod_checkpoint.product_of_momenta(group["betas"][0], group["momentum_decay"], steps)
                    self.assertEqual(frozen(torch.tensor(found)), frozen(state["mu_product"]))

    def test_mu_product_of_other_hyperparameters_is_refused(self):
        for changes in [{"betas": (0.95, 0.999)}, {"momentum_decay": 0.5}]:
            with self.subTest(changes=changes):
                run = self.trained("torch.optim.NAdam")
                run.optimizer.param_groups[1].update(changes)
                with self.assertRaisesRegex(ValueError, "mu_product of layer.0.bias is .* as after 6 steps .* have changed"):
                    adamod_checkpoint.save(run.optimizer, run.names, self.path)
                self.assertFalse(self.path.exists())
        run = self.trained("torch.optim.NAdam")
        run.optimizer.state[run.parameters["embedding"]]["mu_product"] = torch.tensor(float("nan"))
        with self.assertRaisesRegex(ValueError, "mu_product of embedding is nan, expected"):
            adamod_checkpoint.save(run.optimizer, run.names, self.path)

    def test_mu_product_that_float32_rounded_otherwise_is_taken(self):
        # As `capturable` computes it: in float32 throughout.
        for beta1, momentum_decay in [(0.9, 4e-3), (0.999, 4e-3), (0.9999, 100.0)]:
            for steps in [10, 1000]:
                with self.subTest(beta1=beta1, momentum_decay=momentum_decay, steps=steps):
                    step, product = torch.arange(1.0, steps + 1), torch.tensor(1.0)
                    for momentum in beta1 * (1.0 - 0.5 * (0.96 ** (step * momentum_decay))):
                        product = product * momentum
                    state = {"mu_product": product}
                    of_rule = {"betas[0]": beta1, "momentum_decay": momentum_decay}
                    adamod_checkpoint.check_computed("nadam", "weight", state, of_rule, steps)

    def test_a_product_that_is_close_to_0_does_not_say_more(self):
        # Steps divide by 1 - mu_product, so the run continues with other hyperparameters as in PyTorch.
        parameter, optimizer = self.nadam(200)
        optimizer.param_groups[0]["betas"] = (0.95, 0.999)
        adamod_checkpoint.save(optimizer, {parameter: "weight"}, self.path)
        other_parameter, other = self.nadam(0)
        adamod_checkpoint.load(self.path, other, {other_parameter: "weight"})
        self.assertLess(abs(other.state[other_parameter]["mu_product"] - optimizer.state[parameter]["mu_product"]), 1e-6)

    def test_the_sum_of_adagrad_starts_from_0_in_the_checkpoint(self):
        for steps in [0, STEPS_WITHOUT_BIAS]:
            with self.subTest(steps=steps):
                run = self.saved("Adagrad, initial", steps)
                header, tensors = adamod_checkpoint.read(self.path)
                steps_of = {entry["name"]: entry["step"] for entry in header["parameters"]}
                self.assertEqual(steps_of, {**dict.fromkeys(steps_of, steps), "layer.0.bias": 0})
                self.assertFalse(tensors["sum.layer.0.bias"].any())
                self.assertEqual(tensors["sum.embedding"].any(), steps > 0)
                self.assertTrue((run.optimizer.state[run.parameters["layer.0.bias"]]["sum"] == 0.1).all())

    def test_a_sum_before_the_first_step_that_is_not_the_initial_value_is_refused(self):
        run = Run(OPTIMIZERS["Adagrad, initial"], initial())
        run.optimizer.param_groups[1]["initial_accumulator_value"] = 0.2
        with self.assertRaisesRegex(ValueError, "sum of layer.0.bias is not initial_accumulator_value .* expected 0.2 in all"):
            adamod_checkpoint.save(run.optimizer, run.names, self.path)
        self.assertFalse(self.path.exists())
        # After it, the value has no effect any more.
        run.steps(gradients(), 0, STEPS)
        adamod_checkpoint.save(run.optimizer, run.names, self.path)

    def test_hyperparameters_that_choose_states_are_loaded_with_them(self):
        for found, needed in [
            ("RMSprop, momentum", "torch.optim.RMSprop"),
            ("RMSprop, centered", "RMSprop, centered, momentum"),
            ("torch.optim.SGD", "SGD without momentum"),
            ("Adagrad, initial", "torch.optim.Adagrad"),
        ]:
            for one, other in [(found, needed), (needed, found)]:
                with self.subTest(found=one, needed=other):
                    run, loaded = self.saved(one, STEPS_WITHOUT_BIAS), self.trained(other)
                    adamod_checkpoint.load(self.path, loaded.optimizer, loaded.names)
                    for name, value in run.values().items():
                        loaded.parameters[name].data.copy_(value)
                    self.assertEqual(frozen(loaded.everything()), frozen(run.everything()))
                    for of in [run, loaded]:
                        of.steps(gradients(), STEPS, 2 * STEPS)
                    self.assertEqual(frozen(loaded.everything()), frozen(run.everything()))

    def test_hyperparameters_choose_the_states(self):
        for optimizer, states in [
            ("torch.optim.RMSprop", ["square_avg"]),
            ("RMSprop, momentum", ["square_avg", "momentum_buffer"]),
            ("RMSprop, centered", ["square_avg", "grad_avg"]),
            ("RMSprop, centered, momentum", ["square_avg", "momentum_buffer", "grad_avg"]),
            ("SGD without momentum", []),
            ("AdamW, amsgrad", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
            ("torch.optim.Adadelta", ["square_avg", "acc_delta"]),
        ]:
            with self.subTest(optimizer=optimizer):
                self.saved(optimizer)
                tensors = adamod_checkpoint.read(self.path)[1]
                self.assertEqual([name for name in tensors if name.endswith("embedding")], [f"{state}.embedding" for state in states])


class Refusals(TestOfCheckpoints):
    def test_another_algorithm(self):
        decay, maximize = "the weight decay of group 0", "maximize of group 0"
        cases = [
            ("coupled, up", "torch.optim.AdamW", [decay, "coupled", "decoupled"]),
            ("torch.optim.Adam", "torch.optim.AdamW", [decay, "coupled", "decoupled"]),
            ("torch.optim.Adam", "decoupled by an option", [decay, "coupled", "decoupled"]),
            ("torch.optim.AdamW", "torch.optim.Adam", [decay, "decoupled", "coupled"]),
            ("torch.optim.Adam", "coupled, up", [maximize, "False", "True"]),
            ("coupled, up", "torch.optim.Adam", [maximize, "True", "False"]),
            ("decoupled, up", "torch.optim.AdamW", [maximize, "True", "False"]),
            ("SGD, up", "torch.optim.SGD", [maximize, "True", "False"]),
            ("torch.optim.SGD", "torch.optim.Adam", ["the rule", "sgd", "adam"]),
            ("torch.optim.AdamW", "adamod.AdaMod", ["the rule", "adam", "adamod"]),
            ("torch.optim.NAdam", "NAdam, decoupled", [decay, "coupled", "decoupled"]),
            ("RAdam, decoupled", "torch.optim.RAdam", [decay, "decoupled", "coupled"]),
            ("NAdam, up", "torch.optim.NAdam", [maximize, "True", "False"]),
            ("torch.optim.RAdam", "RAdam, up", [maximize, "False", "True"]),
            ("RMSprop, up", "torch.optim.RMSprop", [maximize, "True", "False"]),
            ("torch.optim.Adagrad", "Adagrad, up", [maximize, "False", "True"]),
            ("Adadelta, up", "torch.optim.Adadelta", [maximize, "True", "False"]),
        ]
        for rule, found in OF_EACH_RULE.items():
            cases += [(found, needed, ["the rule", rule, other]) for other, needed in OF_EACH_RULE.items() if other != rule]
        for found, needed, said in cases:
            with self.subTest(found=found, needed=needed):
                self.saved(found)
                self.refused(self.trained(needed), *said)

    def test_what_only_the_crate_has(self):
        def group(header, index=0):
            return header["groups"][index]

        def set_formula(group, formula):
            code = FORMULAS.index(formula) if formula in FORMULAS else formula
            group["hyperparameters"].update(formula=bits(code))

        cases = [
            ("adamod.AdaMod", lambda header: set_formula(group(header), "paper"), ["the formula of group 0", "paper", "authors"]),
            ("adamod.AdaMod", lambda header: set_formula(group(header, 1), 2.0), ["the formula of group 1", "2.0", "authors"]),
            ("adamod.AdaMod", lambda header: group(header).update(maximize=True), ["maximize of group 0"]),
            ("adamod.AdaMod", lambda header: group(header).update(weight_decay="coupled"), ["group 0 ", "coupled"]),
            *[
                (optimizer, lambda header: group(header).update(weight_decay="decoupled"), ["group 0 ", "decoupled"])
                for optimizer in ["torch.optim.SGD", "torch.optim.RMSprop", "torch.optim.Adagrad", "torch.optim.Adadelta"]
            ],
            *[
                (optimizer, lambda header: group(header).update(weight_decay="fully_decoupled"), ["group 0 ", "fully_decoupled"])
                for optimizer in OF_EACH_RULE.values()
            ],
            ("torch.optim.SGD", lambda header: group(header, 1).update(maximize=True), ["maximize of group 1"]),
        ]
        for optimizer, change, said in cases:
            with self.subTest(optimizer=optimizer, said=said):
                run = self.saved(optimizer)
                self.change(change)
                self.refused(run, *said)

    def test_groups_with_different_rules(self):
        def change_header(header):
            header["groups"][1].update(rule="sgd", hyperparameters={"dampening": bits(0), "momentum": bits(0.9), "nesterov": bits(0)})

        def change_tensors(tensors):
            for name in ["layer.0.bias", "head.weight"]:
                tensors[f"momentum_buffer.{name}"] = tensors.pop(f"exp_avg.{name}")
                del tensors[f"exp_avg_sq.{name}"]

        for optimizer in ["torch.optim.Adam", "torch.optim.SGD"]:
            with self.subTest(optimizer=optimizer):
                self.saved("torch.optim.Adam")
                self.change(change_header, change_tensors)
                found, expected = ("adam", "sgd") if optimizer == "torch.optim.SGD" else ("sgd", "adam")
                self.refused(self.trained(optimizer), "the rule of group", f"is {found}", f"expected {expected}")

    def test_step_counts_that_torch_would_round(self):
        for optimizer in ["torch.optim.Adam", "torch.optim.AdamW", *OF_EACH_RULE.values()]:
            if optimizer in [OF_EACH_RULE["adamod"], OF_EACH_RULE["sgd"]]:
                continue
            with self.subTest(optimizer=optimizer):
                run = self.saved(optimizer)
                self.change(lambda header: header["parameters"][3].update(step=(1 << 24) + 1))
                self.refused(run, "the step count of head.weight", "16777217", "16777216")

    def test_other_options(self):
        for found, needed, option in [
            ("torch.optim.AdamW", "AdamW, amsgrad", "amsgrad"),
            ("torch.optim.SGD", "SGD, nesterov", "nesterov"),
            ("torch.optim.RMSprop", "RMSprop, centered", "centered"),
        ]:
            for one, other in [(found, needed), (needed, found)]:
                with self.subTest(one=one, other=other):
                    self.saved(one)
                    self.refused(self.trained(other), f"{option} of group 0 of the checkpoint is {one == needed}")
        for option in ["cautious", "cautious_weight_decay"]:
            with self.subTest(option=option):
                run = self.saved("torch.optim.AdamW")
                self.change(lambda header: header["groups"][1].update({option: True}))
                self.refused(run, f"{option} of group 1 of the checkpoint is True, expected False")

    def test_optimizers_of_the_same_name(self):
        for name in ["Adam", "AdaMod", "RMSprop"]:
            with self.subTest(name=name):
                namesake = type(name, (torch.optim.Adam,), {})
                run = Run(lambda groups: namesake(groups), initial())
                run.steps(gradients(), 0, STEPS)
                self.saved("torch.optim.Adam")
                self.refused(run, f"{name} has no counterpart")
                with self.assertRaisesRegex(ValueError, "has no counterpart"):
                    adamod_checkpoint.save(run.optimizer, run.names, self.path)

    def test_other_groups(self):
        def as_one(groups):
            return AUTHORS([{"params": [parameter for group in groups for parameter in group["params"]]}])

        one, two = Run(as_one, initial()), self.saved("adamod.AdaMod")
        self.refused(one, "the number of groups", "is 2", "expected 1")
        adamod_checkpoint.save(one.optimizer, one.names, self.path)
        self.refused(two, "the number of groups", "is 1", "expected 2")
        self.saved("adamod.AdaMod")
        moved = self.trained("adamod.AdaMod")
        first, second = moved.optimizer.param_groups
        second["params"].append(first["params"].pop())
        self.refused(moved, "the group of layer.0.weight", "is 0", "expected 1")

    def test_other_names(self):
        run = self.saved("torch.optim.AdamW")
        embedding = run.parameters["embedding"]
        run.names[embedding] = "wte"
        self.refused(run, "['embedding']", "['wte']")
        run.names[embedding] = "head.weight"
        self.refused(run, "two parameters", "head.weight")
        with self.assertRaisesRegex(ValueError, "two parameters"):
            adamod_checkpoint.save(run.optimizer, run.names, self.path)
        del run.names[embedding]
        self.refused(run, "(17, 8)", "no name")

    def test_more_or_fewer_parameters(self):
        def without_head(groups):
            return torch.optim.SGD([groups[0], {**groups[1], "params": groups[1]["params"][:1]}], lr=1e-2, momentum=0.9)

        fewer, more = Run(without_head, initial()), self.saved("torch.optim.SGD")
        fewer.steps(gradients(), 0, STEPS)
        self.refused(fewer, "only the checkpoint has the parameters ['head.weight']", "only the optimizer has the parameters []")
        adamod_checkpoint.save(fewer.optimizer, fewer.names, self.path)
        self.refused(more, "only the checkpoint has the parameters []", "only the optimizer has the parameters ['head.weight']")

    def test_other_lengths_and_types(self):
        for last in [104, 106]:
            with self.subTest(last=last):
                self.saved("torch.optim.Adam")
                # The last parameter differs, so all others fit.
                other = Run(OPTIMIZERS["torch.optim.Adam"], {**initial(), "head.weight": torch.zeros(last)})
                self.refused(other, "the length of head.weight", "is 105", f"expected {last}")
        halves = Run(OPTIMIZERS["torch.optim.Adam"], {**initial(), "head.weight": torch.zeros(105, dtype=torch.float16)})
        self.refused(halves, "the data type of head.weight", "torch.float32", "expected torch.float16")
        doubles = Run(OPTIMIZERS["torch.optim.Adam"], {**initial(), "head.weight": torch.zeros(105, dtype=torch.float64)})
        self.refused(doubles, "head.weight is torch.float64", "expected torch.float32, torch.bfloat16 or torch.float16")

    def test_files_that_are_no_whole_checkpoints_in_f32(self):
        def entry(header):
            return header["parameters"][3]

        def group(header):
            return header["groups"][1]

        def own(header):
            return group(header)["hyperparameters"]

        headers = [
            (lambda header: header.update(version=4), ["version 4", "expected at most 3"]),
            (lambda header: header.update(version=0), ["version 0", "expected at most 3"]),
            (lambda header: header.update({**version_1(header), "rule": "lion"}), ["the rule of group 0", "lion"]),
            (lambda header: group(header).update(rule="lion"), ["the rule of group 1", "lion"]),
            (lambda header: own(header).pop("epsilon"), ["the hyperparameters of group 1", "epsilon"]),
            (lambda header: own(header).update(momentum=bits(0.9)), ["the hyperparameters of group 1", "momentum"]),
            (lambda header: entry(header).update(state="q8"), ["head.weight has state in q8", "f32 state"]),
            (lambda header: entry(header).update(dtype="f8"), ["the dtype of head.weight is 'f8'", "f32, f16, bf16"]),
            (lambda header: entry(header).update(dtype="bf16"), ["the data type of head.weight", "bfloat16", "float32"]),
            (lambda header: entry(header).update(master_weights="f8"), ["the master_weights of head.weight is 'f8'"]),
            (lambda header: entry(header).update(master_weights="f32"), ["master.head.weight"]),
            (lambda header: entry(header).update(shard=[0, 210]), ["head.weight is a shard"]),
            (lambda header: entry(header).update(len=106), ["exp_avg.head.weight", "(105,)", "(106,)"]),
            (lambda header: entry(header).update(group=2), ["head.weight has group 2"]),
            (lambda header: header["parameters"].append(entry(header)), ["head.weight is listed twice"]),
        ]
        tensors = [
            (lambda tensors: tensors.pop("exp_avg_sq.head.weight"), ["exp_avg_sq.head.weight"]),
            (lambda tensors: tensors.update({"scales.embedding": torch.zeros(1)}), ["scales.embedding"]),
            (lambda tensors: tensors.update({"exp_avg.embedding": torch.zeros(136).double()}), ["float64"]),
        ]
        for change in [(header, None, said) for header, said in headers] + [(None, of, said) for of, said in tensors]:
            *changes, said = change
            with self.subTest(said=said):
                run = self.saved("torch.optim.Adam")
                self.change(*changes)
                self.refused(run, *said)
        run = self.saved("torch.optim.Adam")
        damaged = bytearray(self.path.read_bytes())
        damaged[-1] ^= 1
        self.path.write_bytes(damaged)
        self.refused(run, "damaged", "checksum")
        save_file({"exp_avg.embedding": torch.zeros(136)}, self.path)
        self.refused(run, "not a checkpoint of adamod")


class Documentation(unittest.TestCase):
    def test_the_table_of_rules_says_what_is_converted(self):
        """docs/rules.md, whose other columns tests/rules.rs compares with the crate: so states are those of the crate, too."""
        lines = (FIXTURE.parents[2] / "docs" / "rules.md").read_text().splitlines()
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        columns = next(row for row in table if row[0] == "form")
        rows = [dict(zip(columns, row)) for row in table if row[0].startswith("`") and len(row) == len(columns)]
        found = {}
        for row in rows:
            rule = row["form"].strip("`").split("-")[0]
            states = tuple(re.findall("`(.*?)`", row["states"]))
            self.assertEqual(row["converter"], "both ways" if rule in adamod_checkpoint.RULES else "no (1)", row["form"])
            found.setdefault(rule, set()).add(states)
        self.assertEqual(adamod_checkpoint.RULES.keys() - found.keys(), set())
        for rule, of in adamod_checkpoint.RULES.items():
            needed = sorted({name for name in of.states.values() if name is not None})
            choices = [dict(zip(needed, values)) for values in itertools.product([0.0, 1.0], repeat=len(needed))]
            states = {tuple(adamod_checkpoint.states_of(rule, choice)) for choice in choices}
            self.assertEqual(states, found[rule], rule)


if __name__ == "__main__":
    unittest.main()
