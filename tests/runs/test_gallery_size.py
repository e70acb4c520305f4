"""`gallery_size` and `clips`: fewer rivals, fewer clips, in every backend and control; nested as they grow."""

import itertools
import json

import numpy as np
import pytest

from fastprobe import InputError, ProbeConfig, permutation_test
from fastprobe.protocol.plan import Unit
from fastprobe.runs.audit import examine, verify
from fastprobe.runs.experiment import prepare
from fastprobe.runs.run import execute, open_store
from fastprobe.tables.embeddings import EmbeddingTable, keep_clips
from fastprobe.tables.simulate import simulate_pair

NAMES = [f"class {i}" for i in range(20)]
TEXT, AUDIO = simulate_pair(NAMES, alignment=0.8, clips=6, text_width=12, audio_width=9, seed=1)
PROBES = [
    ProbeConfig(dim=4, steps=5, sampling="centroid"),
    ProbeConfig(dim=4, steps=5, csls=3),
    "ridge",
    "procrustes:dim=4",
    "cca:dim=3",
    "ridge:csls=3",
]


def made(**options):
    options = {"permutations": 7, "splits": 2, "baselines": False, "backend": "cpp", "probe": PROBES, **options}
    return prepare(TEXT, AUDIO, **options)


def ranks_by_hand(run, cell, split, permutation):
    """From the scores of the definition: rivals in the gallery that score at least the true class."""
    from fastprobe.kernels.ranking import csls_scores
    from fastprobe.kernels.reference import norm
    from fastprobe.runs.outcomes import closed_form

    gallery = np.union1d(run.split(split).test, run.rivals(split))
    relabelling = run.relabellings(permutation, permutation + 1)[0]
    if isinstance(run.probe_of(cell), ProbeConfig):
        batch = run.batch(cell, split, 0, permutation, permutation + 1)
        result = run.trainer(cell, "reference")(batch, "cpu", heads=True)
        a = norm(batch.text[relabelling] @ result.text_heads[0])[0]
        b = norm(batch.audio[batch.queries] @ result.audio_heads[0])[0]
        scores, labels = csls_scores(b @ a.T, batch.config.csls), batch.labels[batch.queries]
    else:
        form = closed_form(run, run.probe_of(cell), cell, split, "reference")
        scores, labels = form.scores(relabelling), form.labels
    true = scores[np.arange(len(labels)), labels][:, None]
    return 1 + (scores[:, gallery] >= true - 1e-12).sum(axis=1) - 1


@pytest.mark.parametrize("backend", ["reference", "cpp", "torch"])
@pytest.mark.parametrize("size", [6, 11, 20])
def test_ranks_are_among_the_gallery_alone(backend, size):
    if backend == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    run = made(gallery_size=size)
    for cell in range(len(PROBES)):
        for permutation in (0, 3):
            found = run.outcomes(cell, 1, 0, permutation, permutation + 1, backend)
            assert found.ranks_unseen is None and found.ranks.max() <= size
            by_hand = ranks_by_hand(run, cell, 1, permutation)
            # One rank in a hundred may turn on a near tie between float32 and float64.
            assert np.mean(found.ranks[0] != by_hand) <= 0.05, (cell, permutation)


def test_a_smaller_gallery_lies_in_a_larger_one_and_holds_the_test_classes():
    runs = [made(gallery_size=n) for n in (6, 9, 14, 20)]
    for split in range(2):
        galleries = [set(np.union1d(r.split(split).test, r.rivals(split))) for r in runs]
        assert [len(g) for g in galleries] == [6, 9, 14, 20] and set(runs[0].split(split).test) == galleries[0]
        assert all(a < b for a, b in itertools.pairwise(galleries))
    assert set(runs[1].rivals(0)) != set(runs[1].rivals(1))


def test_the_whole_gallery_is_the_run_without_one():
    plain, whole = made().compute(Unit(0, 0, 8)), made(gallery_size=20).compute(Unit(0, 0, 8))
    assert set(plain) - set(whole) == {n for n in plain if n.endswith("_unseen")}
    for name in whole:
        np.testing.assert_array_equal(plain[name], whole[name])


def test_the_smallest_gallery_is_that_of_the_unseen_classes():
    plain, small = made().compute(Unit(0, 0, 8)), made(gallery_size=6, k=[1, 3]).compute(Unit(0, 0, 8))
    for k in (1, 3):
        np.testing.assert_allclose(small[f"acc@{k}_macro"], plain[f"acc@{k}_unseen"])
    np.testing.assert_allclose(small["mean_rank"], plain["mean_rank_unseen"])


@pytest.mark.parametrize("control", ["permute", "gaussian", "frozen"])
def test_controls_rank_in_the_gallery_too(control):
    run = made(gallery_size=9, control=control, splits=1, probe=PROBES[:1])
    found = run.outcomes(0, 0, 0, 0, 6)
    assert found.ranks.min() >= 1 and found.ranks.max() <= 9
    observed = made(gallery_size=9, splits=1, probe=PROBES[:1]).outcomes(0, 0, 0, 0, 1)
    np.testing.assert_array_equal(found.ranks[0], observed.ranks[0])
    whole = made(control=control, splits=1, probe=PROBES[:1]).outcomes(0, 0, 0, 0, 6)
    assert (found.ranks <= whole.ranks).all() and (found.ranks >= whole.ranks_unseen).all()


def test_a_run_is_stored_verified_and_told(tmp_path):
    AUDIO.save(tmp_path / "a.npz")
    TEXT.save(tmp_path / "t.npz")
    result = permutation_test(
        tmp_path / "t.npz", tmp_path / "a.npz", permutations=9, splits=2, gallery_size=9, clips=4, backend="cpp",
        probe=ProbeConfig(dim=4, steps=5), out=tmp_path / "run",
    )  # fmt: skip
    assert result.chance == pytest.approx(3 / 9)
    identity = json.loads((tmp_path / "run/manifest.json").read_text())["identity"]
    assert identity["gallery_size"] == 9 and identity["clips"] == 4 and not [c for c in identity["columns"] if c.endswith("_unseen")]
    assert examine(tmp_path / "run", check=True)["inputs"] == []
    assert verify(tmp_path / "run", sample=12, backend="cpp")["agrees"]
    import pyarrow.parquet as pq

    observed = pq.read_table(tmp_path / "run/observed.parquet").to_pydict()
    lists = pq.read_table(tmp_path / "run/retrieved.parquet").to_pydict()
    assert max(observed["rank"]) <= 9 and len(observed["rank"]) == 2 * 2 * 6 * 4 / 2 * (2 if len(set(observed["text"])) > 1 else 1)
    for split in (0, 1):
        assert len({r for r, s in zip(lists["retrieved"], lists["split"]) if s == split}) <= 9
    with pytest.raises(InputError, match="`gallery_size`"):
        permutation_test(tmp_path / "t.npz", tmp_path / "a.npz", permutations=9, splits=2, gallery_size=10, clips=4, backend="cpp",
                         probe=ProbeConfig(dim=4, steps=5), out=tmp_path / "run", resume=True)  # fmt: skip


def test_fewer_clips_lie_among_more():
    kept = [keep_clips(AUDIO, n, 3) for n in (1, 3, 6)]
    assert [len(k) for k in kept] == [20, 60, 120]
    ids = [set(k.ids) for k in kept]
    assert ids[0] < ids[1] < ids[2] and set(keep_clips(AUDIO, 1, 4).ids) != ids[0]
    few = EmbeddingTable(AUDIO.vectors[:7], AUDIO.labels[:7])
    assert len(keep_clips(few, 5, 0)) == 5 + 1
    assert len(made(clips=2).pairs[0].labels) == 40


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gallery_size": 5}, "texts of all 6 test classes.*got 5"),
        ({"gallery_size": 21}, "there are 20 in all; got 21"),
        ({"gallery_size": 0}, "at least 1"),
        ({"gallery_size": 9, "statistic": "acc@3_unseen"}, "whatever `gallery_size` says"),
        ({"gallery_size": 9, "k": [10]}, "`k`"),
        ({"clips": 7}, "`clips` must be at most 6"),
        ({"clips": 1.5}, "whole number"),
        ({"clips": True}, "whole number"),
    ],
)
def test_what_cannot_be_is_refused(options, match):
    with pytest.raises(InputError, match=match):
        made(**options)


def test_nested_choices_rank_in_the_gallery_too(tmp_path):
    run = made(gallery_size=12, select="nested", probe=["ridge", "procrustes"])
    store = open_store(run, None)
    for _ in execute(run, store):
        pass
    assert np.isfinite(run.compute(Unit(0, 0, 3))["inner"]).all()
