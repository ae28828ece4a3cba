"""The numbers of the README are those of the committed rows."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from unforgotten.audit.verdict.evidence import MATERIAL
from unforgotten.audit.verdict.power import LEAST_EFFECTIVE
from unforgotten.experiments.stand_in import ASSUMED_STD, assumed_rows
from unforgotten.experiments.studies.phase_diagram import border
from unforgotten.records.files import read_json_lines
from unforgotten.records.methods import FORGET_TERMS
from unforgotten.records.rows import read_run
from unforgotten.records.shares import clopper_pearson
from unforgotten.reports.markdown import COUNTED, intervals, returns, survival_table
from unforgotten.reports.predicted import outcomes
from unforgotten.reports.verdicts.at_a_glance import renewed
from unforgotten.reports.verdicts.claim import share
from unforgotten.reports.verdicts.evidence import Evidence, over_seeds
from unforgotten.reports.verdicts.masks import masks
from unforgotten.reports.verdicts.real_bases import real_arms
from unforgotten.reports.verdicts.scaling import over_arms
from unforgotten.theory.formats.names import format_named

ROOT = Path(__file__).parents[2]
MEANT = {"undone": "come back", "survives": "survive"}
TAIL = 0.025
"""Of an interval of 95 %, on either side."""


RUNS = [read_run(ROOT / f"reports/published/tiny-seed{seed}") for seed in range(5)]


def test_the_results_in_the_readme_come_from_the_published_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    for what in COUNTED:
        assert " ".join(survival_table(RUNS, what).split()) in text
    counts = {
        len(list(intervals(RUNS, s, t, f))) for s in RUNS[0].storages for t in FORGET_TERMS for f in RUNS[0].formats
    }
    assert counts == {15}
    assert "15 cases a cell" in text
    coarse = [name for name in RUNS[0].formats if name.startswith(("int4", "fp4"))]
    assert f"comes back in {returns(RUNS, 'fp32', list(FORGET_TERMS), RUNS[0].formats)} cases" in text
    whole = [one for t in FORGET_TERMS for f in RUNS[0].formats for one in intervals(RUNS, "fp32", t, f)]
    assert f"and is further down in {sum(high < 0 for _, high in whole)}, where chance" in text
    assert f"chance alone gives some {TAIL * len(whole):.0f} of each" in text
    assert f"in {returns(RUNS, 'bf16', ['NPO'], coarse)} cases at int4 and fp4" in text
    none = returns(RUNS, "bf16", ["GA"], coarse).replace("0 of", "none of")
    assert f"after gradient ascent in {none}" in text


def test_the_figure_of_the_readme_is_the_published_one() -> None:
    published = ROOT / "reports/published"
    figure = (published / "headline.svg").read_bytes()
    assert figure == (published / "tiny-seed0/headline.svg").read_bytes()
    assert "reports/published/headline.svg" in (ROOT / "README.md").read_text()


def test_what_the_readme_says_of_held_out_pairs_is_counted_in_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = [r for r in read_json_lines(ROOT / "reports/published/audit-truth/rows.jsonl") if r["set"] == "one format"]
    known = [r for r in rows if r["truth"]]
    assert f"{len(known)} pairs of {len({r['run'] for r in known})} held-out runs" in text
    for word, name in (("undone", "sensitivity"), ("survives", "specificity")):
        clear = [r for r in known if r["clear"] and r["truth"] == word]
        right = sum(r["verdict"] == word for r in clear)
        low, high = clopper_pearson(right, len(clear), TAIL)
        shares = f"{name} {100 * right / len(clear):.0f} %, 95 % interval {100 * low:.0f} % to {100 * high:.0f} %"
        assert f'{right} of the {len(clear)} that clearly {MEANT[word]} "{word}" ({shares})' in text
        assert all(r["verdict"] in ("undecided", word) for r in clear)
    wrong = [r for r in known if r["verdict"] not in ("undecided", r["truth"])]
    unclear = [r for r in known if not r["clear"]]
    said = sum(r["verdict"] != "undecided" for r in unclear)
    assert f"Of the {len(unclear)} whose truth is uncertain, {said} have a confident verdict, and {len(wrong)}" in text
    by_texts = [
        r
        for r in read_json_lines(ROOT / "reports/published/audit-truth/rows.jsonl")
        if r["set"] == "one format by texts" and r["clear"]
    ]
    right = sum(r["verdict"] == r["truth"] for r in by_texts)
    assert f"With `--texts` alone {right} of the {len(by_texts)} clear ones are right" in text


def test_the_verdicts_counted_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = read_json_lines(ROOT / "reports/published/audit-truth/rows.jsonl")
    whole = [r for r in rows if r["set"] in ("whole", "constructed")]
    sure = [r for r in whole if r["verdict"] != "undecided"]
    assert all(r["verdict"] == r["truth"] for r in sure)
    made = sum(r["set"] == "constructed" for r in whole)
    assert f"On {len(whole) - made} pairs from `run` and {made} made so" in text
    assert f"gave {len(sure)} confident verdicts and all were right" in text
    assert f"said undecided for {len(whole) - len(sure)}." in text
    runs = [r for r in whole if r["set"] == "whole"]
    alive, undone = ([r for r in runs if r["truth"] == word] for word in ("survives", "undone"))
    right = [sum(r["verdict"] == r["truth"] for r in group) for group in (alive, undone)]
    assert f'{right[0]} of {len(alive)} that survive "survives" (specificity)' in text
    assert f'{right[1]} of {len(undone)} that are undone "undone" (sensitivity)' in text
    assert f"the others, {len(alive) - right[0]} and {len(undone) - right[1]}, are undecided" in text
    fresh = [r for r in runs if not r["looked_at"]]
    told = [r for r in fresh if r["verdict"] != "undecided"]
    assert {r["verdict"] for r in told} == {"survives"}
    missed = [r for r in fresh if r["truth"] == "undone"]
    assert {r["verdict"] for r in missed} == {"undecided"}
    assert f'On the {len(fresh)} that were not looked at, all {len(told)} confident verdicts are "survives"' in text
    assert f"the {len(missed)} that are undone are undecided" in text
    bad = [r for r in whole if r["set"] == "constructed" and r["truth"] == "undone"]
    assert f"the pairs that were made, {sum(r['verdict'] == 'undone' for r in bad)} of {len(bad)}" in text
    halves = [r for r in rows if r["set"] == "halves"]
    told = [r for r in halves if r["verdict"] != "undecided"]
    assert all(r["verdict"] == r["truth"] for r in told)
    assert f"undecided for {len(halves) - len(told)} of {len(halves)}, and the other {len(told)} are right" in text
    assert f'"Survives" takes {LEAST_EFFECTIVE} items of equal removal or more' in text


def test_the_readme_says_how_many_models_lose_retained_knowledge() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    lost = models = 0
    for seed in range(5):
        rows = read_json_lines(ROOT / f"reports/published/tiny-seed{seed}/rows.jsonl")
        m4 = [r for r in rows if r["metric"] == "M4" and r["format"] == "none"]
        (target,) = (r["value"] for r in m4 if r["model"] == "target")
        unlearned = [r["value"] for r in m4 if r["model"] == "unlearned"]
        models += len(unlearned)
        lost += sum(target - value > 5 for value in unlearned)
    assert f"{lost} of the {models} unlearned models lose more than 5 points of M4" in text


def seeds(study: str, metric: str, method: str, name: str, storage: str, runs: str) -> list[tuple[int, float]]:
    """Seeds and values of a metric of unlearned models, over the runs of a study whose names match."""
    return [
        (int(path.parent.name.rpartition("-seed")[2]), value)
        for path in sorted((ROOT / "reports/published" / study).glob(f"{runs}/config.json"))
        for run in read_run(path.parent).by_depth()
        if (value := run.value(metric, "unlearned", method, storage, name)) is not None
    ]


def mean(study: str, metric: str, method: str, name: str = "none", storage: str = "fp32", runs: str = "*") -> float:
    """Of a metric of unlearned models, over the seeds of a study, or over those of its runs whose names match."""
    values = [value for _, value in seeds(study, metric, method, name, storage, runs)]
    return sum(values) / len(values)


def test_held_out_seeds_and_gpt_neox_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())

    def both(metric: str, method: str, name: str) -> list[float]:
        return [mean("held-out", metric, method, name, "bf16", f"{base}-*") for base in ("llama", "gpt-neox")]

    slow, ascent = "NPO_GDR+lr1e-5", "GA_GDR+lr1e-5"
    gains = both("gain", slow, "int4-g64")
    assert f"bf16 passes {gains[0]:.2f} and {gains[1]:.2f} of NPO_GDR's update at int4-g64" in text
    before, after = both("M1", slow, "none"), both("M1", slow, "int4-g64")
    told = [f"from {before[0]:.1f} back to {after[0]:.1f}", f"from {before[1]:.1f} to {after[1]:.1f}"]
    assert f"M1 goes {' and '.join(told)}." in text
    llama, neox = (
        over_seeds(seeds("held-out", "rho_forget_loss", ascent, "int4-g64", "bf16", f"{base}-*")).text(share)
        for base in ("llama", "gpt-neox")
    )
    assert f"GPT-NeoX takes back {neox} of the loss that GA_GDR added, the Llamas {llama} (" in text
    place = ROOT / "reports/published/held-out"
    foretold = outcomes(place, json.loads((place / "study.json").read_text()))
    (npo,) = (one for one in foretold if "what NPO forgot" in one.says)
    assert f"as was foretold, in {npo.held} of {npo.cells} cells, not in two of SimNPO:" in text
    sim = [
        value
        for base in ("llama", "gpt-neox")
        for name in ("int4-g64", "fp4-b64")
        for _, value in seeds("held-out", "rho_forget_loss", "SimNPO_GDR+lr1e-5", name, "bf16", f"{base}-*")
    ]
    assert npo.cells - npo.held == sum(not npo.within(value) for value in sim) == 2


def test_equal_codes_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    cells = [r for r in read_json_lines(ROOT / "reports/published/collapse/rows.jsonl") if r["kind"] == "cell"]
    alike = [r for r in cells if r["equal"] >= 0.99]
    bf16 = [r["came_back"] >= MATERIAL for r in alike if r["storage"] == "bf16" and not r["method"].startswith("GA")]
    ascent = [r["came_back"] >= MATERIAL for r in alike if r["storage"] == "bf16" and r["method"].startswith("GA")]
    masters, stored = (
        [r["came_back"] >= MATERIAL for r in alike if r["storage"] != "bf16" and ("stored_in" in r) is on_a_grid]
        for on_a_grid in (False, True)
    )
    assert f"Of {len(cells)} published cells" in text
    assert f"in {sum(bf16)} of {len(bf16)} with bf16 parameters after NPO and others" in text
    assert (
        f"in {sum(ascent)} of {len(ascent)} after GA, in {sum(masters)} of {len(masters)} with fp32 masters, and"
        in text
    )
    assert f"and in {sum(stored)} of {len(stored)} with fp32 masters whose target was stored in 4 bits" in text


def test_the_table_of_the_readme_is_that_of_the_rows() -> None:
    text = (ROOT / "README.md").read_text()
    assert renewed(text, Evidence(ROOT / "reports/published")) == text


def test_the_borders_of_cells_in_the_readme_are_those_of_the_formats() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    int4, fp4, nf4, int8 = (border(format_named(name)) for name in ("int4-g64", "fp4-b64", "nf4-b64", "int8-row"))
    assert (
        f"1/{1 / int4:.0f} of a block's largest weight in int4, {fp4:.3f} in fp4, {nf4:.3f} in nf4 and 1/{1 / int8:.0f} in int8"
        in text
    )
    block = next(row for row in assumed_rows(lr=1e-5, formats=["int4-g64"])["int4-g64"] if row.metric == "block_absmax")
    assert block.value is not None
    assert (
        f"the median block of 64 normal weights has its largest at {block.value / ASSUMED_STD:.2f} times their std"
        in text
    )


def test_the_deployed_files_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = read_json_lines(ROOT / "reports/published/deployed-files/rows.jsonl")
    assert all(row["unequal"] == 0 for row in rows)
    own = [row for row in rows if (row["method"], row["storage"]) == ("NPO_GDR", "bf16")]
    pairs = {
        name: " and ".join(
            f"{over_seeds((r['seed'], r[gain]) for r in own if r['written_by'] == name).value:.2f}"
            for gain in ("gain", "ours_gain")
        )
        for name in {row["written_by"] for row in own}
    }
    assert f"Q4_K_M {pairs['llama-cpp']};" in text
    assert f"GPTQ {pairs['gptqmodel']}, {pairs['llmcompressor-gptq']};" in text
    assert f"AWQ {pairs['gptqmodel-awq']}, {pairs['llmcompressor-awq']} (" in text
    assert f"means of {len({row['seed'] for row in own})} seeds" in text


def test_what_the_readme_says_of_the_real_bases_is_what_their_rows_say() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    found = {(one.level, *one[1:4]): one.gain for one in over_arms(real_arms(Evidence(ROOT / "reports/published")))}
    assert f"Gemma's fp32 update passes nf4 by {found['gemma3', 'NPO_GDR', 'fp32', 'nf4-b64'].value:.2f} alone" in text
    plain = {gain.seeds for (_, method, _, fmt), gain in found.items() if method == "NPO_GDR" and fmt == "int4-g64"}
    faster = {gain.seeds for (_, method, _, _), gain in found.items() if "+" in method}
    assert (plain, faster) == ({2}, {1})
    assert "The real bases have one method and two seeds each, one at the larger rate" in text


def test_what_the_readme_concludes_from_its_table_is_what_the_rows_say() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    evidence = Evidence(ROOT / "reports/published")
    of_base = {(one.level, *one[1:4]): one.gain for one in over_arms(real_arms(evidence))}
    assert of_base["smollm2", "NPO_GDR", "bf16", "nf4-b64"].value < 1 / 3
    assert "of SmolLM2's bf16 update nf4 passes less than a third" in text
    most = max(mask.gain.high for mask in masks(evidence))
    assert f"no mask was seen to add more than {most:.2f} of gain" in text
    stored = {
        name: mean("requantize", "gain", "NPO_GDR+lr1e-5", name, "fp32", "int4-g64-*")
        for name in ("int4-g64", "int4-row", "nf4-b64")
    }
    assert stored["int4-g64"] < 0.1
    assert 0.4 < stored["int4-row"] < 0.6
    assert stored["nf4-b64"] >= 1
    assert "in that same format; int4 by row passes half, nf4 all" in text


def test_the_cost_of_an_audit_in_the_readme_is_that_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = read_json_lines(ROOT / "reports/published/audit-cost/rows.jsonl")
    large = next(row for row in rows if row["gib"] == 8)
    peak = max(large["peak_mib"].values()) / 1024
    assert f"A 2 x 8 GiB pair takes {peak:.1f} GiB of memory" in text
    for path in ("avx2", "avx512"):
        row = next(r for r in rows if (r["path"], r["update"]) == (path, "small") and "EPYC" in r["machine"])
        scale, ours = row["weights"] / row["yardstick_weights"], row["seconds"]["audit one/2"]
        speed = median(row["weights"] / s / 1e6 for s in ours)
        times = median(scale * b / a for a, b in zip(ours, row["seconds"]["bitsandbytes/2"], strict=True))
        assert f"{times:.0f} times as fast as bitsandbytes ({speed:.0f} million weights a second)" in text
