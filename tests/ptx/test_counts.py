"""What a step asks of the memory and the processor stays within the committed table."""

from __future__ import annotations

import json

import pytest

from ptx import count


@pytest.mark.parametrize("name", ["A/onchip/tf32", "A/gram/tf32", "B/stream/tf32", "B/resident/tf32"])
def test_a_step_stays_within_its_budget(name):
    allowed, got = json.loads(count.TABLE.read_text())[f"{name}/cc9.0"], count.per_step(name)
    assert got["barriers"] <= allowed["barriers"]
    assert got["instructions"] <= allowed["instructions"]
    assert got["spill_bytes"] <= allowed["spill_bytes"]
    assert got["l2_kb"] <= 1.05 * allowed["l2_kb"]
    assert got["wavefronts"] <= 1.02 * allowed["wavefronts"]
