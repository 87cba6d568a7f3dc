"""Runs an exported policy with ONNX Runtime and NumPy alone.

    python load_onnx.py cql-a6-s42-d42.onnx 31 32          state indices
    python load_onnx.py cql-a6-s42-d42.onnx -0.5,0.25      one vector, or several
    python load_onnx.py cql-a6-s42-d42.onnx -0.5,0.25:1,0,1   for a policy trained with masks: the actions that exist
"""

import json
import sys

import numpy as np
import onnxruntime


def main(path: str, *words: str) -> None:
    policy = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(policy.get_modelmeta().custom_metadata_map["metadata.json"])
    kind, size = about["observations"]["kind"], about["observations"]["size"]
    if kind == "index":
        observations = np.array([int(word) for word in words], dtype=np.int64)
        fits = ((0 <= observations) & (observations < size)).all()  # not every runtime refuses one
    else:
        dtype = about["observations"].get("dtype", "float32")
        observations = np.array([[float(x) for x in word.split(":")[0].split(",")] for word in words], dtype=dtype)
        fits = observations.shape[1:] == (size,) and np.isfinite(observations).all()  # the policy would act on NaN
    inputs = {"observations": observations}
    if about.get("mask"):
        masks = [[int(x) for x in word.partition(":")[2].split(",") if x] for word in words]
        if any(len(mask) != len(about["actions"]) or not any(mask) for mask in masks):
            sys.exit(f"error: after a colon give {len(about['actions'])} times 1 or 0: whether each action exists.")
        inputs["mask"] = np.array(masks, dtype=bool)
    if not fits:
        known = f"a state from 0 to {size - 1}" if kind == "index" else f"{size} finite numbers"
        sys.exit(f"error: an observation is {known}.")
    outputs, actions = policy.run(["outputs", "actions"], inputs)
    for word, row, action in zip(words, outputs, actions):
        print(word, about["actions"][action], " ".join(f"{x:.4f}" for x in row))


main(*sys.argv[1:])
