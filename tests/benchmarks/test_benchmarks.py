"""The pure parts of the benchmark: work counted, lengths drawn, sides compared, settings chosen, results kept."""

import copy
import json
import math
import random
from dataclasses import asdict, replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import machine
from benchmarks.bench import row_of, useful_flops
from benchmarks.check import DisagreementError, compare
from benchmarks.pairs import Pair, Side, Worker, WorkerError, spread
from benchmarks.peer_settings import PEER_DTYPES, PeerSettings, find_fastest, peer_dtypes
from benchmarks.results import Results
from benchmarks.shapes import SHAPES, SPARE_IDS, make_tokenizer
from benchmarks.tables import bars, growth
from benchmarks.texts import Lengths, given_completion, make_problems, read_problems, varied_reward, write_rows
from benchmarks.worker import Task
from benchmarks.workloads import CURVES, WORKLOADS, Bars, Workload, end_rate

NO_BARS = Bars()
GRPO = next(workload for workload in WORKLOADS if workload.kind == "grpo")


def test_weights_of_a_shape_are_those_of_the_model():
    shape = SHAPES["SmolLM2-135M"]
    sizes = {"hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "vocab_size": shape.vocab}
    heads = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads}
    with torch.device("meta"):
        config = LlamaConfig(**sizes, **heads, num_hidden_layers=shape.layers, tie_word_embeddings=True)
        model = LlamaForCausalLM(config)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    assert shape.body_weights == matrices
    assert shape.head_weights == model.lm_head.weight.numel()
    assert shape.vocab * shape.hidden + matrices < 135e6


def test_useful_work_of_a_step_by_hand():
    shape, lengths = SHAPES["SmolLM2-135M"], Lengths(prompt=10, completion=4)
    body, adapter, head = shape.body_weights, shape.adapter_weights, shape.head_weights
    forward = 2 * 14 * (body + adapter) + 2 * 4 * head
    backward = 2 * 14 * (body + 2 * adapter) + 2 * 4 * head
    by_kind = {"sft": forward + backward, "dpo": 2 * forward + backward, "grpo": 2 * forward + backward}
    for kind, expected in by_kind.items():
        assert useful_flops(Workload("", kind), lengths) == expected
    assert useful_flops(Workload("", "rm"), lengths) == forward + backward - 4 * 4 * head
    two_updates = useful_flops(Workload("", "grpo", num_iterations=2), lengths)
    assert two_updates == 2 * forward + 2 * (forward + backward)


@pytest.mark.parametrize(("mean", "longest"), [(64, 256), (32, 64), (5, 5)])
def test_skewed_lengths_have_their_mean(mean, longest):
    rate = end_rate(mean, longest)
    draw = random.Random(0)
    lengths = [min(longest, 1 + math.floor(math.log(1 - draw.random()) / math.log1p(-rate))) for _ in range(20_000)]
    assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.03)
    assert max(lengths) == longest


def test_no_completion_ends_early_without_skew():
    assert len(GRPO.end_ids) == 0
    skewed = next(workload for workload in WORKLOADS if workload.longest)
    assert len(skewed.end_ids) / skewed.model_shape.vocab == pytest.approx(end_rate(64, 256), rel=0.01)
    assert max(skewed.end_ids) == skewed.model_shape.vocab - 1


def test_given_completions_depend_on_prompt_and_sample_alone_and_differ_in_length():
    first = [given_completion([3, 4], sample, GRPO) for sample in range(GRPO.num_samples)]
    assert first == [given_completion((3, 4), sample, GRPO) for sample in range(GRPO.num_samples)]
    assert first[0] != given_completion([3, 5], 0, GRPO)
    assert len({len(ids) for ids in first}) > 1
    rewards = varied_reward(first, first)
    assert sorted(rewards) != rewards or len(set(rewards)) == len(rewards)


def test_rows_have_gsm8ks_lengths_and_the_tokens_they_are_said_to_have(tmp_path):
    problems = make_problems(400)
    mean = sum(len(problem.question) for problem in problems) / len(problems)
    assert mean == pytest.approx(248, rel=0.1)  # the mean of the deciles' straight lines
    tokenizer = make_tokenizer([text for problem in problems for text in problem], 7000)
    assert len(tokenizer) == 7000 - SPARE_IDS
    lengths = write_rows(Workload("", "dpo", rows=3), problems, tokenizer, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "chosen", "rejected"}] * 3
    assert lengths.prompt == sum(len(tokenizer(row["prompt"])["input_ids"]) for row in rows)
    assert lengths.completion == sum(
        1 + len(tokenizer(row[name])["input_ids"]) for row in rows for name in row if name != "prompt"
    )
    long = Workload("", "grpo", rows=2, prompt_length=700)
    assert write_rows(long, problems, tokenizer, tmp_path / "long.jsonl").prompt == pytest.approx(1400, abs=8)


def test_problems_come_from_a_file_where_there_is_one(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"question": "2 + 2?", "answer": "4"}\n')
    assert read_problems(file) == [("2 + 2?", "4")]


def test_sides_that_agree_pass_and_others_stop_the_benchmark():
    ours = {"loss": 1.0, "grad_norm": 2.0}
    assert compare(ours, {"loss": 1.01, "grad_norm": 2.0}, GRPO)["loss"] == pytest.approx(0.0099, abs=1e-4)
    for other in (
        {"loss": 1.03, "grad_norm": 2.0},
        {"loss": 1.0, "grad_norm": 1.9},
        {"loss": math.nan, "grad_norm": 2.0},
    ):
        with pytest.raises(DisagreementError, match="apart"):
            compare(ours, other, GRPO)
    assert compare({"greedy": [[1, 2]]}, {"greedy": [[1, 3]]}, GRPO) == {"other_tokens": 0.5}
    with pytest.raises(DisagreementError, match="50% of the likeliest tokens"):
        compare({"greedy": [[1, 2]]}, {"greedy": [[1, 3]]}, GRPO, exact=True)


def side(seconds, peak=1.0, tokens=None):
    return {"seconds": seconds, "peak_bytes": peak * 1e9, "tokens": tokens, "all_seconds": [seconds, seconds]}


def test_the_fastest_settings_are_chosen_and_all_are_kept():
    seconds = dict(zip(PEER_DTYPES, (8.0, 4.0, 2.0, 3.0), strict=True))

    def run(settings, workload):
        faster = {None: 1.0, 4: 0.5, 2: 0.9, 1: 1.2}[settings.rows_per_forward] * (
            0.5 if settings.padding_free else 1.0
        )
        return Side(seconds=[seconds[settings.dtype] * faster * workload.rows], steps=[{}])

    found = find_fastest("sft", run)
    assert PeerSettings(**found["settings"]) == PeerSettings("bfloat16 weights", padding_free=True, rows_per_forward=4)
    assert (len(found["small"]), len(found["full"])) == (4, 5)
    assert PeerSettings(**find_fastest("dpo", run)["settings"]) == PeerSettings("bfloat16 weights", rows_per_forward=2)
    assert find_fastest("generate", run)["settings"] == asdict(PeerSettings("bfloat16 weights"))


def test_dtypes_that_the_machine_emulates_are_not_tried():
    assert peer_dtypes({"bfloat16_flops": 9e11, "float32_flops": 2e11}) == PEER_DTYPES
    assert peer_dtypes({"bfloat16_flops": 5e8, "float32_flops": 2e11}) == ("float32",)
    tried = []

    def run(settings, workload):
        tried.append(settings.dtype)
        return Side(seconds=[1.0], steps=[{}])

    assert find_fastest("generate", run, ("float32",))["settings"] == asdict(PeerSettings("float32"))
    assert tried == ["float32"]


def row(ours, peer, held=NO_BARS, workload="work", share=0.6):
    return {
        "shape": "S",
        "workload": workload,
        "bars": asdict(held),
        "ours": ours,
        "peer": peer,
        "peak_share": {"ours": share, "peer": 0.1},
        "differences": {"loss": 0.001, "grad_norm": 0.0},
    }


def test_bars_are_met_or_missed():
    held = Bars(speedup=5, memory=1 / 4, gigabytes=6, peak_share=0.5)
    met = [met for met, _ in bars(row(side(2.0, 1.0), side(10.0, 4.0), held), {})]
    assert met == [True] * 4
    missed = [met for met, _ in bars(row(side(2.1, 6.1), side(10.0, 7.0), held, share=0.4), {})]
    assert missed == [False] * 4


def test_a_share_of_the_peak_is_of_the_peak_beside_its_step():
    workload, lengths = replace(GRPO, kind="sft"), Lengths(prompt=100, completion=50)
    flops = useful_flops(workload, lengths)
    steps = {"steps": [{"loss": 1.0, "grad_norm": 1.0}]}
    # The machine was twice as fast in the second step, and so were we; TRL was not.
    ours = Side(seconds=[2.0, 1.0, 2.0], peaks=[flops, 2 * flops, flops], **steps)
    peer = Side(seconds=[4.0, 4.0, 4.0], peaks=[flops, 2 * flops, 2 * flops], **steps)
    measured = row_of(workload, PeerSettings(), Pair(ours, peer, {}, 0.0), lengths)
    assert measured["peak_share"] == {"ours": 0.5, "peer": 0.125}


def test_the_matrix_peak_is_that_of_one_of_its_products(monkeypatch):
    monkeypatch.setattr(machine, "SIZES", (16, 32))
    flops, product = machine.matrix_peak("float32")
    assert flops > 0
    assert product in {machine.SquareProduct("float32", size) for size in (16, 32)}


def test_skew_is_judged_by_the_time_of_a_token():
    even = row(side(2.0, tokens=100), side(9.0), workload="generate")
    skewed = row(side(2.4, tokens=100), side(9.0), Bars(skew=1.3), workload="generate, skewed")
    rows = {"S, generate": even, "S, generate, skewed": skewed}
    assert [met for met, _ in bars(skewed, rows)] == [True]
    slow = copy.deepcopy(skewed)
    slow["ours"]["seconds"] = 2.7
    assert [met for met, _ in bars(slow, rows)] == [False]


def test_growth_is_from_the_smallest_size_to_the_largest():
    points = {"16": {"ours": side(3.0), "peer": side(8.0, 4)}, "2": {"ours": side(2.0), "peer": side(2.0, 2)}}
    assert growth("c", {"points": points}) == ("c", "2", "16", "x 4.00", "x 1.50", "x 2.00", "x 1.00")


def test_new_rows_replace_their_own_and_keep_the_others(tmp_path):
    described = {"processor": "P", "threads": 2, "memory_gb": 8.0, "python": "3.11", "versions": {"torch": "2"}}
    peaks = {"bfloat16_flops": 9e11, "float32_flops": 2e11, "bandwidth": 2e10}
    for name, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        results = Results(tmp_path)
        results.put_machine(described | peaks)
        results.put("rows", name, row(side(seconds), side(6.0), Bars(speedup=5), workload=name))
    stored = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {name: stored[name]["ours"]["seconds"] for name in stored} == {"a": 3.0, "b": 2.0}
    report = (tmp_path / "results.md").read_text()
    assert "| S, a | 6.00 s ± 0% | 3.00 s ± 0% | 2.0 |" in report
    assert "- MISSED: S, a: 2.00 times TRL's speed, bar 5" in report


def test_a_side_that_fails_is_named_with_its_last_lines(tmp_path):
    missing = str(tmp_path / "missing")
    task = Task("ours", GRPO, missing, missing, missing, str(tmp_path / "work"), "auto", {})
    assert Task.from_line(task.to_line()) == task
    with (
        Worker(task, threads=1) as worker,
        pytest.raises(WorkerError, match=r"ours of grpo 4x4x64 ended(.|\n)*missing"),
    ):
        worker.ready()


def test_workloads_and_curves_have_names_of_their_own():
    names = [(workload.shape, workload.name) for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    for curve in CURVES:
        assert len({workload.name for workload in curve.points.values()}) == len(curve.points) >= 4
    assert spread([1.0, 2.0, 3.0]) == 1.0
