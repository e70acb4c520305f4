"""Tiny experiments, and ways to look at what a run stored."""

from __future__ import annotations

import json

import numpy as np

from fastprobe.protocol.config import ProbeConfig
from fastprobe.runs import run
from fastprobe.runs.engines import Finished
from fastprobe.tables.simulate import simulate_pair

NAMES = [f"class {i:02d}" for i in range(8)]
PROBE = ProbeConfig(dim=2, steps=2)


def tables(n_audio=2):
    """One text table and some audio tables."""
    text = simulate_pair(NAMES, alignment=0.8, clips=2, text_width=5, audio_width=4)[0]
    audio = [simulate_pair(NAMES, alignment=0.8, clips=2, text_width=5, audio_width=4, number=i)[1] for i in range(n_audio)]
    return text, audio


def save_tables(folder, n_audio=2):
    """The tables as files; arguments of `fastprobe run`."""
    text, audio = tables(n_audio)
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for side, name, table in (("--text", "text", text), *(("--audio", f"audio{i}", a) for i, a in enumerate(audio))):
        table.meta["name"] = name
        table.save(folder / f"{name}.npz")
        out += [side, str(folder / f"{name}.npz")]
    return [*out, "--no-baselines"]


def experiment(permutations=40, *, text=None, audio=None, splits=2, **kwargs):
    """A run of two pairs, quick enough to be done hundreds of times."""
    given = tables()
    return run.prepare(
        text if text is not None else given[0],
        audio if audio is not None else given[1],
        permutations=permutations,
        splits=splits,
        train_fraction=0.5,
        probe=kwargs.pop("probe", PROBE),
        backend=kwargs.pop("backend", "reference"),
        baselines=kwargs.pop("baselines", False),
        **kwargs,
    )


def sized(size):
    """An engine that computes units of one size, in order."""

    def engine(task, work, pace):
        while unit := work.take(size):
            yield Finished(unit, task(unit), "test", 0.0)

    return engine


def copying(whole, size):
    """An engine that takes the rows from a finished run instead of training."""
    columns = {unit.cell: whole.read(unit) for unit in whole.done()}

    def engine(task, work, pace):
        per = task.experiment.plan.jobs(0)
        while unit := work.take(size):
            part = slice(unit.start * per, unit.stop * per)
            yield Finished(unit, {name: values[part] for name, values in columns[unit.cell].items()}, "test", 0.0)

    return engine


def finish(exp, store, engine=None, **kwargs):
    """Run to the end."""
    for _ in run.execute(exp, store, engine or sized(16), **kwargs):
        pass
    return store


def rows(store):
    """All that is stored, row by row in the order of the plan, with the bytes of every value. No job may be there twice."""
    parts = []
    for unit in store.done():
        columns = store.read(unit)
        table = np.rec.fromarrays([np.full(len(columns["split"]), unit.cell), *columns.values()], names=["pair", *columns])
        parts.append(table)
    table = np.concatenate(parts)
    table = table[np.lexsort((table["seed"], table["split"], table["permutation"], table["pair"]))]
    keys = table[["pair", "permutation", "split", "seed"]]
    assert len(np.unique(keys)) == len(keys), "a job is stored twice"
    return table


def same_rows(store, other):
    """Bit for bit."""
    a, b = rows(store), rows(other)
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def edit_manifest(folder, change):
    """Apply a function to the manifest's dict."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
