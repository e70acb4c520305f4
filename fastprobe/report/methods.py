"""A methods paragraph with every number filled in, the references it cites, and the caveats."""

from __future__ import annotations

import re
from typing import Any

from ..kernels import BACKENDS
from ..protocol.controls import CONTROLS
from ..protocol.metrics import UNSEEN, is_unseen, metric_of, statistic_ks
from ..protocol.optimizers import OPTIMIZERS
from ..protocol.plan import train_count
from ..protocol.probes import PROBES, SIMILARITIES, is_similarity, is_trained
from ..runs.references import role_of
from ..statistics.sequential import parse_stop
from .data import RunData, n_classes_of
from .text import listing, number, plural, pvalue

REFERENCES = {
    "Ngo & Kim 2024": "J. Ngo and Y. Kim. What do language models hear? Probing for auditory representations in language models. "
    "arXiv:2402.16998, 2024.",
    "Zhang et al. 2024": "Y. Zhang et al. Adam-mini: use fewer learning rates to gain more. arXiv:2406.16793, 2024.",
    "Kingma & Ba 2015": "D. P. Kingma and J. Ba. Adam: a method for stochastic optimization. ICLR, 2015.",
    "Phipson & Smyth 2010": "B. Phipson and G. K. Smyth. Permutation p-values should never be zero. Statistical Applications in "
    "Genetics and Molecular Biology 9(1), article 39, 2010.",
    "Hemerik & Goeman 2018": "J. Hemerik and J. Goeman. Exact testing with random permutations. TEST 27, 811-825, 2018; arXiv:1411.7565.",
    "Clopper & Pearson 1934": "C. J. Clopper and E. S. Pearson. The use of confidence or fiducial limits illustrated in the case "
    "of the binomial. Biometrika 26, 404-413, 1934.",
    "Westfall & Young 1993": "P. H. Westfall and S. S. Young. Resampling-based multiple testing. Wiley, 1993.",
    "Holm 1979": "S. Holm. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, 65-70, 1979.",
    "Benjamini & Hochberg 1995": "Y. Benjamini and Y. Hochberg. Controlling the false discovery rate. Journal of the Royal "
    "Statistical Society B 57, 289-300, 1995.",
    "Nadeau & Bengio 2003": "C. Nadeau and Y. Bengio. Inference for the generalization error. Machine Learning 52, 239-281, 2003.",
    "Efron & Tibshirani 1993": "B. Efron and R. J. Tibshirani. An introduction to the bootstrap. Chapman & Hall, 1993.",
    "Besag & Clifford 1991": "J. Besag and P. Clifford. Sequential Monte Carlo p-values. Biometrika 78, 301-304, 1991.",
    "Fischer & Ramdas 2024": "L. Fischer and A. Ramdas. Sequential Monte-Carlo testing by betting. arXiv:2401.07365, 2024.",
    "Robbins 1970": "H. Robbins. Statistical methods related to the law of the iterated logarithm. Annals of Mathematical "
    "Statistics 41, 1397-1409, 1970.",
    "Hewitt & Liang 2019": "J. Hewitt and P. Liang. Designing and interpreting probes with control tasks. EMNLP, 2019.",
    "Jackson 1995": "D. A. Jackson. PROTEST: a PROcrustean randomization TEST of community environment concordance. Ecoscience 2, "
    "297-303, 1995.",
    "Peres-Neto & Jackson 2001": "P. R. Peres-Neto and D. A. Jackson. How well do multivariate data sets match? Oecologia 129, "
    "169-178, 2001.",
    "Knijnenburg et al. 2009": "T. A. Knijnenburg et al. Fewer permutations, more accurate P-values. Bioinformatics 25, i161-i168, 2009.",
    "Peschel et al. 2026": "S. Peschel et al. permApprox: a general framework for accurate permutation p-value approximation. "
    "arXiv:2602.22975, 2026.",
    "Freedman & Lane 1983": "D. Freedman and D. Lane. A nonstochastic interpretation of reported significance levels. Journal of Business "
    "& Economic Statistics 1, 292-298, 1983.",
    "Berger 1982": "R. L. Berger. Multiparameter hypothesis testing and acceptance sampling. Technometrics 24, 295-300, 1982.",
    "Okabe & Ito 2008": "M. Okabe and K. Ito. Color universal design, 2008.",
}

# What is known of audio models: a pattern on the name or meta, and what to say.
_HEARD = (
    (
        r"passt.*fsd50k|fsd50k.*passt",
        "{name} looks like PaSST fine-tuned on FSD50K. On FSD50K it was trained with the labels "
        "of the "
        "very classes held out here: those results are leaked and show nothing about the text model.",
    ),
    (
        r"vggish",
        '{name} was trained on the labels of YouTube videos and has heard most kinds of sound tested here. "Unseen" means '
        "held out from the probe, not from the audio model.",
    ),
    (
        r"panns?|cnn14|passt|audiomae.*ft|yamnet|\bast\b|beats|htsat|clap|audioset",
        '{name} was trained with AudioSet labels or audio and has heard most kinds of sound tested here. "Unseen" means held '
        "out from "
        "the probe, not from the audio model.",
    ),
    (r"mfcc|mel|spectrogram", "{name} is a plain signal description without learning: it has heard nothing, and serves as a floor."),
)


def citations(paragraph: str) -> list[str]:
    """References that the paragraph cites, in the order of their keys."""
    return [text for key, text in sorted(REFERENCES.items()) if key in paragraph]


def _count(distinct: int | str | None) -> str:
    return f"{distinct:,}" if isinstance(distinct, int) else str(distinct or "the")


def _null(run: RunData, b: int) -> str:
    identity = run.identity
    draw = (
        f"all {b + 1:,} distinct permutations were used"
        if identity.get("enumerated")
        else f"{b:,} permutations were drawn uniformly from {_count(identity.get('distinct_permutations'))} distinct ones"
    )
    words = CONTROLS[identity.get("control", "permute")].methods
    return words.format(b=b, draw=draw, within=identity.get("within") or "groups")


def primer(run: RunData) -> str:
    """What was done and how to read a p, for someone who has met neither probes nor permutation tests."""
    n, n_train, n_test = n_classes_of(run)
    measure = metric_of(run.statistic).words.format(k=next(iter(statistic_ks(run.statistic)), ""))
    alone = is_unseen(run.statistic)
    size = run.identity.get("gallery_size")
    among = f"all {n}" if size is None else f"{size} of them"
    out = [
        f"A probe learned on {n_train} classes to bring the text of a class and its sounds together. The sounds of the other "
        f"{n_test} classes, which it never saw, were then looked up among "
        f"{'their own texts alone' if alone else f'the texts of {among}'}: {run.statistic} {measure}."
    ]
    if run.n_permutations:
        several = (
            ". It is adjusted for the number of pairs: luck alone says yes anywhere in at most 5 of 100 such runs"
            if len(run.records) > 1
            else ""
        )
        out.append(
            f"The control {CONTROLS[run.identity.get('control', 'permute')].primer}. p says how often it does at least as well as the "
            f"real texts: at .05 or below luck is a poor explanation, and the answer is yes{several}."
        )
    return " ".join(out)


def paragraph(run: RunData, with_map: bool = False) -> str:
    """Methods, ready to paste: every number comes from the manifest and the summary."""
    identity, probe = run.identity, run.identity["probe"]
    n, n_train, n_test = n_classes_of(run)
    b, j, r = run.n_permutations, identity["splits"], identity["seeds"]
    m, version = len(run.records), run.manifest.get("versions", {}).get("fastprobe", "")
    optimizer = OPTIMIZERS[probe["optimizer"]].methods.format(**probe)
    clips = (
        "the mean embedding of every train class"
        if probe["sampling"] == "centroid"
        else f"{plural(probe['clips_per_class'], 'clip')} of every train class, drawn at random"
    )
    basis = (
        "in the lossless basis of the embeddings' singular vectors"
        if probe["basis"] == "svd" and not probe["energy"]
        else f"in the leading singular directions that hold {probe['energy']:.0%} of the variance"
        if probe["energy"]
        else "on the raw embeddings"
    )
    macro = (
        ", averaged over classes (macro)"
        if re.fullmatch(r"acc@\d+|mrr|mean_rank|mean_log_rank", run.statistic.removesuffix(UNSEEN))
        else ""
    )
    names = list(identity.get("probes", ("contrastive",)))
    trained = [name for name in names if is_trained(name)]
    role = {t["name"]: role_of(t) for t in identity["inputs"] if t["side"] == "text"}
    tables = {side: list(dict.fromkeys(pair[i] for pair in identity["pairs"])) for i, side in enumerate(("text", "audio"))}
    texts, audios = [t for t in tables["text"] if role.get(t, "model") == "model"], tables["audio"]
    what = "contrastive linear probes (Ngo & Kim 2024)" if names == ["contrastive"] else f"{plural(len(names), 'probe')} ({listing(names)})"
    out = [
        f"We asked whether the geometry of {plural(len(texts), 'text embedding table')} ({listing(texts)}) carries over to "
        f"{plural(len(audios), 'audio embedding table')} ({listing(audios)}) with {what}, using fastprobe {version}.",
        f"The {n} classes were divided at random into {n_train} train and {n_test} test classes, {j} {'times' if j > 1 else 'time'}.",
    ]
    if kept := identity.get("clips"):
        out.append(f"Of every class at most {plural(kept, 'clip')} {'was' if kept == 1 else 'were'} kept, drawn at random.")
    if trained:
        others = (
            f" These are the values of the first of {len(trained)} configurations; the others differ as named." if len(trained) > 1 else ""
        )
        out.append(
            f"For each split two linear heads of width {probe['dim']} were trained {basis} to bring "
            "the text of a class and its sounds together (contrastive loss over the train classes, temperature "
            f"{probe['temperature']:g}{', both directions' if probe['symmetric'] else ''}; {optimizer}, learning rate {probe['lr']:g}, "
            f"{probe['schedule']} schedule, {probe['steps']} steps; each step took "
            f"{clips}){f', from {r} random starts' if r > 1 else ''}.{others}"
        )
    if closed := [name for name in names if not is_trained(name) and not is_similarity(name)]:
        words = "; ".join(f"{name}: {PROBES[name.split(':')[0]]}" for name in closed)
        out.append(f"Closed forms were fitted to the train classes in the lossless basis of the embeddings ({words}).")
    if len(trained) + len(closed):
        csls = probe.get("csls", 0) if len(trained) == 1 else 0
        hubs = f", with cross-domain similarity local scaling over {csls} neighbours (Conneau et al. 2018)" if csls else ""
        out.append(
            f"Every clip of the unseen classes was then ranked against the texts of "
            f"{f'the {n_test} unseen classes alone' if is_unseen(run.statistic) else _gallery(identity, n, n_test)}"
            f"{hubs}, ties counting against the true one. "
            f"The statistic is {run.statistic}{macro}, averaged over {'splits and starts' if r > 1 else 'splits'}."
        )
    out += _held_against(run, [t for t in tables["text"] if role.get(t) == "baseline"])
    if alike := [name for name in names if is_similarity(name)]:
        words = "; ".join(f"{name}: {SIMILARITIES[name.split(':')[0]]}" for name in alike)
        out.append(f"Similarities were computed between the texts and the class means of the sounds over all {n} classes ({words}).")
    if b == 0:
        return " ".join([*out, "No control was run, so no p-value is given."])
    out.append(
        f"For the null, {_null(run, b)}. Each replicate was averaged exactly as the observed run, on the same splits, "
        f"{'starts ' if r > 1 else ''}and clips.".replace("splits, and", "splits and")
    )
    if stop := identity.get("stop"):
        parsed = parse_stop(stop)
        rule = f"Besag & Clifford 1991, h = {parsed.h}" if stop.startswith("besag") else f"Fischer & Ramdas 2024, alpha = {parsed.alpha:g}"
        ended = (
            f"ended the run after {b:,} permutations, for all pairs together"
            if run.stopped
            else f"did not fire within the {b:,} permutations"
        )
        out.append(
            f"A stopping rule declared before the first permutation ({rule}; at most {identity.get('stop_limit', b):,}) "
            f"{ended}; p-values are those valid under this rule{', adjusted for the family by max-T' if m > 1 else ''}, "
            "with confidence sequences (Robbins 1970)."
        )
    else:
        kind = (
            "It is exact, since all distinct permutations were used."
            if identity.get("enumerated")
            else f"The smallest p within reach is {pvalue(1 / (b + 1))}. Intervals on p are Clopper-Pearson's (Clopper & Pearson 1934)."
        )
        out.append(f"p = (1 + number of permutations at least as good) / (1 + {b:,}), ties counted (Phipson & Smyth 2010). {kind}")
        if m > 1:
            out.append(
                f"p-values are adjusted for all {m} pairs by single-step max-T on statistics studentised over all "
                "replicates (Westfall & Young 1993); step-down max-T, Holm (Holm 1979) and false discovery rates "
                "(Benjamini & Hochberg 1995) are given beside them."
            )
    if identity.get("select") == "nested":
        inner = train_count(n_train, identity["train_fraction"])
        ranking = [name for name in names if not is_similarity(name)]
        out.append(
            f"For each pair one of {len(ranking)} probes was chosen: the {n_train} train classes of every split were divided once more "
            f"({inner} to fit, {n_train - inner} to choose by, ranked among the texts of all classes), the probe with the best "
            f"{run.statistic} there was taken, and its value on the test classes is the pair's. The choice was repeated inside every "
            "permutation."
        )
    if any(record.get("tail") for record in run.records):
        out.append(
            "Where p < .10, a generalised Pareto fit to the tail of the null, its support constrained to contain the "
            "observed value, is printed beside the exact p (Knijnenburg et al. 2009; Peschel et al. 2026)."
        )
    if j > 1:
        out.append(
            "Error bars are the standard error over splits and the one corrected for overlapping splits, variance "
            f"(1/{j} + {n_test}/{n_train}) S² (Nadeau & Bengio 2003)."
        )
        out.append(
            f"Intervals on {run.statistic} are for fresh classes, training included: the observed value plus and minus the corrected "
            f"standard error times the quantile of t with {j - 1} degrees of freedom."
        )
    if b:
        out.append("Selectivity is observed minus control (Hewitt & Liang 2019).")
    if with_map:
        out.append(
            "For the map, class centroids were aligned by an orthogonal Procrustes rotation in at most 20 principal components; m² "
            "was tested by permuting the text rows (PROTEST; Jackson 1995; Peres-Neto & Jackson 2001)."
        )
    precision = run.manifest.get("precision", "ieee")
    own = BACKENDS[identity["backend"]].arithmetic if identity["backend"] in BACKENDS else ""
    out.append(
        f"Probes were trained by the {identity['backend']} backend ("
        f"{own or ('float32' if precision == 'ieee' else precision)}; seed "
        f"{identity['seed']})."
    )
    return " ".join(out)


def _gallery(identity: dict[str, Any], n: int, n_test: int) -> str:
    """Whose texts compete."""
    size = identity.get("gallery_size")
    if size is None or size == n:
        return f"all {n} classes"
    return f"{size} classes, the {n_test} unseen ones and {size - n_test} others drawn at random" if size > n_test else "the unseen classes"


def _held_against(run: RunData, baselines: list[str]) -> list[str]:
    """Sentences about covariates, baselines and ceilings, where the run has them."""
    out = []
    if taken := run.summary.get("covariates"):
        out.append(
            f"{listing(taken['names'])} ({plural(taken['degrees_of_freedom'], 'degree')} of freedom) were regressed out of the texts and "
            "of the class means of the sounds, and out of the texts again after every permutation (Freedman & Lane 1983)."
        )
    if baselines:
        out.append(
            f"Surface baselines ({listing(baselines)}) were tested beside the models. A model beats them where the largest p over "
            "baselines is at most .05, for each the larger of a one-sided t-test over splits, corrected for their overlap, and the share "
            "of permutations in which its lead is as large (an intersection-union test; Berger 1982)."
        )
    if run.ceilings:
        out.append("As references, class means of one half of the clips, and of the other audio tables, took the place of the texts.")
    return out


def caveats(run: RunData) -> list[str]:
    """What a careful reader should hold against the numbers."""
    out, identity = [], run.identity
    simulated = [t["name"] for t in identity["inputs"] if (t.get("meta") or {}).get("simulated")]
    if simulated:
        out.append(f"The tables {listing(simulated)} are simulated: no model and no recording is involved.")
    for table in identity["inputs"]:
        meta = table.get("meta") or {}
        if meta.get("untrained"):
            out.append(
                f"{table['name']} comes from a model with random, untrained weights: its results say nothing about the published model."
            )
        if meta.get("label_leak"):
            out.append(
                f"{table['name']} was accepted although the labels leak: {str(meta['label_leak']).rstrip('.')}. Its results "
                "show nothing about the text model."
            )
    unknown = []
    for table in (t for t in identity["inputs"] if t["side"] == "audio" and t["name"] not in simulated):
        meta = table.get("meta") or {}
        if meta.get("trained_on") and not meta.get("untrained"):
            out.append(
                f'{table["name"]}: the audio model was trained on {listing([str(t) for t in meta["trained_on"]])}. "Unseen" '
                "means held out from the probe, not from the audio model."
            )
            continue
        known = " ".join([table["name"], *(str(meta.get(key, "")) for key in ("model", "checkpoint", "source"))]).lower()
        said = next((text for pattern, text in _HEARD if re.search(pattern, known)), None)
        if said is None:
            unknown.append(table["name"])
        else:
            out.append(said.format(name=table["name"]))
    if unknown:
        out.append(
            f'What {listing(unknown)} heard in training is not recorded. "Unseen" means held out from the probe, not from the audio model.'
        )
    _, n_train, n_test = n_classes_of(run)
    b, j = run.n_permutations, identity["splits"]
    if j > 1:
        factor = (1 + j * n_test / n_train) ** 0.5
        out.append(
            f"The {j} splits share classes, so they are not independent: the naive error bars are too short by a factor of "
            f"{number(factor, 2)}. The p-values do not rest on them."
        )
    else:
        out.append("There is a single split, so no error bar over splits can be given, and two models cannot be compared by a t-test.")
    if b:
        out.append(
            "Chance is the null mean, not k/C: a trained probe draws queries to the classes it was trained on, so the "
            "control can lie below k/C."
        )
    if caveat := CONTROLS[identity.get("control", "permute")].caveat:
        out.append(caveat)
    if b and b < 999:
        out.append(
            f"{b} permutations cannot show a p below {pvalue(1 / (b + 1))}"
            + (", and adjusted p-values are coarse." if len(run.records) > 1 else ".")
        )
    for family in run.summary.get("families", ()):
        if weak := family.get("weak_max_t"):
            out.append(
                f"Max-T over {family['name']} is weak because of {listing(list(weak), 5)}, whose null is sparse or skewed; "
                "pvalue_minP in summary.csv puts every test on the scale of its own permutations first."
            )
        if family["name"] == "nested choice":
            out.append(
                f"{family['n_configurations']} configurations were tried. Their own p-values are adjusted for all of them; the one chosen "
                "for each pair on a split of the train classes stands in the family 'nested choice', where the choice is repeated "
                "inside every permutation."
            )
        if family["name"] == "best configuration":
            out.append(
                f"{family['n_configurations']} configurations were tried. Their own p-values are adjusted for all of them; the best of "
                "each pair stands in the family 'best configuration', where the choice is repeated inside every permutation."
            )
    out += [note[0].upper() + note[1:] for note in run.manifest.get("notes", ())]
    if run.categories and run.observed is not None:
        out.append(
            "The bootstrap intervals by category hold the trained probes fixed; they say how acc@k varies with the classes tested, "
            "not with those trained on."
        )
    return out
