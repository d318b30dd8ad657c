#!/usr/bin/env python3
"""Tests adamod_checkpoint.py with PyTorch alone, without the crate. examples/pytorch/README.md says how to run them."""

import copy
import pathlib
import tempfile
import unittest

import torch
from safetensors.torch import save_file

import adamod_checkpoint
from adamod_checkpoint import FORMULAS, bits, formula_of
from there_and_back import AUTHORS, FIXTURE, RULES, Run, gradients, initial

# After 10 steps every parameter has state. After 4 steps the bias has none.
STEPS, STEPS_WITHOUT_BIAS = 10, 4

OPTIMIZERS = {
    **RULES,
    "coupled, up": lambda groups: torch.optim.Adam(groups, lr=1e-2, maximize=True),
    "decoupled by an option": lambda groups: torch.optim.Adam(groups, lr=1e-2, decoupled_weight_decay=True),
    "decoupled, up": lambda groups: torch.optim.AdamW(groups, lr=1e-2, maximize=True),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "SGD, up": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, maximize=True),
    "SGD without momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.0),
}
OTHER_VALUES = {"lr": 0.5, "betas": (0.5, 0.5), "beta3": 0.5, "eps": 0.5, "momentum": 0.5, "weight_decay": 0.5}


def frozen(value):
    """A copy that equals another one only if types, shapes and bits are the same."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
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
                        group.update({key: value for key, value in OTHER_VALUES.items() if key in group})
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

    def test_version_1_is_the_same_checkpoint(self):
        for optimizer in OPTIMIZERS:
            with self.subTest(optimizer=optimizer):
                run = self.saved(optimizer)
                second = adamod_checkpoint.read(self.path)
                header, tensors = second
                adamod_checkpoint.write(self.path, version_1(header), tensors)
                self.assertEqual(frozen(adamod_checkpoint.read(self.path)), frozen(second))
                other = Run(OPTIMIZERS[optimizer], initial())
                adamod_checkpoint.load(self.path, other.optimizer, other.names)
                self.assertEqual(frozen(other.optimizer.state_dict()), frozen(run.optimizer.state_dict()))

    def test_the_fixture_is_the_same_in_both_versions(self):
        (one, states), (two, expected) = [
            adamod_checkpoint.read(FIXTURE / name) for name in ["checkpoint.safetensors", "version-2.safetensors"]
        ]
        for header in [one, two]:
            del header["adapter"]
        self.assertEqual(frozen((one, states)), frozen((two, expected)))
        self.assertEqual([formula_of(group) for group in one["groups"]], ["authors"] * 2)

    def test_the_largest_step_count_is_kept(self):
        for optimizer, most in [("torch.optim.Adam", 1 << 24), ("adamod.AdaMod", 1 << 40)]:
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
        ]
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
            ("torch.optim.SGD", lambda header: group(header).update(weight_decay="decoupled"), ["group 0 ", "decoupled"]),
            ("torch.optim.SGD", lambda header: group(header, 1).update(maximize=True), ["maximize of group 1"]),
        ]
        for optimizer, change, said in cases:
            with self.subTest(optimizer=optimizer, said=said):
                run = self.saved(optimizer)
                self.change(change)
                self.refused(run, *said)

    def test_groups_with_different_rules(self):
        def change_header(header):
            header["groups"][1].update(rule="sgd", hyperparameters={"momentum": bits(0.9)})

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
        for optimizer in ["torch.optim.Adam", "torch.optim.AdamW"]:
            with self.subTest(optimizer=optimizer):
                run = self.saved(optimizer)
                self.change(lambda header: header["parameters"][3].update(step=(1 << 24) + 1))
                self.refused(run, "the step count of head.weight", "16777217", "16777216")

    def test_options_without_a_counterpart(self):
        cases = {
            "amsgrad": lambda groups: torch.optim.Adam(groups, amsgrad=True),
            "nesterov": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
            "dampening": lambda groups: torch.optim.SGD(groups, momentum=0.9, dampening=0.5),
        }
        for option, make_optimizer in cases.items():
            with self.subTest(option=option):
                run = Run(make_optimizer, initial())
                run.steps(gradients(), 0, STEPS)
                self.saved("torch.optim.SGD" if option != "amsgrad" else "torch.optim.Adam")
                self.refused(run, option)
                self.path.unlink()
                with self.assertRaisesRegex(ValueError, option):
                    adamod_checkpoint.save(run.optimizer, run.names, self.path)
                self.assertFalse(self.path.exists())

    def test_optimizers_of_the_same_name(self):
        for name in ["Adam", "AdaMod"]:
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
        self.refused(halves, "head.weight is torch.float16", "float32")

    def test_files_that_are_no_whole_checkpoints_in_f32(self):
        def entry(header):
            return header["parameters"][3]

        def group(header):
            return header["groups"][1]

        def own(header):
            return group(header)["hyperparameters"]

        headers = [
            (lambda header: header.update(version=3), ["version 3", "expected at most 2"]),
            (lambda header: header.update(version=0), ["version 0", "expected at most 2"]),
            (lambda header: header.update({**version_1(header), "rule": "lion"}), ["the rule of group 0", "lion"]),
            (lambda header: group(header).update(rule="lion"), ["the rule of group 1", "lion"]),
            (lambda header: own(header).pop("epsilon"), ["the hyperparameters of group 1", "epsilon"]),
            (lambda header: own(header).update(momentum=bits(0.9)), ["the hyperparameters of group 1", "momentum"]),
            (lambda header: entry(header).update(state="q8"), ["head.weight is not in f32"]),
            (lambda header: entry(header).update(dtype="bf16"), ["head.weight is not in f32"]),
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


if __name__ == "__main__":
    unittest.main()
