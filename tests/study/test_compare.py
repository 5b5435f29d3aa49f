"""Arms, stages and report of a comparison, with models of two layers."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ofa_fast.evaluation import evaluate
from ofa_fast.study import Arm, Recipe, Task, arms_of, compare
from ofa_fast.study.collect import _matched
from ofa_fast.study.stages import Comparison, locked
from ofa_fast.study.statistics import interval, reached
from ofa_fast.study.tables import matched, show
from ofa_fast.training.checkpoints import Checkpoints

ARMS = [
    *arms_of(["ofa", "random"], [8], [0, 1], 6),
    *arms_of(["random"], [None], [0], 6),
    *arms_of(["ofa:vectors=unlinked:neighbors=3", "mean"], [8], [0], 0),
]


@pytest.fixture(scope="module")
def out(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "out"
    compare(arms=ARMS, out=folder, **world)
    return folder


@pytest.fixture(scope="module")
def report(out) -> dict:
    return json.loads((out / "comparison.json").read_text("utf-8"))


def test_arms_are_methods_times_ranks_times_seeds():
    arms = arms_of(["ofa", "mean"], [100, None], [0, 1, 2], 50)
    assert len({arm.folder for arm in arms}) == 12
    assert [arm.seed for arm in arms] == [0] * 4 + [1] * 4 + [2] * 4
    assert arms[1] == Arm(Recipe.read("ofa"), None, 0, 50)
    assert (arms[1].label, arms[1].folder) == ("ofa, full rank", "ofa-rank-full-seed-0")


def test_a_recipe_is_its_text():
    recipe = Recipe.read("ofa:neighbors=25:temperature=0.2:vectors=small:bias=zero:weighting=sparsemax")
    assert recipe.options == (("neighbors", 25), ("temperature", 0.2), ("weighting", "sparsemax"))
    assert (recipe.method, recipe.vectors, recipe.bias, recipe.needs_vectors) == ("ofa", "small", "zero", True)
    assert not Recipe.read("gaussian").needs_vectors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oaf", "expected one of ofa, wechsel"),
        ("ofa:neighbours=3", "name among .*neighbors"),
        ("ofa:rank=3", "needs options name=value"),
        ("ofa:neighbors", "needs options name=value"),
        ("ofa:bias=random", "moved, frequencies, zero"),
    ],
)
def test_a_recipe_that_does_not_exist(text, message):
    with pytest.raises(ValueError, match=message):
        Recipe.read(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": []}, "arms: give at least one"),
        ({"arms": arms_of(["ofa:vectors=large"], [8], [0], 0)}, "needs large; given: linked, unlinked"),
        ({"vectors": {}}, "needs some; given: none"),
        ({"bias": "random"}, "bias: expected one of"),
        ({"points": (0, 5)}, "points: expected"),
        ({"processes": 0}, "processes: expected at least 1"),
        ({"train_files": ()}, "train_files: they are needed"),
        ({"arms": [*ARMS, *arms_of(["ofa"], [8], [0], 9)]}, "given twice, with 9 and 6 steps"),
    ],
)
def test_arguments_that_do_not_fit_are_named_before_anything_is_written(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(**{"arms": ARMS, "out": tmp_path / "out", **world, **changes})
    assert not (tmp_path / "out").exists()


def test_tasks_are_checked(tmp_path):
    with pytest.raises(ValueError, match="expected a task among"):
        Task("parsing", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Task("retrieval", tmp_path / "missing")


def test_every_arm_is_evaluated_before_at_points_and_after(report):
    assert len(report["arms"]) == len(ARMS)
    for arm in report["arms"]:
        steps = [point["step"] for point in arm["points"]]
        assert steps == ([0, 2, 4, 6] if arm["steps"] else [0])
        for point in arm["points"]:
            always = {"retrieval-verses"} | ({"seen"} if point["step"] in (0, arm["steps"]) else set())
            assert set(point["tasks"]) == always
            assert (point["loss"] is None) == (arm["steps"] == 0)
        seconds = [point["seconds"] for point in arm["points"]]
        assert seconds == sorted(seconds) and len(set(seconds)) == len(seconds)


def test_an_evaluation_is_that_of_the_model_at_that_step(out, world):
    folder = out / ARMS[0].folder
    for step, model in ((0, "initialised"), (6, "trained")):
        expected = evaluate(folder / model, world["tasks"][0].data, "retrieval", k=(1, 5))
        found = json.loads((folder / "evaluations" / f"retrieval-verses-step-{step}.json").read_text("utf-8"))
        assert found["average"] == expected["average"] and found["languages"] == expected["languages"]


def test_the_summary_is_the_mean_of_the_seeds(report):
    for line in report["summary"]:
        points = [p for arm in report["arms"] if arm["label"] == line["label"] for p in arm["points"]]
        points = [p for p in points if p["step"] == line["step"]]
        task = line["measure"]
        values = [p["loss"] if task == "held-out loss" else p["tasks"][task]["score"] for p in points]
        assert line["seeds"] == len(values)
        assert line["mean"] == pytest.approx(np.mean(values))
        assert (line["low"], line["high"]) == (min(values), max(values))


def test_gains_are_paired_by_rank_and_seed(report):
    gain = next(g for g in report["gains"] if g["over"] == "random" and g["rank"] == 8 and g["stage"] == "after")
    arms = {(a["recipe"], a["seed"]): a for a in report["arms"] if a["rank"] == 8}
    task = gain["task"]
    expected = [
        arms["ofa", seed]["points"][-1]["tasks"][task]["languages"][code]
        - arms["random", seed]["points"][-1]["tasks"][task]["languages"][code]
        for seed in (0, 1)
        for code in gain["languages"]
    ]
    assert gain["seeds"] == 2 and gain["mean"] == pytest.approx(np.mean(expected))
    assert gain["interval"][0] <= gain["mean"] <= gain["interval"][1]


def test_pages_show_the_numbers_of_the_json(out, report):
    markdown, page = ((out / name).read_text("utf-8") for name in ("report.md", "report.html"))
    for line in report["summary"]:
        assert show(line["mean"]) in markdown
    for arm in report["arms"]:
        assert arm["label"] in markdown and arm["label"] in page
    assert page.count("<svg") >= 4 and "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")


def test_the_head_knows_the_frequencies_and_starts_neutral(out, world):
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(out / ARMS[0].folder / "initialised")
    tokenizer = AutoTokenizer.from_pretrained(world["tokenizer"])
    counts = np.ones(len(tokenizer))
    for file in world["train_files"]:
        for line in file.read_text("utf-8").splitlines():
            np.add.at(counts, tokenizer(line, add_special_tokens=False)["input_ids"], 1)
    bias = model.get_output_embeddings().bias.detach().numpy()
    np.testing.assert_allclose(bias, np.log(counts / counts.sum()), rtol=1e-5)
    transform = model.cls.predictions.transform.dense.weight
    assert torch.equal(transform, torch.eye(len(transform)))


def _evaluations(folder: Path) -> dict[str, dict]:
    found = {}
    for file in sorted(folder.glob("*/evaluations/*.json")):
        result = json.loads(file.read_text("utf-8"))
        found[f"{file.parent.parent.name}/{file.name}"] = {key: result[key] for key in ("languages", "average")}
    return found


@pytest.mark.parametrize("when", ["initialising", "before a milestone's evaluation", "after a checkpoint"])
def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(world, out, tmp_path, monkeypatch, when):
    arms, folder = ARMS[:1], tmp_path / "out"

    def die(*_args, **_options):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        if when == "initialising":
            patch.setattr(Comparison, "_set_bias", die)
        elif when == "after a checkpoint":
            commit = Checkpoints.commit

            def commit_and_die(self, step, *rest):
                commit(self, step, *rest)
                if step == 4:
                    raise MemoryError

            patch.setattr(Checkpoints, "commit", commit_and_die)
        else:
            patch.setattr(Comparison, "_measure_checkpoint", die)
        compare(arms=arms, out=folder, **world)
    assert not (folder / "comparison.json").exists()
    compare(arms=arms, out=folder, **world)
    whole = _evaluations(out)
    assert _evaluations(folder) == {name: whole[name] for name in _evaluations(folder)}
    assert len(_evaluations(folder)) == 6
    losses = [(path / arms[0].folder / "trained" / "losses.csv").read_text("utf-8") for path in (out, folder)]
    columns = [[line.split(",")[2] for line in text.splitlines()] for text in losses]
    assert columns[0] == columns[1]


def test_a_finished_comparison_does_nothing_but_its_report(world, out, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    monkeypatch.setattr(Comparison, "run", None)
    monkeypatch.setattr(Comparison, "initialise", None)
    before = json.loads((copy / "comparison.json").read_text("utf-8"))
    after = compare(arms=ARMS, out=copy, **world)
    assert after["arms"] == before["arms"] and after["summary"] == before["summary"]


def test_a_folder_of_other_arms_is_refused(world, out):
    with pytest.raises(ValueError, match="was made with steps 6, not 7"):
        compare(arms=arms_of(["ofa"], [8], [0], 7), out=out, **world)
    with pytest.raises(ValueError, match="was made with training"):
        compare(arms=ARMS, out=out, **(world | {"batch_size": 3}))


def test_arms_and_evaluations_of_other_files_are_refused(world, out, tmp_path):
    copy = tmp_path / "copy"
    for kind in ("train_files", "eval_files"):
        files = [shutil.copy(file, tmp_path / file.name) for file in world[kind]]
        compare(arms=ARMS[:1], out=out, **(world | {kind: files}))
        files[0].write_text(files[0].read_text("utf-8").swapcase(), "utf-8")
        with pytest.raises(ValueError, match=f"was made with {kind}"):
            compare(arms=ARMS[:1], out=out, **(world | {kind: files}))
    own = world | {"tasks": [], "vectors": {"own": Path(shutil.copy(world["vectors"]["linked"], tmp_path))}}
    compare(arms=arms_of(["ofa"], [8], [0], 0), out=tmp_path / "made", **own)
    shutil.copy(world["vectors"]["unlinked"], own["vectors"]["own"])
    with pytest.raises(ValueError, match=r"was made with states .*vectors own"):
        compare(arms=arms_of(["ofa"], [8], [0], 0), out=tmp_path / "made", **own)
    with pytest.raises(ValueError, match=r"was measured with .*'language': 'eng'.*, not .*'language': 'deu'"):
        compare(arms=ARMS[:1], out=out, **(world | {"language": "deu"}))
    shutil.copytree(world["tasks"][0].data, copy)
    task = Task("retrieval", copy, "copied", options={"k": (1,)})
    arms = arms_of(["random"], [8], [0], 0)
    compare(arms=arms, out=tmp_path / "out", **(world | {"tasks": [task]}))
    (copy / "deu.txt").write_text((copy / "deu.txt").read_text("utf-8").swapcase(), "utf-8")
    with pytest.raises(ValueError, match=r"was measured with .*'state'"):
        compare(arms=arms, out=tmp_path / "out", **(world | {"tasks": [task]}))


def test_what_an_earlier_version_wrote_down_is_compared(world, tmp_path):
    arms, out = arms_of(["ofa"], [8], [0], 0), tmp_path / "out"
    compare(arms=arms, out=out, **world)
    (path,) = out.glob("*/arm.json")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "states"}))
    for path in out.glob("*/evaluations/*.json"):
        result = json.loads(path.read_text("utf-8"))
        result["made_by"] = {key: result["made_by"][key] for key in ("kind", "data", "options")}
        path.write_text(json.dumps(result), "utf-8")
    compare(arms=arms, out=out, **world)
    with pytest.raises(ValueError, match="was made with bias frequencies, not zero"):
        compare(arms=arms, out=out, **(world | {"bias": "zero"}))


def test_the_source_of_another_model_is_measured_anew(world, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Comparison, "initialise", lambda *_: (_ for _ in ()).throw(MemoryError))
        compare(arms=arms_of(["random"], [8], [0], 0), out=tmp_path / "out", **world)
    other = shutil.copytree(world["source"], tmp_path / "other")
    with pytest.raises(ValueError, match=r"source.*was measured with .*'model'"):
        compare(arms=arms_of(["random"], [8], [0], 0), out=tmp_path / "out", **(world | {"source": other}))


def test_what_lies_beside_the_data_makes_no_difference(world, tmp_path):
    data = shutil.copytree(world["tasks"][0].data, tmp_path / "data")
    tasks = [Task("retrieval", data, "copied", options={"k": (1,)})]
    call = {"arms": arms_of(["random"], [8], [0], 0), "out": data / "compared", **(world | {"tasks": tasks})}
    compare(**call)
    (data / "report.json").write_text("{}")
    compare(**call)


def test_what_failed_before_an_arm_was_made_claims_nothing(world, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Comparison, "initialise", lambda *_: (_ for _ in ()).throw(MemoryError))
        compare(arms=arms_of(["random"], [8], [0], 5), out=out, **world)
    report = compare(arms=arms_of(["random"], [8], [0], 2), out=out, **world)
    assert [point["step"] for point in report["arms"][0]["points"]] == [0, 2]


def test_frequencies_are_those_of_the_text_in_every_format(world, tmp_path):
    datasets = pytest.importorskip("datasets")
    file = world["train_files"][0]
    lines = file.read_text("utf-8").splitlines()
    rows = datasets.Dataset.from_dict({"text": lines})
    rows.to_json(tmp_path / "a.jsonl")
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "a")
    found = [
        Comparison(world["source"], world["tokenizer"], {}, tmp_path / "out", [], [], [("deu", path)]).log_frequencies
        for path in (file, tmp_path / "a.jsonl", tmp_path / "a.parquet", tmp_path / "a")
    ]
    assert found[0].exp().sum().item() == pytest.approx(1) and len(found[0].unique()) > 10
    assert all((other == found[0]).all() for other in found[1:])


def test_a_task_of_the_source_language_alone_has_gains(world, tmp_path):
    task = Task("retrieval", world["tasks"][0].data, "alone", options={"k": (1, 5)})
    compare(arms=arms_of(["ofa", "random"], [8], [0], 0), out=tmp_path / "out", **(world | {"tasks": [task]}))
    for file in tmp_path.glob("out/*/evaluations/*.json"):
        result = json.loads(file.read_text("utf-8"))
        result["languages"] = {"eng": result["languages"]["deu"]}
        file.write_text(json.dumps(result), "utf-8")
    arms = arms_of(["ofa", "random"], [8], [0], 0)
    (gain,) = compare(arms=arms, out=tmp_path / "out", **(world | {"tasks": [task]}))["gains"]
    assert list(gain["languages"]) == ["eng"] and gain["mean"] == gain["languages"]["eng"]["mean"]


def test_the_reference_has_the_highest_rank():
    def line(rank, step, mean):
        return {
            "label": f"random, {rank}",
            "measure": "m",
            "step": step,
            "mean": mean,
            "seconds": step,
            "watt_hours": 0,
        }

    lines = [line(rank, step, 0.1) for rank in ("rank 400", "rank 1000", "rank 80") for step in (0, 9)]
    assert {one["reference"] for one in _matched(lines)} == {"random, rank 1000"}
    lines += [line("full rank", 0, 0.1), line("full rank", 9, 0.1)]
    assert {one["reference"] for one in _matched(lines)} == {"random, full rank"}


def test_two_processes_share_the_arms(world, out, tmp_path):
    compare(arms=ARMS[-2:], out=tmp_path / "out", processes=2, **world)
    whole = _evaluations(out)
    assert _evaluations(tmp_path / "out") == {name: whole[name] for name in _evaluations(tmp_path / "out")}


def test_an_arm_that_another_process_left_unfinished_is_taken_over(world, tmp_path):
    arm = ARMS[-1]
    with ExitStack() as other:
        assert other.enter_context(locked(tmp_path / "out" / arm.folder / ".lock", wait=False))
        timer = threading.Timer(1.0, other.close)
        timer.start()
        report = compare(arms=[arm], out=tmp_path / "out", **world)
        assert timer.finished.is_set() and report["arms"][0]["label"] == arm.label


def test_an_interval_holds_the_mean_and_knows_certainty():
    random = np.random.default_rng(0)
    assert interval(np.full((3, 5), 0.25)) == [0.25, 0.25]
    low, high = interval(random.normal(0.1, 1.0, (3, 8)))
    assert low < 0.1 < high


def test_where_a_curve_reaches_a_target():
    assert reached([1.0, 3.0, 5.0], [0, 10, 20], 4.0, falling=False) == 15
    assert reached([9.0, 7.0, 6.0], [0, 10, 20], 8.0, falling=True) == 5
    assert reached([9.0, 7.0, 6.0], [0, 10, 20], 9.5, falling=True) == 0
    assert reached([1.0, 3.0], [0, 10], 4.0, falling=False) is None


def test_the_reference_reaches_its_own_end_no_later_than_it_ends(report):
    assert {line["reference"] for line in report["matched"]} == {"random, full rank"}
    for line in report["matched"]:
        if line["label"] == line["reference"]:
            assert line["step"] <= line["reference_costs"]["step"]
    assert matched(report).rows
