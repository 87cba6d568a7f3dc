"""Runs an exported policy with PyTorch alone.

    python load_torch.py cql-a6-s42-d42.pt2 31 32          state indices
    python load_torch.py cql-a6-s42-d42.pt2 -0.5,0.25      one vector, or several
    python load_torch.py cql-a6-s42-d42.pt2 -0.5,0.25:1,0,1   for a policy trained with masks: the actions that exist

torch.export.load can unpickle: read only files whose origin is known.
"""

import json
import sys

import torch


def main(path: str, *words: str) -> None:
    extra = {"metadata.json": ""}
    policy = torch.export.load(path, extra_files=extra).module()
    about = json.loads(extra["metadata.json"])
    kind, size = about["observations"]["kind"], about["observations"]["size"]
    if kind == "index":
        observations = torch.tensor([int(word) for word in words], dtype=torch.int64)
        fits = bool(((0 <= observations) & (observations < size)).all())
    else:
        dtype = getattr(torch, about["observations"].get("dtype", "float32"))
        observations = torch.tensor([[float(x) for x in word.split(":")[0].split(",")] for word in words], dtype=dtype)
        fits = observations.shape[1:] == (size,) and bool(observations.isfinite().all())  # the policy would act on NaN
    inputs = [observations]
    if about.get("mask"):
        masks = [[int(x) for x in word.partition(":")[2].split(",") if x] for word in words]
        if any(len(mask) != len(about["actions"]) or not any(mask) for mask in masks):
            sys.exit(f"error: after a colon give {len(about['actions'])} times 1 or 0: whether each action exists.")
        inputs.append(torch.tensor(masks, dtype=torch.bool))
    if not fits:
        known = f"a state from 0 to {size - 1}" if kind == "index" else f"{size} finite numbers"
        sys.exit(f"error: an observation is {known}.")
    outputs, actions = policy(*inputs)
    for word, row, action in zip(words, outputs, actions):
        print(word, about["actions"][action], " ".join(f"{x:.4f}" for x in row.tolist()))


main(*sys.argv[1:])
