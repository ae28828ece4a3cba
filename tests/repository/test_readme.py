"""The numbers of the README are those of the committed rows."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from unforgotten.audit.verdict.evidence import MATERIAL
from unforgotten.audit.verdict.power import LEAST_EFFECTIVE
from unforgotten.records.files import read_json_lines
from unforgotten.records.methods import FORGET_TERMS
from unforgotten.records.rows import Run, read_run
from unforgotten.records.shares import clopper_pearson
from unforgotten.reports.markdown import COUNTED, intervals, returns, survival_table

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


def test_the_real_base_in_the_readme_is_that_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    run = read_run(ROOT / "reports/published/smollm2-seed0")
    at = ("unlearned", "NPO_GDR")

    def cell(metric: str, storage: str, name: str) -> float:
        value = run.value(metric, *at, storage, name)
        assert value is not None
        return value

    before = run.value("forget_loss", "target") or 0.0
    added = {storage: cell("forget_loss", storage, "none") - before for storage in run.storages}
    gains = [cell("gain", "fp32", name) for name in run.formats]
    backs = [cell("gating_effect", "fp32", name) / added["fp32"] for name in run.formats]
    assert f"passes the update (gain {min(gains):.2f} to {max(gains):.2f})" in text
    assert f"take back at most {max(backs):.0%}".replace("%", " %") in text
    assert f"(forget loss {before:.2f} to {before + added['bf16']:.2f})" in text
    told = {"int4-g64": "int4-g64 passes {} of the update and takes back {}", "nf4-b64": "nf4 {} and {}"}
    told["awq-retain:int4-g64"] = "AWQ {} and {}"
    for name, words in told.items():
        back = f"{cell('gating_effect', 'bf16', name) / added['bf16']:.0%}".replace("%", " %")
        assert words.format(f"{cell('gain', 'bf16', name):.2f}", back) in text
    gptq = "gptq-retain:int4-g64"
    assert f"GPTQ passes {cell('gain', 'bf16', gptq):.2f} and forgets further" in text
    assert cell("gating_effect", "bf16", gptq) < 0


def test_gemma_in_the_readme_is_that_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    run = read_run(ROOT / "reports/published/gemma3-seed0")
    before = run.value("forget_loss", "target") or 0.0
    found = {
        (row.storage, row.format): (row.value, (run.value("gating_effect", *row.place) or 0.0))
        for row in run.rows
        if row.metric == "gain" and row.value is not None
    }
    steps = {row.storage: row.steps for row in run.rows if row.metric == "forget_loss" and row.model == "unlearned"}
    stds = [
        read_run(ROOT / "reports/published" / name).value("weight_std", "target") or 0.0
        for name in ("gemma3-seed0", "smollm2-seed0")
    ]
    assert "weights have a std of {:.3f} (SmolLM2 {:.3f})".format(*stds) in text
    assert f"in {steps['fp32']} steps with fp32 masters" in text
    assert f"in {steps['bf16']} with bf16 parameters" in text
    added = {s: (run.value("forget_loss", "unlearned", "NPO_GDR", s) or 0.0) - before for s in run.storages}
    told = {
        key: (f"{gain:.2f}", f"{lost / added[key[0] or '']:.0%}".replace("%", " %"))
        for key, (gain, lost) in found.items()
    }
    fp32 = [told["fp32", name] for name in run.formats]
    assert (
        f"gain {min(fp32)[0]} to {max(fp32)[0]}, and the cells take back at most {max(back for _, back in fp32)}"
        in text
    )
    assert f"(forget loss {before:.2f} to {before + added['bf16']:.2f}) int4-g64 passes" in text
    int4, gptq = told["bf16", "int4-g64"], told["bf16", "gptq-retain:int4-g64"]
    assert f"int4-g64 passes {int4[0]} and takes back {int4[1]}, GPTQ {gptq[0]} and {gptq[1]}" in text


def kept(run: Run, metric: str, method: str, storage: str, name: str) -> float:
    """The value of an arm's one state, at whatever depth it was kept."""
    values = [one.value(metric, "unlearned", method, storage, name) for one in run.by_depth()]
    (value,) = (value for value in values if value is not None)
    return value


def test_the_ingredients_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    run = read_run(ROOT / "reports/published/released-code/KLR-seed0")

    def gain(method: str, storage: str) -> str:
        values = [kept(run, "gain", method, storage, name) for name in ("int4-g64", "fp4-b64")]
        return f"{sum(values) / len(values):.2f}"

    plain, raw, mask = "NPO_KLR+{}", "NPO_rawlogits_KLR_rawlogits+slow", "NPO_KLR_SURE+{}"
    fast, slow = plain.format("fast"), plain.format("slow")
    assert f"lr 1e-4 pass {gain(fast, 'bf16')} of the update and fp32 at lr 1e-5 {gain(slow, 'fp32')}" in text
    assert f"but bf16 at lr 1e-5 {gain(slow, 'bf16')}, and {gain(raw, 'bf16')} there with" in text
    masked = {rate: gain(mask.format(rate), "bf16") for rate in ("fast", "slow")}
    assert f"passes {gain(fast, 'bf16')} without its mask and {masked['fast']} with it" in text
    assert f"at lr 1e-5 {gain(slow, 'bf16')} and {masked['slow']}." in text


def test_bits_and_blocks_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    run = read_run(ROOT / "reports/published/bits-and-blocks/npo-seed0")

    def cell(metric: str, name: str, storage: str = "bf16") -> float:
        return kept(run, metric, "NPO_GDR", storage, name)

    assert f"M1 fell from {run.value('M1', 'target'):.1f} to {cell('M1', 'none'):.1f} " in text
    three, four, five = (f"{cell('gain', n):.2f}" for n in ("int3-g64", "int4-g64", "int5-g64"))
    memory = [f"{cell('M1', n):.1f}" for n in ("int3-g64", "int4-g64", "int5-g64")]
    assert f"int3-g64 passes {three} of the update and M1 is {memory[0]}, int4-g64 {four} and {memory[1]}," in text
    assert f"int5-g64 {five} and {memory[2]}," in text
    blocks = [f"{cell('M1', f'fp4-b{n}'):.1f}" for n in (16, 64, 256, 1024)]
    assert f"has M1 at {blocks[0]}, {blocks[1]}, {blocks[2]} and {blocks[3]};" in text
    told = ["int3-g64", "int4-g64", "int5-g64", *(f"fp4-b{n}" for n in (16, 64, 256, 1024))]
    masters = [cell("M1", name, "fp32") for name in told]
    assert f"M1 is {min(masters):.1f} to {max(masters):.1f} in all of them" in text


def test_the_architectures_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    folder = ROOT / "reports/published/architectures"
    runs = {name: read_run(folder / f"{name}-seed0") for name in ("gpt-neox", "qwen", "moe")}

    def gain(name: str, storage: str) -> str:
        values = [kept(runs[name], "gain", "NPO_GDR", storage, fmt) for fmt in ("int4-g64", "fp4-b64")]
        return f"{sum(values) / len(values):.2f}"

    told = {name: gain(name, "bf16") for name in runs}
    assert (
        f"bf16 passes {told['gpt-neox']} at int4 and fp4 in GPT-NeoX, {told['qwen']} in Qwen3 and {told['moe']} in"
        in text
    )
    assert {gain(name, "fp32") for name in runs} == {"1.00"}
    assert "fp32 masters 1.00 in each" in text
    for name in ("gpt-neox", "qwen"):  # the experts of a mixture are no linear layers that a hook sees
        for storage in ("fp32", "bf16"):
            before, after, dynamic = (
                runs[name].value("forget_loss", "target") or 0.0,
                kept(runs[name], "forget_loss", "NPO_GDR", storage, "none"),
                kept(runs[name], "forget_loss", "NPO_GDR", storage, "dynamic:int8-row"),
            )
            assert abs(after - dynamic) < 0.01 * (after - before)


def mean(study: str, metric: str, method: str, name: str = "none", storage: str = "fp32", runs: str = "*") -> float:
    """Of a metric of unlearned models, over the seeds of a study, or over those of its runs whose names match."""
    values = [
        value
        for path in sorted((ROOT / "reports/published" / study).glob(f"{runs}/config.json"))
        for run in read_run(path.parent).by_depth()
        if (value := run.value(metric, "unlearned", method, storage, name)) is not None
    ]
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
    llama, neox = both("rho_forget_loss", ascent, "int4-g64")
    assert (
        f"GPT-NeoX takes back {100 * neox:.0f} % of the loss that GA_GDR added, the Llamas {100 * llama:.0f} %" in text
    )


def test_equal_codes_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    cells = [r for r in read_json_lines(ROOT / "reports/published/collapse/rows.jsonl") if r["kind"] == "cell"]
    alike = [r for r in cells if r["equal"] >= 0.99]
    bf16 = [r["came_back"] >= MATERIAL for r in alike if r["storage"] == "bf16" and not r["method"].startswith("GA")]
    masters = [r["came_back"] >= MATERIAL for r in alike if r["storage"] != "bf16" and "stored_in" not in r]
    assert f"Of {len(cells)} published cells" in text
    assert f"in {sum(bf16)} of {len(bf16)} with bf16 parameters after NPO and others" in text
    assert f"in {sum(masters)} of {len(masters)} with fp32 masters" in text


def test_rates_stored_targets_and_quantizers_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    rates = ("1e-5", "2e-5", "4e-5")
    int3, int4 = (
        [f"{mean('dead-zone', 'gain', f'NPO_GDR+lr{lr}', name, 'bf16'):.2f}" for lr in rates]
        for name in ("int3-g64", "int4-g64")
    )
    assert f"pass {int3[0]}, {int3[1]} and {int3[2]} of the update at int3-g64" in text
    assert f"and {int4[0]}, {int4[1]} and {int4[2]} at int4-g64" in text
    slow = "NPO_GDR+lr1e-5"
    stored = {n: mean("requantize", "gain", slow, n) for n in ("int4-g64", "gptq-retain:int4-g64")}
    assert f"it passes {stored['int4-g64']:.2f} of the update" in text
    m1 = [mean("requantize", "M1", slow, name) for name in ("none", "int4-g64")]
    assert f"M1 goes from {m1[0]:.1f} back to {m1[1]:.1f}; GPTQ passes {stored['gptq-retain:int4-g64']:.2f}" in text
    whole = {f"{mean('requantize', 'gain', slow, name):.2f}" for name in ("int8-row", "int4-g64-dither")}
    assert whole == {"1.00"}
    assert "int8-row and dithered rounding 1.00" in text
    names = ("int4-g64", "awq-retain:int4-g64", "mxfp4-b32", "nvfp4", "hqq4-g64-opt")
    rtn, awq, mx, nv, hqq = (f"{mean('quantizers', 'gain', 'NPO_GDR', name, 'bf16'):.2f}" for name in names)
    texts = sorted(
        mean("quantizers", "gain", "NPO_GDR", f"{name}:int4-g64", "bf16")
        for name in ("gptq", "gptq-retain", "gptq-forget")
    )
    gptq = f"GPTQ {texts[0]:.2f} to {texts[-1]:.2f} by its text"
    assert f"int4-g64 passes {rtn}, AWQ {awq}, {gptq}, MXFP4 {mx}, NVFP4 {nv}, HQQ {hqq}" in text


def test_the_deployed_files_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = read_json_lines(ROOT / "reports/published/deployed-files/rows.jsonl")
    assert all(row["unequal"] == 0 for row in rows)
    own = {r["written_by"]: r for r in rows if (r["method"], r["storage"]) == ("NPO_GDR", "bf16")}
    pairs = {name: f"{row['gain']:.2f} and {row['ours_gain']:.2f}" for name, row in own.items()}
    assert f"Q4_K_M {pairs['llama-cpp']};" in text
    assert f"GPTQ {pairs['gptqmodel']}, {pairs['llmcompressor-gptq']};" in text
    assert f"AWQ {pairs['gptqmodel-awq']}, {pairs['llmcompressor-awq']} (" in text


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
