"""Names, options and refusals of closed-form probes and similarities."""

from __future__ import annotations

import pytest

from fastprobe.errors import InputError
from fastprobe.protocol.probes import CCA, Procrustes, Ridge, Similarity, parse_probe, parse_similarity, probe_from_dict


@pytest.mark.parametrize(
    ("probe", "name"),
    [
        (Ridge(), "ridge"),
        (Ridge(alpha=[10, 0.1, 1]), "ridge:alpha=0.1,1,10"),
        (Ridge(alpha=1 / 3, csls=5, fit_on="clip"), "ridge:alpha=0.3333333333333333:csls=5:fit_on=clip"),
        (Procrustes(), "procrustes"),
        (Procrustes(dim=64), "procrustes:dim=64"),
        (CCA(shrinkage=0.25, csls=10), "cca:shrinkage=0.25:csls=10"),
    ],
)
def test_a_probe_is_read_back_from_its_name_and_from_its_values(probe, name):
    assert probe.name == name
    assert parse_probe(name) == probe
    assert probe_from_dict(probe.to_dict()) == probe


@pytest.mark.parametrize("name", ["cka", "rsa", "knn", "knn:k=3", "protest"])
def test_a_similarity_is_read_back(name):
    assert parse_similarity(name).name == name
    assert probe_from_dict(parse_similarity(name).to_dict()) == parse_similarity(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rigde", "ridge, procrustes, cca"),
        ("ridge:alpa=1", "alpha, csls, fit_on"),
        ("ridge:alpha=-1", "above 0"),
        ("ridge:alpha=1,1", "twice"),
        ("ridge:alpha", "name=value"),
        ("ridge:alpha=x", "a number"),
        ("procrustes:dim=0", "at least 1"),
        ("cca:dim=3:dim=4", "twice"),
        ("cca:shrinkage=2", "0, 1"),
        ("procrustes:dim=1,2", "whole number"),
        ("ridge:fit_on=text", "centroid, clip"),
    ],
)
def test_a_wrong_probe_is_refused_by_name(text, message):
    with pytest.raises(InputError, match=message):
        parse_probe(text)


def test_a_wrong_similarity_is_refused():
    with pytest.raises(InputError, match="cka, rsa, knn, protest"):
        parse_similarity("kca")
    with pytest.raises(InputError, match="no option 'k'"):
        parse_similarity("cka:k=3")
    with pytest.raises(InputError, match="knn alone"):
        Similarity(kind="rsa", k=3)
    with pytest.raises(InputError, match="ridge"):
        probe_from_dict({"alpha": 1.0})
