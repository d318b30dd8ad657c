"""Takes optimizer steps with a Python package, for a process that computes the gradients.

The experiments run it as `python -c SCRIPT PACKAGE`. It reads calls from standard input and answers on standard output. A call, like an
answer, is a line of JSON, and after it `numbers` f32 numbers, little-endian:

    start    labels, lengths, learning_rate, betas, epsilon, weight_decay; the values of all parameters  ->  versions
    step     learning_rate; the gradients of all parameters                                              ->  the values of all parameters
    save                                                                                                 ->  state, as text
    restore  state; learning_rate, betas, epsilon, weight_decay, which those of the state replace        ->  labels

An answer with `error` is the last one.
"""

import base64
import importlib.metadata
import io
import json
import logging
import os
import sys
import types
from typing import Any, BinaryIO

# Before Triton is imported: its kernels run in an interpreter, so no GPU is needed.
os.environ["TRITON_INTERPRET"] = "1"

try:
    import torch
except ImportError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}", "numbers": 0}), flush=True)
    sys.exit(1)

Tensors = list[torch.Tensor]

F32_STATE_BELOW = 256
"""Tensors with fewer elements keep f32 state, as in the experiments. The package's default is 4,096, more than most of the tensors have."""


class BitsAndBytes:
    """AdamW8bit of bitsandbytes, which quantizes with native code on a CPU and computes the step in torch. Values and gradients are f32."""

    packages = ("bitsandbytes", "torch")

    def parameters(self, values: Tensors) -> Tensors:
        return values

    def tensors(self, parameters: Tensors, lengths: list[int]) -> Tensors:
        return parameters

    def optimizer(self, parameters: Tensors, settings: dict[str, Any]) -> torch.optim.Optimizer:
        # The import warns that a matrix-product kernel is missing, which optimizers do not need.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, min_8bit_size=F32_STATE_BELOW, **settings)


class FlashOptim:
    """FlashAdamW of FlashOptim: values and gradients in bf16, 24-bit master weights, 8-bit state of all tensors.

    The package needs CUDA. Here Triton's interpreter runs the package's kernels for quantization and for master weights, and torch
    computes the step in between, for which the package has an option. Its fused kernel is left out, because the interpreter rounds to
    bf16 differently.

    All tensors are one, because the interpreter takes milliseconds for each block of numbers. Each tensor starts a group of 32 numbers,
    which share a scale, so its numbers are the same as if it were alone.
    """

    packages = ("flashoptim", "torch", "triton")
    GROUP = 32

    def __init__(self) -> None:
        import triton.language as tl
        from flashoptim import optimizers

        class Cuda:
            @staticmethod
            def is_available() -> bool:
                return True

        class Torch:
            cuda = Cuda()

            def __getattr__(self, name: str) -> Any:
                return getattr(torch, name)

        def set_data(tensor: Any, data: torch.Tensor) -> None:
            tensor._data = None
            form = {"signed": tensor._signed, "sqrt": tensor._sqrt, "softsign": tensor._softsign}
            tensor._quantized, tensor._scales = optimizers.quantize(data, **form)

        # What the package asks of CUDA: whether it is there, how large it is, a function of its libraries, and which block size is fastest.
        # The largest one is, in the interpreter.
        optimizers.torch = Torch()
        optimizers._MaybeQuantizedTensor.set_data = set_data
        optimizers._get_sm_count = lambda device=None: 1
        optimizers.libdevice = types.SimpleNamespace(
            copysign=lambda size, sign: tl.where(sign < 0, -tl.abs(size), tl.abs(size))
        )
        for kernel in (optimizers._triton_quantize_kernel, optimizers._triton_dequantize_kernel):
            kernel.configs = kernel.configs[-1:]

    def parameters(self, values: Tensors) -> Tensors:
        padded = [torch.nn.functional.pad(tensor, (0, -len(tensor) % self.GROUP)) for tensor in values]
        return [torch.cat(padded).to(torch.bfloat16)]

    def tensors(self, parameters: Tensors, lengths: list[int]) -> Tensors:
        start, tensors = 0, []
        for length in lengths:
            tensors.append(parameters[0][start : start + length].to(torch.float32))
            start += length + -length % self.GROUP
        return tensors

    def optimizer(self, parameters: Tensors, settings: dict[str, Any]) -> torch.optim.Optimizer:
        from flashoptim import FlashAdamW

        return FlashAdamW(parameters, quantize=True, master_weight_bits=24, fused=False, **settings)


PACKAGES = {"bitsandbytes": BitsAndBytes, "flashoptim": FlashOptim}


class Stepper:
    def __init__(self, package: Any) -> None:
        self.package = package
        versions = [f"{name} {importlib.metadata.version(name)}" for name in package.packages]
        self.versions = ", ".join(versions)

    def begin(self, call: dict[str, Any], parameters: Tensors) -> None:
        self.labels, self.lengths = call["labels"], call["lengths"]
        self.parameters = [torch.nn.Parameter(tensor) for tensor in parameters]
        settings = {
            "lr": call["learning_rate"],
            "betas": tuple(call["betas"]),
            "eps": call["epsilon"],
            "weight_decay": call["weight_decay"],
        }
        self.optimizer = self.package.optimizer(self.parameters, settings)

    def start(self, call: dict[str, Any], numbers: torch.Tensor) -> tuple[dict[str, Any], Tensors]:
        self.begin(call, self.package.parameters([*numbers.clone().split(call["lengths"])]))
        return {"versions": self.versions}, []

    def step(self, call: dict[str, Any], numbers: torch.Tensor) -> tuple[dict[str, Any], Tensors]:
        for group in self.optimizer.param_groups:
            group["lr"] = call["learning_rate"]
        gradients = self.package.parameters([*numbers.split(self.lengths)])
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return {}, self.package.tensors([parameter.detach() for parameter in self.parameters], self.lengths)

    def save(self, call: dict[str, Any], numbers: torch.Tensor) -> tuple[dict[str, Any], Tensors]:
        saved = {
            "versions": self.versions,
            "labels": self.labels,
            "lengths": self.lengths,
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
        }
        file = io.BytesIO()
        torch.save(saved, file)
        return {"state": base64.b64encode(file.getvalue()).decode()}, []

    def restore(self, call: dict[str, Any], numbers: torch.Tensor) -> tuple[dict[str, Any], Tensors]:
        saved = torch.load(io.BytesIO(base64.b64decode(call["state"])), weights_only=True)
        if saved["versions"] != self.versions:
            raise ValueError(f"saved with {saved['versions']}, cannot go on with {self.versions}")
        self.begin({**call, "labels": saved["labels"], "lengths": saved["lengths"]}, saved["parameters"])
        self.optimizer.load_state_dict(saved["optimizer"])
        return {"labels": self.labels}, []


def answer(output: BinaryIO, header: dict[str, Any], tensors: Tensors) -> None:
    numbers = b"".join(tensor.numpy().astype("<f4").tobytes() for tensor in tensors)
    output.write(json.dumps({**header, "numbers": len(numbers) // 4}).encode() + b"\n" + numbers)
    output.flush()


def main(package: str) -> None:
    # Whatever a package prints, in Python or not, goes to standard error.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    try:
        stepper = Stepper(PACKAGES[package]())
        for line in sys.stdin.buffer:
            call = json.loads(line)
            bytes_ = bytearray(sys.stdin.buffer.read(4 * call["numbers"]))
            numbers = torch.frombuffer(bytes_, dtype=torch.float32) if bytes_ else torch.empty(0)
            header, tensors = getattr(stepper, call["call"])(call, numbers)
            answer(output, header, tensors)
    except Exception as error:
        answer(output, {"error": f"{type(error).__name__}: {error}"}, [])


if __name__ == "__main__":
    main(sys.argv[1])
