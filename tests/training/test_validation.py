"""Evaluations during training: their numbers, the training beside them, the best checkpoint, and what is refused."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import torch
import toy
from safetensors.torch import load_file

from janus_hf.data import JanusProCollator, PackedDataset, prepare_rows
from janus_hf.training import build_trainer, load_recipe, train
from janus_hf.training.recording import newest_checkpoint
from janus_hf.training.validation.settings import EvaluationSource


ALL = (toy.DRAWING, toy.UNDERSTANDING, toy.TEXT)


class Scripted:
    """A benchmark that returns scores one after another, and uses every kind of random number meanwhile."""

    def __init__(self, *scores, better=True):
        self.scores, self.better, self.calls = list(scores), better, []

    @property
    def metrics(self):
        return {"score": self.better}

    def __call__(self, model, processor, folder, *, shared):
        assert not any(module.training for module in model.modules())
        torch.rand(3), np.random.rand(3), random.random()
        self.calls.append((folder.parent.name, folder.name, shared))
        return {"score": self.scores[len(self.calls) - 1]}


def evaluations(trainer):
    return [log for log in trainer.state.log_history if "eval_runtime" in log]


# Numbers


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_losses_are_means_over_labels_whatever_the_batches(batch_size, tmp_path):
    """Seven rows fill no batch of two or four: the last batch repeats rows, which do not count."""
    model = toy.load_model()
    rows = toy.Packs(model.config, rows=7, kinds=ALL)
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, per_device_eval_batch_size=batch_size), model=model, eval_dataset=rows
    )
    metrics = trainer.evaluate()
    sums = dict.fromkeys(ALL, (0.0, 0))
    with torch.no_grad():
        for index in range(len(rows)):
            batch = toy.collate([rows[index]])
            kind = rows[index][0]["kind"]
            del batch["task_ids"]
            count = int((batch["labels"][:, 1:] >= 0).sum())
            total, labels = sums[kind]
            sums[kind] = (total + float(model.eval()(**batch).loss) * count, labels + count)
    expected = {
        "eval_loss": ALL,
        "eval_text_loss": (toy.UNDERSTANDING, toy.TEXT),
        "eval_image_loss": (toy.DRAWING,),
        "eval_loss_drawing": (toy.DRAWING,),
        "eval_loss_text": (toy.TEXT,),
        "eval_loss_understanding": (toy.UNDERSTANDING,),
    }
    for name, kinds in expected.items():
        total, labels = (sum(sums[kind][i] for kind in kinds) for i in (0, 1))
        assert metrics[name] == pytest.approx(total / labels, rel=1e-5), name
    assert metrics["eval_text_labels"] == sum(sums[kind][1] for kind in (toy.UNDERSTANDING, toy.TEXT))
    assert set(metrics) == {*expected, "eval_text_labels", "eval_image_labels", "eval_runtime"}
    (logged,) = evaluations(trainer)
    assert metrics.items() <= logged.items()


@pytest.mark.parametrize("persistent", [False, True])
def test_sources_have_a_loss_each_and_weights_in_the_whole(persistent, tmp_path):
    model = toy.load_model()
    sources = {
        name: toy.Packs(model.config, rows=rows, kinds=kinds)
        for name, rows, kinds in (("new", 3, (toy.DRAWING,)), ("old", 2, (toy.TEXT,)))
    }
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True} if persistent else {}
    trainer = toy.trainer_for(
        toy.config_for(tmp_path, per_device_eval_batch_size=2, **workers), model=model, eval_dataset=sources
    )
    metrics = trainer.evaluate()
    for source, head, task in (("new", "image", "drawing"), ("old", "text", "text")):
        same = (metrics[f"eval_{name}"] for name in (f"{head}_loss", f"loss_{task}"))
        assert list(same) == pytest.approx([metrics[f"eval_{source}_loss"]] * 2)
    images, texts = metrics["eval_image_labels"], metrics["eval_text_labels"]

    def mean(weight):
        total = weight * images * metrics["eval_new_loss"] + texts * metrics["eval_old_loss"]
        return total / (weight * images + texts)

    assert metrics["eval_loss"] == pytest.approx(mean(1))
    trainer.evaluation_ratios = {"new": 3.0}
    weighted = trainer.evaluate()
    assert weighted["eval_loss"] == pytest.approx(mean(3))
    assert weighted["eval_image_labels"] == images
    assert trainer.evaluate("old")["eval_loss"] == metrics["eval_old_loss"]
    assert trainer.evaluate(sources["new"], metric_key_prefix="test")["test_loss"] == metrics["eval_new_loss"]
    trainer.predict(sources["new"])  # leaves nothing for the next evaluation
    assert trainer.evaluate("old")["eval_loss"] == metrics["eval_old_loss"]


def test_captions_are_not_dropped(tmp_path):
    model, processor = toy.load_model(), toy.load_processor()
    rows = [{"prompt": f"a picture of {n} dogs", "image": np.zeros((64, 64, 3), np.uint8)} for n in range(4)]
    packs = PackedDataset({"a": prepare_rows(rows, model, processor)}, max_length=256)
    losses = []
    for share in (0.0, 0.99):
        args = toy.config_for(tmp_path, "stage1", caption_drop=share)
        collator = JanusProCollator(processor, caption_drop=share, return_task_ids=True)
        trainer = toy.trainer_for(args, model=model, data_collator=collator, eval_dataset=packs)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]
    assert collator.caption_drop == 0.99


def test_nothing_to_evaluate_on(tmp_path):
    trainer = toy.trainer_for(toy.config_for(tmp_path, "stage1"))
    with pytest.raises(ValueError, match="`eval_dataset` must be given"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="The evaluation data 'mine' must have rows, got none"):
        trainer.evaluate({"mine": []})
    trainer.add_benchmarks({"quiz": Scripted(0.5)})
    assert trainer.evaluate()["eval_quiz_score"] == 0.5


# The training beside it


@pytest.mark.parametrize("stage", ["stage2", "lora_both"])
def test_training_with_evaluations_equals_training_without(stage, tmp_path):
    fields = {"lora_dropout": 0.3} if stage == "lora_both" else {}
    runs = []
    for evaluates in (False, True):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        model = toy.load_model()
        more = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True} if evaluates else {}
        trainer = toy.trainer_for(
            toy.config_for(tmp_path, stage, max_steps=3, **fields, **more),
            model=model,
            eval_dataset=toy.Packs(model.config, rows=7, kinds=ALL) if evaluates else None,
        )
        trainer.add_benchmarks({"quiz": Scripted(*range(4))}, every=2)
        trainer.train()
        states = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
        modes = [module.training for module in trainer.model.modules()]
        runs.append((toy.trajectory(trainer), states, modes))
    assert runs[0] == runs[1]
    steps = [(log["step"], log.get("eval_quiz_score")) for log in evaluations(trainer)]
    assert steps == [(0, 0), (1, None), (2, 1), (3, 2)]
    assert trainer.benchmarks["quiz"].calls == [(f"step-{n}", "quiz", True) for n in (0, 2, 3)]


def test_processes_with_a_sharded_model_do_not_share_the_work(tmp_path, monkeypatch):
    trainer = toy.trainer_for(toy.config_for(tmp_path, "stage1"))
    trainer.add_benchmarks({"quiz": Scripted(1.0)})
    monkeypatch.setattr(type(trainer.args), "sharded", True)
    trainer.evaluate()
    assert trainer.benchmarks["quiz"].calls == [("step-0", "quiz", False)]


# The best checkpoint


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("loss_drawing", False),
        ("eval_text_loss", False),
        ("loss", False),
        ("eval_new_loss", False),
        ("loss_understanding", False),
        ("quiz_score", True),
    ],
)
def test_the_direction_of_a_metric(metric, better, tmp_path):
    args = toy.config_for(tmp_path, metric_for_best_model=metric)
    assert args.greater_is_better is better
    turned = toy.config_for(tmp_path, metric_for_best_model=metric, greater_is_better=not better)
    assert turned.greater_is_better is not better


@pytest.mark.parametrize(
    ("stage", "strategy"),
    [
        ("lora_both", "steps"),
        ("stage1", "best"),
        pytest.param("stage1", "steps", marks=pytest.mark.slow),
        pytest.param("lora_both", "best", marks=pytest.mark.slow),
    ],
)
def test_the_best_checkpoint_is_the_result_and_survives_resuming(stage, strategy, recipe_file, tmp_path):
    """The third of four scores is the best, but every two steps no checkpoint of it is saved."""
    scores, found = (0.2, 0.5, 0.9, 0.1), {"steps": 2, "best": 3}[strategy]
    overrides = [
        f"training.stage={stage}",
        "training.max_steps=4",
        "training.save_steps=2",
        f"training.save_strategy={strategy}",
        "training.eval_steps=1",
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=quiz_score",
        "training.resume_from_checkpoint=auto",
        "training.activation_checkpointing=false",
        "evaluate.benchmarks={quiz: {}}",
    ]
    lines = []

    def run(*values):
        return train(
            recipe_file,
            overrides,
            load_data=toy.load_data,
            make_benchmarks=lambda section: {name: Scripted(*values) for name in section},
            report=lines.append,
        )

    out = run(*scores)
    name = "adapter_model.safetensors" if stage == "lora_both" else "model.safetensors"

    def weights(folder):
        return {key: value.float() for key, value in load_file(folder / name).items()}

    def is_best():
        result, best = weights(out), weights(out / f"checkpoint-{found}")
        return result.keys() == best.keys() and all(torch.equal(result[key], best[key]) for key in best)

    best = f"step {found}, eval_quiz_score {scores[found - 1]:g}"
    assert lines[-1].endswith(f"4 steps, best checkpoint: {best}")
    assert f"| best checkpoint | {best} |" in (out / "README.md").read_text()
    assert is_best()
    if strategy == "best":
        return
    assert not all(torch.equal(value, weights(out)[key]) for key, value in weights(out / "checkpoint-4").items())

    # The run is finished: the same command leaves the best model, also where only checkpoints are left.
    run()
    assert is_best()
    for file in out.glob("*.*"):
        file.unlink()
    run()
    assert is_best()

    # It is resumed after the best checkpoint, whose score is the one to beat.
    shutil.rmtree(out / "checkpoint-4")
    run(0.4, 0.3)
    assert json.loads((out / "trainer_state.json").read_text())["best_global_step"] == found
    assert is_best()


def test_another_metric_forgets_the_best_checkpoint(tmp_path, caplog):
    model = toy.load_model()
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best |= {"load_best_model_at_end": True}
    for steps, metric, scores, found in ((2, "quiz_score", (9, 8), 1), (3, "exam_score", (5,), 3)):
        args = toy.config_for(tmp_path, "stage1", max_steps=steps, metric_for_best_model=metric, **best)
        trainer = toy.trainer_for(args, model=model, eval_dataset={})
        trainer.add_benchmarks({metric.removesuffix("_score"): Scripted(*scores)})
        trainer.train(resume_from_checkpoint="auto")
        assert (trainer.state.best_global_step, trainer.state.best_metric) == (found, max(scores))
    assert "that of step 1, was chosen by another metric than eval_exam_score" in caplog.text


def test_a_checkpoint_of_the_best_loss(recipe_file, tmp_path):
    """The data stand in the recipe, as the losses by which the checkpoint is chosen."""

    def load_data(section, *args):
        (source,) = section["evaluation"]
        rows = toy.Packs(args[1].config, rows=3, kinds=(toy.DRAWING,))
        evaluation = {source["name"]: EvaluationSource(rows, ("drawing",), 2.0)}
        return dataclasses.replace(toy.load_data(section, *args), evaluation=evaluation)

    overrides = [
        "data.evaluation=[{name: unseen, path: elsewhere}]",
        "training.eval_strategy=epoch",
        "training.save_strategy=epoch",
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=loss_drawing",
    ]
    trainer = build_trainer(load_recipe(recipe_file, overrides), load_data=load_data)
    assert trainer.args.greater_is_better is False
    assert trainer.args.per_device_eval_batch_size == 8
    trainer.train()
    (logged,) = evaluations(trainer)
    assert trainer.state.best_metric == logged["eval_loss_drawing"] == pytest.approx(logged["eval_unseen_loss"])
    assert trainer.state.best_model_checkpoint == newest_checkpoint(tmp_path / "out")
    with pytest.raises(ValueError, match="`load_data` must return the data of data.evaluation"):
        build_trainer(load_recipe(recipe_file, overrides), load_data=toy.load_data)
    off = build_trainer(
        load_recipe(recipe_file, [*overrides[:1], "training.eval_strategy=no"]), load_data=toy.load_data
    )
    assert off.eval_dataset is None


# What is refused before the first step

EVALUATION = "data.evaluation=[{name: unseen, path: elsewhere}]"
QUIZ = "evaluate.benchmarks={quiz: {}}"
WHEN = "training.eval_steps=1"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(
            ([f"training.{option}"], f"training.{option.split('=')[0]} must come together with data to evaluate on")
            for option in (
                *("eval_steps=5", "eval_strategy=steps", "eval_strategy=epoch", "eval_delay=3", "eval_on_start=true"),
                *("load_best_model_at_end=true", "metric_for_best_model=loss", "greater_is_better=true"),
                *("per_device_eval_batch_size=2", "save_strategy=best"),
            )
        ),
        ([EVALUATION, WHEN, "training.bf16_full_eval=true"], "training.bf16_full_eval must be left out of a recipe"),
        ([EVALUATION, WHEN, "training.do_eval=true"], "training.do_eval must be left out of a recipe"),
        ([EVALUATION], "training.eval_steps must be set together with data.evaluation or evaluate"),
        ([QUIZ], "training.eval_steps must be set together with data.evaluation or evaluate"),
        (["data.evaluation=[]"], "data.evaluation must be a list of at least one source"),
        (["data.evaluation=folder"], "data.evaluation must be a list of at least one source, got 'folder'"),
        (["data.evaluation=[{name: a}]"], "Every source of data.evaluation must have a name and a path"),
        (["data.evaluation=[{name: a, path: b, ratio: 0}]"], "The ratio of the evaluation source 'a' must be"),
        (["data.evaluation=[{name: text, path: b}]"], "must not be named 'text'"),
        (["data.evaluation=[{name: a, path: b}, {name: a, path: c}]"], "names of the sources of data.evaluation"),
        (["data.eval=[]"], "data has no key 'eval'"),
        (["evaluate.benchmark={quiz: {}}"], "evaluate has no key 'benchmark'"),
        (["evaluate.every=3"], "evaluate.benchmarks must be a mapping from benchmarks to their options, got None"),
        (["evaluate.benchmarks=[quiz]"], "evaluate.benchmarks must be a mapping from benchmarks to their options"),
        (["evaluate.benchmarks={quiz: 3}", WHEN], "evaluate.benchmarks.quiz must be a mapping of options, got 3"),
        ([QUIZ, "evaluate.every=0"], "evaluate.every must be a number of steps of 1 or more, got 0"),
        ([QUIZ, "evaluate.every=1.5"], "evaluate.every must be a number of steps of 1 or more"),
        ([QUIZ, "evaluate.every=5", "training.eval_steps=2"], "evaluate.every must be a multiple of training.eval_st"),
        ([QUIZ, "evaluate.every=5", "training.eval_strategy=epoch"], "evaluate.every must be a multiple of"),
        (
            [QUIZ, WHEN, "training.metric_for_best_model=quiz_scores"],
            "must be a metric that the evaluations of this run log, got 'quiz_scores': choose one of eval_quiz_score",
        ),
        ([QUIZ, WHEN, "training.metric_for_best_model=loss"], "must be a metric that the evaluations .* got 'loss'"),
        ([QUIZ, WHEN, "training.load_best_model_at_end=true", "training.save_steps=1"], "got 'loss': choose one of"),
        ([QUIZ, WHEN, "training.metric_for_best_model=quiz_share"], "`greater_is_better` must be set with"),
    ],
)
def test_errors_before_the_first_step(recipe_file, overrides, message):
    quiz = Scripted()
    quiz.__class__ = type("Quiz", (Scripted,), {"metrics": {"score": True, "share": None}})
    with pytest.raises(ValueError, match=message):
        build_trainer(
            load_recipe(recipe_file, overrides),
            load_data=toy.load_data,
            make_benchmarks=lambda section: {"quiz": quiz},
        )


def test_benchmarks_need_a_function_that_makes_them(recipe_file):
    with pytest.raises(ValueError, match="`make_benchmarks` must be given for a recipe with the section evaluate"):
        train(recipe_file, [QUIZ, WHEN], load_data=toy.load_data)


def test_when_to_evaluate_follows_from_what_is_given(recipe_file):
    def options(*overrides):
        recipe = load_recipe(recipe_file, overrides)
        return [recipe.training.get(name) for name in ("eval_strategy", "eval_steps", "per_device_eval_batch_size")]

    assert options(EVALUATION, "training.eval_steps=3") == ["steps", 3, None]
    assert options(QUIZ, "evaluate.every=4", "training.per_device_train_batch_size=2") == ["steps", 4, 2]
    assert options(QUIZ, "evaluate.every=4", "training.eval_steps=2") == ["steps", 2, None]
    assert options(EVALUATION, "training.eval_on_start=true") == [None, None, None]
    assert options(EVALUATION, "training.eval_strategy=epoch") == ["epoch", None, None]
    assert options() == [None, None, None]


# Several processes


@pytest.mark.slow
def test_two_processes_evaluate_as_one(raw_recipe, tmp_path):
    """Losses and a benchmark of the package; nine rows, which two processes cannot share evenly."""
    rows = (tmp_path / "drawing.jsonl").read_text() * 3
    (tmp_path / "unseen.jsonl").write_text(rows)
    logs = []
    for processes in (1, 2):
        overrides = [
            f"training.per_device_train_batch_size={2 // processes}",
            f"training.output_dir={tmp_path / str(processes)}",
            "training.per_device_eval_batch_size=1",
            "training.eval_on_start=true",
            f"data.evaluation=[{{name: unseen, path: {tmp_path / 'unseen.jsonl'}}}]",
            "evaluate.every=2",
            "evaluate.benchmarks={shapes: {prompts_per_tag: 1, images_per_prompt: 1, questions: 2}}",
        ]
        done = toy.launch(
            *("-m", "janus_hf_cli", "train", str(raw_recipe), *overrides),
            processes=processes,
            how="--multi_gpu" if processes > 1 else "--cpu",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        state = json.loads((tmp_path / str(processes) / "trainer_state.json").read_text())
        logs.append([log for log in state["log_history"] if "eval_runtime" in log])
    assert [log["step"] for log in logs[0]] == [0, 2, 4]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        assert {"eval_unseen_loss", "eval_image_loss", "eval_shapes_overall"} < one.keys()
        for name in one.keys() - {"eval_runtime"}:
            assert one[name] == pytest.approx(two[name], rel=1e-4), name
