"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people.

Brenden Lake, Ruslan Salakhutdinov, Joshua Tenenbaum: Human-level concept learning through probabilistic program
induction. Science 2015.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from metarl.errors import InputError
from metarl.fewshot.data.classes import ImageSet, ImageTasks
from metarl.fewshot.data.packed import read_packed, unpacked

PACKED = "omniglot28.npz"
VARIABLE = "METARL_DATA"


@dataclass(frozen=True)
class Omniglot(ImageTasks):
    """Handwritten characters; the files are yours to bring."""

    root: Path | None = None

    train_rotations: bool = True
    test_rotations: bool = True

    def available(self) -> bool:
        return self.root is not None or VARIABLE in os.environ

    def load(self) -> ImageSet:
        root = self.root or Path(os.environ.get(VARIABLE, ""))
        for path in (root, root / PACKED, root / "omniglot" / PACKED):
            if path.is_file():
                return unpacked(read_packed(path), "split")
        raise InputError(f"task.root = {str(root)!r}: holds no {PACKED}")
