"""The `janus-hf` command, run in this process; once as it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

import janus_hf.modeling.quantisation
from janus_hf import JanusProForConditionalGeneration, JanusProPipeline, __version__
from janus_hf.assets import DEFAULT_MODEL
from tiny import TINY_MODEL


FAST = ("-m", TINY_MODEL, "--dtype", "float32")  # bfloat16, the stored dtype, takes a CPU several times as long


@pytest.fixture(scope="module")
def pipe():
    """The tiny model, as the command loads it with `FAST`. Shared: do not change it."""
    pipe = JanusProPipeline.from_pretrained(TINY_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(path)
    return path


def expected_picture(pipe, prompt, seed, **kwargs):
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(seed), **kwargs).images[0])


# --- draw


def test_without_a_model_the_embedded_one_draws_and_answers(run, tmp_path):
    """In float32, which a CPU computes faster; with the guidance that comes with it."""
    embedded = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    status, _, err = run("draw", "a photo of a red circle", "--seed", 2, "-o", "a.png")
    assert (status, "small embedded one" in err) == (0, True)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), expected_picture(embedded, "a photo of a red circle", 2)
    )
    status, out, err = run("ask", "a.png", "What colour is the circle?")
    assert (status, "small embedded one" in err) == (0, True)
    assert out.strip() == embedded.ask("a.png", "What colour is the circle?")


def test_draw_into_a_folder(run, pipe, tmp_path):
    status, out, err = run("draw", "A red fox!", "the sea", "-n", 2, "--seed", 5, "-o", "pictures", *FAST)
    assert status == 0
    names = ["a-red-fox-5.png", "a-red-fox-6.png", "the-sea-7.png", "the-sea-8.png"]
    assert out.splitlines() == [str(Path("pictures", name)) for name in names]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == names
    assert "64/64" in err  # the progress bar
    drawn = np.asarray(Image.open(tmp_path / "pictures" / names[2])).astype(int)
    # Decoded among others here and alone there: convolutions of other sizes round differently, truncation may show it.
    assert np.abs(drawn - expected_picture(pipe, "the sea", 7)).max() <= 1


def test_draw_into_a_file_that_is_the_same_every_time(run, pipe, tmp_path):
    contents = []
    for _ in range(2):
        status, out, _ = run("draw", "a red fox", "--seed", 3, "-o", "new/fox.png", *FAST)
        assert (status, out) == (0, f"{Path('new/fox.png')}\n")
        contents.append((tmp_path / "new" / "fox.png").read_bytes())
    assert contents[0] == contents[1]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "fox.png")), expected_picture(pipe, "a red fox", 3))
    run("draw", "a red fox", "--seed", 4, "-o", "new/fox.png", *FAST)
    assert (tmp_path / "new" / "fox.png").read_bytes() != contents[0]


def test_draw_into_the_current_folder_by_default(run, tmp_path):
    assert run("draw", "???")[0] == 0  # in the stored dtype
    assert [path.name for path in tmp_path.iterdir()] == ["picture-0.png"]


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (("--negative-prompt", "blurred"), {"negative_prompt": "blurred"}),
        (("--guidance-scale", 1), {"guidance_scale": 1}),
        (("--temperature", 0.5), {"temperature": 0.5}),
        (("--top-k", 4), {"top_k": 4}),
        (("--top-p", 0.5), {"top_p": 0.5}),
    ],
)
def test_settings_of_drawing_reach_the_pipeline(run, pipe, tmp_path, flags, arguments):
    assert run("draw", "a", *flags, *FAST, "-o", "a.png")[0] == 0
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(drawn, expected_picture(pipe, "a", 0, **arguments))
    assert not np.array_equal(drawn, expected_picture(pipe, "a", 0))


def test_batch_size_of_drawing(run):
    _, _, err = run("draw", "a", "-n", 3, "--batch-size", 2, *FAST)
    assert "128/128" in err  # two batches of 64 codes


def test_draw_with_an_adapter(run, pipe, tmp_path):
    torch.manual_seed(0)
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=r"model\.language_model\..*\.(q|v)_proj"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    assert run("draw", "a", "--lora", tmp_path / "adapter", "-o", "a.png", *FAST)[0] == 0
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    assert not np.array_equal(drawn, expected_picture(pipe, "a", 0))
    status, _, err = run("draw", "a", "--lora", "/no/such/adapter")
    assert (status, "/no/such/adapter" in err) == (1, True)


@pytest.mark.slow  # with torchao
@pytest.mark.parametrize(("bits", "dtype"), [("int8", torch.float32), ("int4", torch.bfloat16)])
def test_draw_with_quantised_weights(run, tmp_path, bits, dtype):
    """The embedded model, in the dtype in which its kernels are fast; so much guidance that int8 changes codes."""
    prompt = "a photo of three green triangles"
    assert run("draw", prompt, "--guidance-scale", 100, "-o", "a.png", "--quantize", bits)[0] == 0
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    for quantised in (True, False):
        kwargs = {"quantization_config": bits} if quantised else {}
        pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=dtype, **kwargs)
        assert np.array_equal(drawn, expected_picture(pipe, prompt, 0, guidance_scale=100)) == quantised


def test_quantised_weights_without_torchao(run, monkeypatch):
    monkeypatch.setattr(janus_hf.modeling.quantisation, "is_torchao_available", lambda: False)
    status, _, err = run("draw", "a", "--quantize", "int4", *FAST)
    assert (status, err) == (1, "janus-hf draw: int4 weights need torchao: pip install 'janus_hf[quant]'.\n")


def test_many_pictures_do_not_fit_into_one_file(run, tmp_path):
    for arguments in (("a", "b"), ("a", "-n", 2)):
        status, out, err = run("draw", *arguments, "-o", "one.png")
        assert (status, out) == (1, "")
        assert err == "janus-hf draw: --output one.png is one file but 2 pictures are asked for; name a folder.\n"
    assert list(tmp_path.iterdir()) == []


# --- ask


def test_ask(run, pipe, picture):
    status, out, _ = run("ask", picture, "what is this?", "--max-new-tokens", 8, *FAST)
    assert status == 0
    assert out.strip() == pipe.ask(str(picture), "what is this?", max_new_tokens=8)


def test_ask_about_several_pictures(run, pipe, picture):
    out = run("ask", picture, picture, "the same?", "--max-new-tokens", 8, "--system-prompt", "", *FAST)[1]
    assert out.strip() == pipe.ask([str(picture)] * 2, "the same?", max_new_tokens=8, system_prompt="")
    assert out.strip() != pipe.ask([str(picture)] * 2, "the same?", max_new_tokens=8)


def test_answer_appears_while_it_is_written(run, picture, monkeypatch):
    written = []
    monkeypatch.setattr(
        "transformers.TextStreamer.on_finalized_text", lambda self, text, stream_end=False: written.append(text)
    )
    run("ask", picture, "what is this?", "--max-new-tokens", 20)
    assert len(written) > 1


@pytest.fixture
def asked(monkeypatch):
    """What reaches `pipe.chat`."""
    calls = []
    monkeypatch.setattr(JanusProPipeline, "chat", lambda self, messages, **kwargs: calls.append(kwargs))
    return calls


def test_settings_of_answers(run, picture, asked):
    run("ask", picture, "what?")
    run(
        "ask",
        picture,
        "what?",
        "--sample",
        "--temperature",
        0.7,
        "--max-new-tokens",
        3,
        "--system-prompt",
        "Be brief.",
    )
    for call in asked:
        del call["streamer"]
    assert asked == [
        {"max_new_tokens": 512, "do_sample": False, "system_prompt": "default"},
        {"max_new_tokens": 3, "do_sample": True, "temperature": 0.7, "system_prompt": "Be brief."},
    ]


def test_temperature_needs_sampling(run, picture, asked):
    for command in (("ask", picture, "what?"), ("chat",)):
        status, _, err = run(*command, "--temperature", 0.7)
        assert (status, asked) == (1, [])
        assert err == f"janus-hf {command[0]}: --temperature has an effect together with --sample only.\n"


# --- chat


@pytest.fixture
def talk(run, monkeypatch):
    """`talk(lines, *flags)` types lines, then ends the input; returns status, out, err and every turn's messages."""

    def talk(lines, *flags):
        typed, turns = iter(lines), []
        chat = JanusProPipeline.chat

        def listen(self, messages, **kwargs):
            turns.append([dict(message) for message in messages])
            return chat(self, messages, **kwargs)

        def read(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(JanusProPipeline, "chat", listen)
        monkeypatch.setattr("builtins.input", read)
        result = (*run("chat", "--max-new-tokens", 4, *FAST, *flags), turns)
        monkeypatch.setattr(JanusProPipeline, "chat", chat)
        return result

    return talk


def kinds(message):
    return [part["type"] for part in message["content"]]


def test_chat_of_two_turns(talk, pipe, picture):
    status, out, err, turns = talk([f"/image {picture}", "what is this?", "", "  and now?  "])
    assert status == 0
    assert "/quit" in err
    first, second = turns
    assert [kinds(message) for message in first] == [["image", "text"]]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert kinds(second[2]) == ["text"]  # a picture belongs to one message
    assert second[2]["content"][0]["text"] == "and now?"
    assert second[1]["content"] == pipe.chat(first, max_new_tokens=4)
    assert out.split() == f"{second[1]['content']} {pipe.chat(second, max_new_tokens=4)}".split()


def test_chat_starts_over(talk, picture):
    *_, turns = talk(["hello", f"/image {picture}", "/reset", "again"], "--image", picture, "--image", picture)
    assert kinds(turns[0][0]) == ["image", "image", "text"]
    assert len(turns[1]) == 1
    assert kinds(turns[1][0]) == ["text"]


def test_chat_survives_mistakes(talk, picture):
    status, _, err, turns = talk(
        [
            "/image nowhere.png",
            "/image",
            "/imagine a fox",
            "/draw",
            f"/image   {picture}",
            "what?",
            "/quit",
            "never said",
        ]
    )
    assert status == 0
    assert "nowhere.png" in err
    assert err.count("/image PATH adds a picture") == 1 + 3  # the greeting and three unknown commands
    assert [kinds(turn[-1]) for turn in turns] == [["image", "text"]]


def test_chat_needs_its_first_picture(run):
    status, _, err = run("chat", "--image", "nowhere.png")
    assert (status, "nowhere.png" in err, "small embedded one" in err) == (
        1,
        True,
        False,
    )  # before the model is loaded


def test_interrupt(run, monkeypatch):
    def interrupt(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert run("chat")[0] == 130


# --- convert and info


def test_convert_both_ways(run, golden_checkpoint, golden_model, tmp_path):
    status, out, _ = run(
        "convert", golden_checkpoint, "there", "--layout", "transformers", "--max-shard-size", "300KB"
    )
    assert (status, out) == (0, "there: transformers layout, reloaded and equal\n")
    assert len(list((tmp_path / "there").glob("model-*.safetensors"))) > 1
    status, out, _ = run("convert", "there", "back", "--layout", "original", "--dtype", "float32")
    assert (status, out) == (0, "back: original layout, reloaded and equal\n")

    back = JanusProPipeline.from_pretrained(tmp_path / "back")
    expected, found = golden_model.state_dict(), back.model.state_dict()
    assert back.model.dtype == torch.float32
    assert all(torch.equal(expected[key], found[key]) for key in expected)

    status, out, err = run("convert", golden_checkpoint, "there", "--layout", "original")
    assert (status, out) == (1, "")
    assert err == "janus-hf convert: there is not empty; choose a new folder for the converted checkpoint.\n"


def test_info(run, golden_checkpoint, tmp_path):
    embedded = run("info")[1]
    assert "of no released size" in embedded
    assert "layout             original" in embedded
    assert "stored dtype       bfloat16" in embedded
    assert "64x64 pixels, 64 codes of 256" in embedded
    assert embedded == run("info", DEFAULT_MODEL)[1]

    golden = run("info", golden_checkpoint)[1]
    assert "24x24 pixels, 36 codes of 64" in golden
    assert "416 tokens, context 512" in golden
    run("convert", golden_checkpoint, "there", "--layout", "transformers")
    converted = run("info", "there")[1]
    assert converted == golden.replace("layout             original", "layout             transformers")


def test_info_about_another_family(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    status, out, err = run("info", tmp_path)
    assert (status, out) == (1, "")
    assert "is a 'llama' checkpoint; expected Janus or Janus-Pro" in err


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("ask", "nowhere.png", "what?"), "nowhere.png"),
        (("draw", "a", "--model", "/no/such/model"), "/no/such/model"),
        (("ask", "picture.png", "what?", "--model", "/no/such/model"), "/no/such/model"),
        (("convert", "/no/such/model", "new", "--layout", "original"), "/no/such/model"),
        (("info", "/no/such/model"), "/no/such/model"),
        (("draw", "a", "--device", "abacus"), "--device abacus cannot be used here"),
        (("draw", "a", "--guidance-scale", "-1"), "guidance_scale must be 0 or more"),
        (("draw", "a", "-n", "0"), "must be at least 1"),
        (("ask", "picture.png", "fox " * 600), "holds 256: there is no room for an answer"),
    ],
)
def test_mistakes_are_said_in_one_line_of_error(run, picture, arguments, part):
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert f"janus-hf {arguments[0]}: " in err
    assert part in err.splitlines()[-1]
    assert "Traceback" not in err


def test_unavailable_hub(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, err = run("draw", "a", "--model", "nobody/no-such-model")
    assert status == 1
    assert "janus-hf draw: " in err


@pytest.mark.parametrize(
    "arguments",
    [(), ("paint",), ("draw",), ("ask", "picture.png"), ("convert", "a", "b"), ("draw", "a", "--dtype", "int3")],
)
def test_wrong_usage(run, arguments, capsys):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert "usage: janus-hf" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["draw", "ask", "chat", "convert", "info"])
def test_help_of_every_command(run, capsys, command):
    with pytest.raises(SystemExit) as error:
        run(command, "--help")
    assert error.value.code == 0
    assert f"usage: janus-hf {command}" in capsys.readouterr().out


def test_revision_is_passed_on(run, monkeypatch, pipe):
    seen = []

    def from_pretrained(source, **kwargs):
        seen.append((source, kwargs))
        return pipe

    monkeypatch.setattr(JanusProPipeline, "from_pretrained", from_pretrained)
    run("draw", "a", "--model", "me/fox", "--revision", "refs/pr/6", "--dtype", "float32")
    assert seen == [("me/fox", {"revision": "refs/pr/6", "dtype": "float32"})]


# --- as installed


def test_installed_command():
    command = Path(sys.executable).with_name("janus-hf")
    result = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    for name in ("draw", "ask", "chat", "convert", "info"):
        assert f"\n    {name} " in result.stdout
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"janus_hf {__version__}"


def test_help_loads_nothing_heavy():
    """`--help` is instant because it imports neither this package nor what it stands on."""
    code = (
        "import sys, janus_hf_cli; janus_hf_cli.make_parser().format_help(); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'torch', 'transformers', 'diffusers', 'numpy', 'PIL', 'janus_hf', 'huggingface_hub'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONSTARTUP": ""},
    )
    assert result.stdout.strip() == "[]"
