#!/usr/bin/env python3
"""Stands in for optimizer.py in tests, without any package: SGD with momentum 0.5.

It fails where the learning rate is 99, and ends where it is 98.
"""

import array
import json
import sys

labels, lengths, values, momentum = [], [], array.array("f"), array.array("f")

for line in sys.stdin.buffer:
    call = json.loads(line)
    numbers = array.array("f", sys.stdin.buffer.read(4 * call["numbers"]))
    answer, answered = {}, array.array("f")
    match call["call"]:
        case "start":
            labels, lengths, values = call["labels"], call["lengths"], numbers
            momentum = array.array("f", [0.0] * len(values))
            answer = {"versions": "stand-in 1"}
        case "step" if call["learning_rate"] == 98.0:
            sys.exit()
        case "step" if call["learning_rate"] == 99.0:
            answer = {"error": "ValueError: too fast"}
        case "step":
            for i, gradient in enumerate(numbers):
                momentum[i] = 0.5 * momentum[i] + gradient
                values[i] -= call["learning_rate"] * momentum[i]
            answered = values
        case "save":
            answer = {"state": json.dumps([labels, lengths, list(values), list(momentum)])}
        case "restore":
            labels, lengths, *saved = json.loads(call["state"])
            values, momentum = (array.array("f", numbers) for numbers in saved)
            answer = {"labels": labels}
    sys.stdout.buffer.write(json.dumps({**answer, "numbers": len(answered)}).encode() + b"\n" + answered.tobytes())
    sys.stdout.buffer.flush()
