"""Functions of one task, lifted over the meta-batch."""

from __future__ import annotations

from metarl.gradients.lifting import chunk_length


def test_chunks_have_one_size() -> None:
    assert [chunk_length(20, limit) for limit in (None, 1, 3, 4, 7, 19, 99)] == [20, 1, 2, 4, 5, 10, 20]
    assert chunk_length(7, 4) == 1
