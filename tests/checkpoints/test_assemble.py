"""`assemble_checkpoint` reads every layout of every part, keeps all values, and refuses what does not fit by name."""

import copy
import json
import shutil

import pytest
import torch
from part_standins import (
    CODEC,
    CODECS,
    JANUS_TOKENS,
    LANGUAGE,
    LANGUAGE_MODELS,
    TOWER,
    VISION_TOWERS,
    StandIns,
    cut,
    siglip_config,
    siglip_names,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, SiglipVisionConfig, SiglipVisionModel

from janus_hf import (
    CheckpointError,
    JanusProConfig,
    JanusProForConditionalGeneration,
    JanusProProcessor,
    assemble_checkpoint,
)
from janus_hf.checkpoints.assembly.part_files import PartFiles, StoredWeight, open_part
from janus_hf.checkpoints.assembly.part_plan import make_plan
from janus_hf.checkpoints.assembly.part_sizes import make_config, read_text_config
from janus_hf.checkpoints.assembly.start_tokenizer import make_tokenizer
from janus_hf.hub.opening import Source
from janus_hf.layouts.part_layouts import LAYOUTS, PREFIXES, find_layout
from janus_hf.tokenizer import load_tokenizer


UNUSED = ("vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used")
FRESH = ("model.aligner.", "model.generation_")


@pytest.fixture(scope="module")
def standins(golden_checkpoint, tmp_path_factory):
    return StandIns(golden_checkpoint, tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def parts(standins):
    """One stand-in of each part: what most tests assemble."""
    return {"language_model": standins.llama(), "vision_tower": standins.siglip(), "codec": standins.llamagen()}


@pytest.fixture(scope="module")
def start(parts, tmp_path_factory):
    """Folder of the model that is assembled from `parts`, in float32."""
    return assemble_checkpoint(**parts, destination=tmp_path_factory.mktemp("start") / "start-1b")


@pytest.fixture
def own(golden_checkpoint, tmp_path):
    """Stand-ins that a test may damage."""
    return StandIns(golden_checkpoint, tmp_path)


def change_weights(folder, change, name="model.safetensors"):
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})
    return folder


def load(folder, **kwargs):
    return JanusProForConditionalGeneration.from_pretrained(folder, **kwargs)


ROWS = [
    *(("language_model", kind) for kind in LANGUAGE_MODELS),
    *(("vision_tower", kind) for kind in VISION_TOWERS),
    *(("codec", kind) for kind in CODECS),
]


@pytest.mark.parametrize(("part", "kind"), ROWS)
def test_every_layout_gives_the_same_weights(standins, golden_model, part, kind):
    plan = make_plan(open_part(part, getattr(standins, kind)(), {}))
    expected = {name: w for name, w in golden_model.state_dict().items() if name.startswith(PREFIXES[part])}
    plan.check({name: tuple(weight.shape) for name, weight in golden_model.state_dict().items()})
    found = {new: w for name in plan.targets for new, w in plan.read(name, torch.float32).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = golden_model.config
    if part == "language_model":
        text = read_text_config(plan.files).to_dict()
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rope_parameters")
        assert {name: text[name] for name in sizes} == {name: getattr(config.text_config, name) for name in sizes}
    elif part == "vision_tower":
        sizes = make_config(config.text_config, plan, make_plan(open_part("codec", standins.janus(), {})))
        assert sizes.vision_config.to_dict() == {**config.vision_config.to_dict(), "dtype": None}
    else:
        sizes = make_config(config.text_config, make_plan(open_part("vision_tower", standins.janus(), {})), plan)
        assert sizes.vq_config.to_dict() == {**config.vq_config.to_dict(), "dtype": None}


def test_siglip_gives_the_same_features(standins, golden_model, tmp_path):
    """transformers computes them too, from random weights under its own names; both use the exact GELU here."""
    torch.manual_seed(0)
    siglip = SiglipVisionModel(SiglipVisionConfig(**siglip_config(standins.config, standins.tower))).eval()
    for parameter in siglip.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    siglip.save_pretrained(tmp_path)
    plan = make_plan(open_part("vision_tower", tmp_path, {}))
    weights = {new: w for name in plan.targets for new, w in plan.read(name, torch.float32).items()}
    tower = copy.deepcopy(golden_model.model.vision_model)
    tower.load_state_dict({name.removeprefix("model.vision_model."): w for name, w in weights.items()})
    pixels = torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        found, expected = tower(pixels).last_hidden_state, siglip(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_the_parts_keep_their_values(start, golden_model):
    found, expected = load(start).state_dict(), golden_model.state_dict()
    tables = ("model.language_model.embed_tokens.weight", "lm_head.weight")  # rows of added tokens, tested below
    kept = {name for name in expected if not name.startswith(FRESH) and name not in tables}
    assert found.keys() == expected.keys()
    assert len(kept) > 100
    assert all(torch.equal(found[name], expected[name]) for name in kept)


def test_the_result_opens_in_the_original_layout(start, standins):
    """Its names and shapes are those of the golden checkpoint, which the original code wrote."""
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(start / "model.safetensors").items()}
    expected = {name: tuple(w.shape) for name, w in standins.golden.items() if not name.startswith(UNUSED)}
    assert stored == expected
    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    golden = standins.config
    assert config["model_type"] == "multi_modality"
    for name in ("aligner_config", "gen_aligner_config", "gen_head_config", "gen_vision_config"):
        assert {**config[name]["params"], **golden[name]["params"]} == config[name]["params"]
    sizes = {name: value for name, value in golden["language_config"].items() if name != "torch_dtype"}
    assert {**config["language_config"], **sizes} == config["language_config"]


@pytest.mark.parametrize(("layout", "dtype"), [("original", "bfloat16"), ("transformers", "float32")])
def test_both_layouts_and_dtypes_open_with_auto_model(parts, start, tmp_path, layout, dtype):
    """The same seed gives the same values in both."""
    folder = assemble_checkpoint(**parts, destination=tmp_path / "start", layout=layout, dtype=dtype)
    found = AutoModelForMultimodalLM.from_pretrained(folder)
    assert found.dtype == getattr(torch, dtype)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == {"original": "multi_modality", "transformers": "janus"}[layout]
    expected, found = load(start).state_dict(), found.state_dict()
    assert all(torch.equal(expected[name].to(getattr(torch, dtype)), found[name]) for name in expected)


def test_auto_model_refuses_an_incomplete_copy(start, tmp_path):
    folder = shutil.copytree(start, tmp_path / "copy")
    change_weights(folder, lambda weights: weights.pop("gen_aligner.layers.0.bias"))
    with pytest.raises(CheckpointError, match="must be exactly those of the model") as error:
        AutoModelForMultimodalLM.from_pretrained(folder)
    assert error.value.missing == ["model.generation_aligner.fc1.bias"]
    wide = torch.zeros(7)
    change_weights(folder, lambda weights: weights.update({"gen_aligner.layers.0.bias": wide}))
    with pytest.raises(CheckpointError, match="must be exactly those of the model") as error:
        AutoModelForMultimodalLM.from_pretrained(folder)
    assert error.value.mismatched == [("model.generation_aligner.fc1.bias", (7,), (64,))]


def test_new_weights_follow_the_seed_and_the_config(standins, parts, start, tmp_path):
    """`start` has seed 0 and the standard deviation 0.02 of its language model's config."""
    wide = {**parts, "language_model": standins.llama("wide", initializer_range=0.5)}
    first = load(start).state_dict()
    other = load(assemble_checkpoint(**wide, destination=tmp_path / "other", seed=1)).state_dict()
    fresh = {name for name in first if name.startswith(FRESH)}
    drawn = {name for name in fresh if not name.endswith(".bias")}
    assert {name for name in first if not torch.equal(first[name], other[name])} == drawn
    assert all(not first[name].any() for name in fresh - drawn)
    for weights, std in ((first, 0.02), (other, 0.5)):
        values = torch.cat([weights[name].flatten() for name in sorted(drawn)])
        assert values.std().item() == pytest.approx(std, rel=0.05)
        assert values.mean().item() == pytest.approx(0, abs=std / 20)
    with_one_seed = torch.cat([(first[name] * 25).flatten() for name in sorted(drawn)])
    assert not torch.allclose(with_one_seed, torch.cat([other[name].flatten() for name in sorted(drawn)]))


# Special tokens


def test_missing_tokens_are_added_in_the_released_order(start, standins):
    """The golden tokenizer's ids 384 and 385 are BOS and EOS; the language model knows no others from there on."""
    processor = JanusProProcessor.from_pretrained(start)
    assert processor.tokenizer.convert_tokens_to_ids(list(JANUS_TOKENS)) == [386, 387, 388, 389]
    assert processor.tokenizer.pad_token == JANUS_TOKENS[0]
    model = load(start)
    assert model.config.image_token_id == 389
    assert model.generation_config.pad_token_id == 386
    assert (model.config.text_config.bos_token_id, model.config.text_config.eos_token_id) == (384, 385)
    for table, name in ((model.lm_head, "lm_head"), (model.model.language_model.embed_tokens, "model.embed_tokens")):
        old = standins.golden[f"{LANGUAGE}{name}.weight"].float()
        assert len(table.weight) == len(old) == 416
        assert torch.equal(table.weight[:386], old[:386])
        assert torch.equal(table.weight[390:], old[390:])  # rows without tokens stay as they are
        mean = old[:386].double().mean(dim=0).float()
        assert all(torch.equal(row, mean) for row in table.weight[386:390])


def test_rows_are_added_and_a_tied_head_becomes_a_copy(own, parts, tmp_path):
    """The table has as many rows as the language model has tokens."""
    folder = own.llama(vocab_size=386, tie_word_embeddings=True)

    def change(weights):
        del weights["lm_head.weight"]
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:386].clone()

    change_weights(folder, change)
    model = load(assemble_checkpoint(**{**parts, "language_model": folder}, destination=tmp_path / "start"))
    table, old = model.model.language_model.embed_tokens.weight, load_file(folder / "model.safetensors")
    old = old["model.embed_tokens.weight"]
    assert model.config.text_config.vocab_size == len(table) == 390
    assert torch.equal(table[:386], old.float())
    assert all(torch.equal(row, old.float().double().mean(dim=0).float()) for row in table[386:])
    assert torch.equal(model.lm_head.weight, table)
    assert model.lm_head.weight is not table
    assert not model.config.tie_word_embeddings


def test_the_released_vocabulary_keeps_its_ids(standins, parts, golden_checkpoint, tmp_path):
    released = load_tokenizer(golden_checkpoint)
    own = make_tokenizer(Source(standins.deepseek_vl()), None, 416)
    assert own.tokenizer.get_vocab() == released.get_vocab()
    assert own.added == set()

    folder = assemble_checkpoint(**parts, destination=tmp_path / "start", tokenizer=golden_checkpoint)
    found = JanusProProcessor.from_pretrained(folder).tokenizer
    assert found.get_vocab() == released.get_vocab()
    assert found("a <begin_of_image> b").input_ids == released("a <begin_of_image> b").input_ids
    table, old = load(folder).lm_head.weight, standins.golden[f"{LANGUAGE}lm_head.weight"].float()
    mean = old[:386].double().mean(dim=0).float()
    assert torch.equal(table[386:403], mean.expand(17, -1))
    assert torch.equal(table[403:], old[403:])


def test_a_tokenizer_with_other_ids_is_refused(standins, parts, tmp_path):
    other = standins.llama("other-tokenizer")
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"][0]["content"], content["added_tokens"][1]["content"] = "<a>", "<b>"
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="`tokenizer` must give every token of the language model its id"):
        assemble_checkpoint(**parts, destination=tmp_path / "start", tokenizer=other)


# What does not fit


def wider(weights, name, rows):
    weights[name] = torch.zeros(rows, *weights[name].shape[1:], dtype=weights[name].dtype)


WRONG_SHAPES = {  # part -> (stand-in, weight, its number of rows, the number that fits)
    "language_model": ("llama", "model.layers.1.mlp.up_proj.weight", 60),
    "vision_tower": ("timm", "blocks.1.attn.qkv.weight", 60),
    "codec": ("llamagen_safetensors", "quant_conv.weight", 3),
}


@pytest.mark.parametrize("part", WRONG_SHAPES)
def test_a_wrong_shape_is_named_with_both_shapes(run, own, parts, part):
    kind, name, rows = WRONG_SHAPES[part]
    folder = getattr(own, kind)()
    right = tuple(load_file(folder / "model.safetensors")[name].shape)
    change_weights(folder, lambda weights: wider(weights, name, rows))
    with pytest.raises(CheckpointError) as error:
        assemble_checkpoint(**{**parts, part: folder}, destination="start")
    assert error.value.mismatched == [(name, (rows, *right[1:]), right)]
    assert (error.value.missing, error.value.unexpected) == ([], [])
    assert f"{name}: {(rows, *right[1:])} in the files, {right} expected" in str(error.value)
    assert str(error.value).startswith(f"The weights of `{part}` '{folder}'")
    options = {f"--{key.replace('_', '-')}": value for key, value in {**parts, part: folder}.items()}
    arguments = [word for option in options.items() for word in option]
    status, out, err = run("assemble", *arguments, "-o", "start")
    assert (status, out) == (1, "")
    assert f"{name}: {(rows, *right[1:])} in the files, {right} expected" in err
    assert not (own.folder / "start").exists()


@pytest.mark.parametrize(
    ("part", "kind", "name", "axis"),
    [
        ("vision_tower", "timm", "patch_embed.proj.weight", 0),
        ("vision_tower", "timm", "pos_embed", 1),
        ("vision_tower", "timm", "blocks.0.mlp.fc1.weight", 0),
        ("vision_tower", "siglip_vision", "embeddings.position_embedding.weight", 0),
        ("codec", "llamagen_safetensors", "encoder.conv_in.weight", 0),
        ("codec", "llamagen_safetensors", "encoder.conv_blocks.1.res.0.conv1.weight", 0),
        ("codec", "llamagen_safetensors", "quantize.embedding.weight", 1),
        ("language_model", "llama", "model.embed_tokens.weight", 1),
    ],
)
def test_a_weight_that_shows_a_size_is_named_too(own, parts, tmp_path, part, kind, name, axis):
    """The other weights that show the same size outvote it, so it alone is wrong."""
    folder = getattr(own, kind)()
    right = tuple(load_file(folder / "model.safetensors")[name].shape)
    wrong = tuple(size + (i == axis) for i, size in enumerate(right))
    change_weights(folder, lambda weights: weights.update({name: torch.zeros(wrong)}))
    with pytest.raises(CheckpointError) as error:
        assemble_checkpoint(**{**parts, part: folder}, destination=tmp_path / "start")
    assert error.value.mismatched == [(name, wrong, right)]
    assert (error.value.missing, error.value.unexpected) == ([], [])


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("llama", "hidden_size", 96), ("llama", "vocab_size", 400), ("siglip_vision", "image_size", 48)],
)
def test_a_config_that_differs_from_the_weights_is_refused(own, parts, tmp_path, kind, field, value):
    folder = getattr(own, kind)()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {field: value}), encoding="utf-8")
    part = "language_model" if kind == "llama" else "vision_tower"
    with pytest.raises(CheckpointError, match="must be exactly those of the part") as error:
        assemble_checkpoint(**{**parts, part: folder}, destination=tmp_path / "start")
    assert error.value.mismatched
    assert all(found != expected for _, found, expected in error.value.mismatched)


@pytest.mark.parametrize("part", WRONG_SHAPES)
def test_unknown_and_missing_weights_are_named(own, parts, tmp_path, part):
    kind, name, _ = WRONG_SHAPES[part]

    def change(weights):
        weights[f"{name}_of_another_model"] = torch.zeros(2)
        del weights[name]

    folder = change_weights(getattr(own, kind)(), change)
    with pytest.raises(CheckpointError, match="must be exactly those of the part") as error:
        assemble_checkpoint(**{**parts, part: folder}, destination=tmp_path / "start")
    assert error.value.unexpected == [f"{name}_of_another_model"]
    assert len(error.value.missing) == (3 if "qkv" in name else 1)
    assert not (tmp_path / "start").exists()


def test_a_weight_that_is_not_finite_or_quantised_is_named(own, parts, tmp_path):
    def spoil(weights):
        weights["model.norm.weight"][0] = float("nan")

    folder = change_weights(own.llama(), spoil)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' of .* must hold finite values"):
        assemble_checkpoint(**{**parts, "language_model": folder}, destination=tmp_path / "start")

    def quantise(weights):
        weights["model.norm.weight"] = torch.ones(weights["model.norm.weight"].shape, dtype=torch.int8)

    folder = change_weights(own.llama(), quantise)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' of .* must hold floating-point values, got"):
        assemble_checkpoint(**{**parts, "language_model": folder}, destination=tmp_path / "start")


@pytest.mark.parametrize("part", ["language_model", "vision_tower", "codec"])
def test_a_part_of_another_kind_is_refused(own, parts, tmp_path, part):
    """Each part is given a checkpoint of another part."""
    other = {"language_model": "vision_tower", "vision_tower": "codec", "codec": "language_model"}[part]
    with pytest.raises(CheckpointError, match=f"`{part}` must be a checkpoint of a known kind") as error:
        assemble_checkpoint(**{**parts, part: parts[other]}, destination=tmp_path / "start")
    assert all(row.title in str(error.value) for row in LAYOUTS[part])


def _without(name):
    def change(folder):
        (folder / name).unlink()

    return change


def _config(**fields):
    def change(folder):
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(content | fields), encoding="utf-8")

    return change


def _cut_short(name):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return change


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("part", "kind", "change", "words"),
    [
        ("language_model", "llama", _without("config.json"), "must have a config.json beside its weights, got none"),
        ("language_model", "llama", _without("model.safetensors"), "must hold one file of weights"),
        ("language_model", "llama", _without("tokenizer.json"), "must hold a tokenizer.json"),
        ("language_model", "llama", _config(model_type="qwen2"), "must be a Llama .* got model_type 'qwen2'"),
        ("language_model", "llama", _config(quantization_config={}), "got a quantised model"),
        ("language_model", "llama", _config(hidden_size="x"), "config.json of .* must be valid, got"),
        ("language_model", "llama", _cut_short("model.safetensors"), "cannot be read"),
        (
            "language_model",
            "llama_bin_shards",
            _without("pytorch_model-00002-of-00002.bin"),
            "must hold pytorch_model-00002-of-00002.bin, got no such file",
        ),
        ("vision_tower", "timm", _without("config.json"), "must state its number of attention heads"),
        ("vision_tower", "open_clip", _cut_short("open_clip_pytorch_model.bin"), "cannot be read"),
        ("codec", "llamagen_training", _cut_short("0000003.pt"), "cannot be read"),
    ],
)
def test_a_damaged_part_is_refused(own, parts, tmp_path, part, kind, change, words):
    folder = getattr(own, kind)()
    change(folder)
    with pytest.raises((ValueError, OSError), match=words):
        assemble_checkpoint(**{**parts, part: folder}, destination=tmp_path / "start")
    assert not (tmp_path / "start").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"quantize.embedding.weight": Code()}, "whose code is not run"),
        ([1, 2], "must hold weights by name, got list"),
        ({"model": {}}, "must hold weights by name, got an empty mapping"),
        ({"model": {"quantize.embedding.weight": 3}}, "must hold tensors by name"),
        ({"model": {}, "schedule": 1}, r"got the entries \['schedule'\] too"),
    ],
)
def test_a_pickle_of_something_else_is_refused(parts, tmp_path, capfd, content, words):
    torch.save(content, tmp_path / "vq.pt")
    with pytest.raises(CheckpointError, match=words) as error:
        assemble_checkpoint(**{**parts, "codec": tmp_path / "vq.pt"}, destination=tmp_path / "start")
    assert "weights_only" not in str(error.value)
    assert "must not run" not in capfd.readouterr().out


def test_two_codecs_in_one_folder_must_be_told_apart(own, parts, tmp_path):
    own.llamagen()
    other = own.llamagen("vq_ds16_t2i.pt")
    with pytest.raises(ValueError, match="got .* with several: vq_ds16_t2i.pt, vq_ds16_c2i.pt: name the file itself"):
        assemble_checkpoint(**{**parts, "codec": other.parent}, destination=tmp_path / "start")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dtype": "float16"}, ValueError, "`dtype` must be"),
        ({"layout": "timm"}, ValueError, "`layout` must be"),
        ({"revision": "main"}, ValueError, "`revision` must be left out"),
        ({"tokens": "x"}, TypeError, "unknown arguments"),
        ({"codec": "/nowhere/vq.pt"}, ValueError, "`codec` must be a folder, a file, or a repository"),
        ({"codec": None}, TypeError, "`codec` must be a folder"),
        ({"vision_tower": ""}, ValueError, "`vision_tower` must be a folder, a file, or a repository"),
    ],
)
def test_bad_arguments_are_refused(parts, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        assemble_checkpoint(**{**parts, "destination": tmp_path / "start", **arguments})


def test_a_destination_with_files_is_kept(parts, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="`destination` must be a new folder"):
        assemble_checkpoint(**parts, destination=tmp_path)


# Real sizes and names


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_the_released_names_and_sizes_are_those_of_the_parts(golden_dir, released, size):
    """The weights of the released Janus-Pro, named as in the public checkpoints, give exactly its configuration.

    Only names and shapes are used: the key lists of the released models are known, those of the parts are not.
    """
    listing = json.loads((golden_dir / f"keys_{size}.json").read_text(encoding="utf-8"))["keys"]
    stored = {name: torch.empty(entry["shape"], device="meta") for name, entry in listing.items()}
    expected = JanusProConfig.from_dict(released[size])
    tower = {"hidden_size": 1024, "image_size": 384, "intermediate_size": 4096, "num_attention_heads": 16}
    siglip = {"model_type": "siglip_vision_model", "num_hidden_layers": 24, "patch_size": 16, **tower}
    sources = {
        "language_model": [(cut(stored, LANGUAGE), {})],
        "vision_tower": [
            (cut(stored, TOWER), {}),
            (cut(stored, TOWER, "visual.trunk."), {}),
            ({f"vision_model.{k}": v for k, v in siglip_names(cut(stored, TOWER)).items()}, siglip),
            ({name: w for name, w in stored.items() if not name.startswith("gen_")}, {}),
        ],
        "codec": [(cut(stored, CODEC), {}), (stored, {})],
    }

    def plan(part, weights, config):
        table = {name: StoredWeight(tuple(w.shape), w.detach) for name, w in weights.items()}
        return make_plan(PartFiles(part, Source("x"), (), find_layout(part, table), table, config))

    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in JanusProForConditionalGeneration(expected).state_dict().items()}
    language = plan("language_model", *sources["language_model"][0])
    language.check(shapes)
    for vision in (plan("vision_tower", *source) for source in sources["vision_tower"]):
        vision.check(shapes)
        for codec in (plan("codec", *source) for source in sources["codec"]):
            codec.check(shapes)
            found = make_config(expected.text_config, vision, codec)
            for name in ("text_config", "vision_config", "vq_config"):
                assert getattr(found, name).to_dict() == getattr(expected, name).to_dict()


# From the Hub


def test_parts_come_from_the_hub_at_one_commit(local_hub, standins, parts, start, tmp_path):
    repositories = {}
    for part, folder in {**parts, "codec": parts["codec"].parent}.items():
        repositories[part] = f"me/{part.replace('_', '-')}"
        local_hub.create(repositories[part])
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        local_hub.add_files(repositories[part], files)
    repositories["codec"] += "@main/vq_ds16_c2i.pt"
    folder = assemble_checkpoint(**repositories, destination=tmp_path / "start")
    found, expected = load(folder).state_dict(), load(start).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for name in ("me/language-model", "me/vision-tower", "me/codec"):
        assert f"- {name}" in card
        assert f"`{name}` (commit `" in card
    assert "file `vq_ds16_c2i.pt`" in card
    with pytest.raises(OSError, match="me/codec"):
        assemble_checkpoint(**{**repositories, "codec": "me/codec@nope/vq.pt"}, destination=tmp_path / "again")


def test_the_card_names_the_parts(start):
    card = (start / "README.md").read_text(encoding="utf-8")
    assert "|\n\nThis is the start of stage 1" in card
    for title in ("language model", "understanding encoder", "image codec"):
        assert f"* {title}: a local folder, file `" in card
    assert "seed 0" in card
    assert "4 tokens have the mean" in card
    assert str(start.parent) not in card
