"""Every option of every command changes what the command does, or is refused by name.

The functions and classes that a command calls are replaced by recorders, so nothing is loaded or computed. A command
is run with its required arguments, and once more with each option; what it calls and prints must differ.
"""

import argparse

import pytest
from PIL import Image

import janus_hf
from janus_hf_cli import make_parser


# Command -> its required arguments. "me/model" is a repository, so that `--revision` has a meaning.
MODEL = ("-m", "me/model")
REQUIRED = {
    "assemble": (
        *("assemble", "--language-model", "me/llm", "--vision-tower", "me/siglip", "--codec", "me/vq.pt"),
        *("-o", "start"),
    ),
    "draw": ("draw", "a fox", *MODEL),
    "ask": ("ask", "image.png", "what?", *MODEL),
    "chat": ("chat", *MODEL),
    "convert": ("convert", "me/model", "new", "--layout", "original"),
    "info": ("info", "me/model"),
    "prepare": ("prepare", "data.jsonl", "-o", "out", *MODEL),
    "train": ("train", "recipe.yaml"),
    "merge": ("merge", "me/adapter", "new"),
    "eval clipscore": ("eval", "clipscore", "--images", "pictures"),
    "eval fid": ("eval", "fid", "--reference", "reference", "--images", "pictures"),
    "eval report": ("eval", "report", "run"),
}
# Options that need another one.
WITH = {
    ("ask", "--temperature"): ("--sample",),
    ("chat", "--temperature"): ("--sample",),
    ("eval geneval", "--prompts-per-tag"): ("--detector", "shapes"),
}
# Values of options that not every value is allowed for.
VALUES = {"--device": "meta", "--image": "image.png", "--images": "other", "--task": "text", "--dtype": "float32"}


class StopError(ValueError):
    """Raised by a recorder where the command has nothing left to do."""


class Recorder:
    """Records calls of functions and methods as text."""

    def __init__(self):
        self.calls = []

    def note(self, name, *args, **kwargs):
        self.calls.append(f"{name} {args} {sorted(kwargs.items())}")

    def function(self, name, result=None, *, stops=False):
        """A function that records its arguments and returns `result`, or ends the command."""

        def record(*args, **kwargs):
            self.note(name, *args, **kwargs)
            if stops:
                raise StopError("recorded")
            return result

        return record


class Pipe:
    """A pipeline that records its use."""

    def __init__(self, recorder):
        self.recorder = recorder
        self.model = "model"
        self.processor = argparse.Namespace(tokenizer=None)

    def to(self, device):
        self.recorder.note("to", device)
        return self

    def __call__(self, *args, generator, **kwargs):
        seeds = [one.initial_seed() for one in generator]
        self.recorder.note("pipe", *args, seeds=seeds, **kwargs)
        return [Image.new("RGB", (4, 4)) for _ in seeds], None

    def load_lora_weights(self, *args):
        self.recorder.note("load_lora_weights", *args)

    def enable_fast_decoding(self, *args):
        self.recorder.note("enable_fast_decoding", *args)

    def ask(self, images, question, **kwargs):
        self.recorder.note("ask", [image.getpixel((0, 0)) for image in images], question, **without_streamer(kwargs))

    def chat(self, messages, **kwargs):
        self.recorder.note(
            "chat", [[type(part) for part in one["content"]] for one in messages], len(messages[0]["content"])
        )
        self.recorder.note("chat", **without_streamer(kwargs))


def without_streamer(kwargs):
    """The arguments but the streamer, whose text is another one in every run."""
    return {name: value for name, value in kwargs.items() if name != "streamer"}


@pytest.fixture
def commands(run, monkeypatch, tmp_path):
    """Function `commands(*argv)` that runs a command; it returns what it calls and prints, and its errors."""
    recorder = Recorder()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "image.png")
    metrics = "janus_hf.evaluation.benchmarks.image_metrics"
    monkeypatch.setattr(
        janus_hf.JanusProPipeline, "from_pretrained", recorder.function("from_pretrained", Pipe(recorder))
    )
    for path, result in {
        "janus_hf.evaluation.evaluators.make_evaluator": recorder.function("evaluator", stops=True),
        f"{metrics}.run_pictures": ["a run"],
        f"{metrics}.prompted_pictures": ["images with prompts"],
        f"{metrics}.folder_pictures": ["images"],
        f"{metrics}.reference_pictures": ["reference"],
        f"{metrics}.drawn_with": {},
        f"{metrics}.VisionFeatures": "network",
        "janus_hf.rewards.clip.ClipScore": "scorer",
        "janus_hf.rewards.vqa.TransformersVqaJudge": "judge",
        "janus_hf.evaluation.run_folder.open_run": None,
        "janus_hf.data.prepare_mixture": {},
    }.items():
        monkeypatch.setattr(path, recorder.function(path, result))
    for path in (
        f"{metrics}.evaluate_clip_score",
        f"{metrics}.evaluate_fid",
        "janus_hf.checkpoints.assemble.assemble_checkpoint",
        "janus_hf.checkpoints.convert.convert_checkpoint",
        "janus_hf.checkpoints.merge.merge_adapter",
        "janus_hf.checkpoints.inspect.inspect_checkpoint",
        "janus_hf.training.run.train",
        "janus_hf.evaluation.report.Report.load",
    ):
        monkeypatch.setattr(path, recorder.function(path, stops=True))

    def check_device(device):
        recorder.note("device", device)  # accelerate's state holds it, from where some benchmarks take it
        return device

    monkeypatch.setattr("janus_hf_cli.model_arguments.check_device", check_device)

    class Judge:
        def __init__(self, *args, **kwargs):
            recorder.note("Judge", *args, **kwargs)

        def __enter__(self):
            return "judge of another environment"

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("janus_hf.rewards.mplug.MplugJudge", Judge)

    def commands(*argv):
        recorder.calls.clear()
        lines = iter(["hi"])

        def read(prompt):
            if (line := next(lines, None)) is None:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", read)
        _, out, err = run(*argv)
        return [*recorder.calls, out], err

    return commands


def parsers(parser, name=""):
    """Every command's parser, by the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, sub in action.choices.items():
                yield from parsers(sub, f"{name} {command}".strip())
            return
    yield name, parser


def changed(command, action):
    """The arguments that give an option a value that is not its default."""
    option = max(action.option_strings, key=len)
    if action.nargs == 0:
        return (option,)
    if VALUES.get(option, action.default) != action.default:
        return option, VALUES[option]
    if action.choices:
        return option, next(one for one in action.choices if one != action.default and one not in REQUIRED[command])
    kinds = {int: "7", float: "0.7"}
    return option, kinds.get(action.type, "7" if "batch" in option else "other")


def rows():
    for command, parser in parsers(make_parser()):
        REQUIRED.setdefault(command, (*command.split(), *MODEL))
        for action in parser._actions:
            if action.option_strings and action.dest not in ("help", "version"):
                yield command, max(action.option_strings, key=len)


ROWS = list(rows())


def test_all_commands_are_here():
    assert {command.split()[0] for command, _ in ROWS} == {
        *("draw", "ask", "chat", "convert", "info", "prepare", "merge", "eval", "assemble")
    }
    assert len(ROWS) > 150


@pytest.mark.parametrize(("command", "option"), ROWS)
def test_an_option_has_an_effect(commands, command, option):
    parser = dict(parsers(make_parser()))[command]
    action = parser._option_string_actions[option]
    base = [*REQUIRED[command], *WITH.get((command, option), ())]
    if option == "--model":
        base = base[:-2]
    given = [*base, *changed(command, action)]
    if (command, option) in {("eval clipscore", "--results"), ("eval fid", "--results")}:
        given = [*base[:-2], "--results", "pictures"]
    before, _ = commands(*base)
    after, _ = commands(*given)
    assert before
    assert after != before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("draw", "a", "--revision", "main"), "`--revision` must come together with a repository"),
        (("draw", "a", "-m", ".", "--revision", "main"), "`--revision` must come together with a repository"),
        (("info", "--revision", "main"), "`--revision` must come together with a repository"),
        (("convert", ".", "new", "--layout", "original", "--revision", "main"), "`--revision` must come together"),
        (("merge", ".", "new", "--revision", "main"), "`--revision` must come together"),
        (("eval", "geneval", "--prompts-per-tag", "5"), "`--prompts-per-tag` must come together"),
        (("ask", "image.png", "what?", "--temperature", "0.5"), "`--temperature` must come together"),
    ],
)
def test_an_option_without_an_effect_is_refused(commands, argv, words):
    _, err = commands(*argv)
    assert words in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("draw", "a fox", "-m", "./nope"), "'./nope' is not a folder on this machine, and not a repository id"),
        (("train", "./nope.yaml"), "must be the YAML file of a recipe, got './nope.yaml', which is no file"),
    ],
)
def test_a_path_that_does_not_exist_is_named(run, argv, words):
    status, _, err = run(*argv)
    assert status == 1
    assert words in err
