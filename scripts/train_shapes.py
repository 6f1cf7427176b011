"""Train the small Janus-Pro that ships inside the package, from nothing, on this machine's processor.

    python scripts/train_shapes.py [--work FOLDER] [--only PIECE ...] [--threads N]

The run is a row of pieces (`PIECES` below). Each writes a folder below `--work` and is skipped when that is complete,
so a run that was stopped goes on where it was; inside the stages the trainer's own checkpoints are resumed. Seeds are
recorded here: the same machine trains the same weights.

What differs from the paper. The paper starts from a trained SigLIP, a trained VQ tokenizer and a trained language
model; here all three begin at random, so three pieces come before stage 1: the codec, the tower, the language model.
The world is small (64-pixel boards of coloured shapes), every model is, and learning rates are those of small models.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import LlamaConfig

from bpe_tokenizer import write_tokenizer
from janus_hf import (
    JanusProConfig,
    JanusProForConditionalGeneration,
    JanusProImageProcessor,
    JanusProPipeline,
    JanusProProcessor,
    JanusProVQConfig,
)
from janus_hf.data import JanusProCollator, PackedDataset, load_prepared, make_plan, prepare
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld, tables
from janus_hf.modeling import JanusProVQModel
from janus_hf.rewards.geneval_rules import score
from janus_hf.rewards.shapes_detector import detect
from janus_hf.shapes import (
    COLORS,
    SHAPES,
    SIDE,
    TAGS,
    Scene,
    ask,
    describe,
    make_drawing,
    picture,
    place,
    random_scene,
    render,
)
from janus_hf.training import JanusProSFTConfig, JanusProSFTTrainer
from janus_hf.training.trainers.codec import CodecTrainer, CodecTrainingArguments, PatchTeacher


SEED = 20261121
PATCH = 8  # pixels per side of a code: a quarter of a cell, so that the world has 4 x 8 x 4 + 1 distinct patches
WIDTH = 192
VOCAB_SIZE = 512
CONTEXT = 256
LENGTH = 248  # of a pack: three drawings, or one and a picture with its questions
ROWS_PER_STEP = 21
MATRIX_DECAY = 0.1  # without it the matrices' norms grew sevenfold in 4,000 steps, and nothing new was learned
GUIDANCE_SCALE = 1.25  # what this model draws best with: 1.5 costs counting, 1 costs positions

# Numbers, positions and the binding of colours are learned last (measured): their prompts are drawn more often.
TAG_WEIGHTS = {
    "single_object": 0.04,
    "two_object": 0.08,
    "counting": 0.26,
    "colors": 0.08,
    "position": 0.30,
    "color_attr": 0.24,
}
HARD_TAG_WEIGHTS = {
    "single_object": 0.03,
    "two_object": 0.05,
    "counting": 0.36,
    "colors": 0.05,
    "position": 0.36,
    "color_attr": 0.15,
}
# The same for questions: how likely one is kept.
HARD_QUESTIONS = {"where": 1.0, "count": 1.0, "describe": 0.8, "exists": 0.5, "colour": 0.25, "shape": 0.2}
PLACE_QUESTIONS = {"where": 1.0, "count": 0.1, "describe": 0.1, "exists": 0.05, "colour": 0.05, "shape": 0.05}

TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
VISION = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": WIDTH,
}
CODEC = {
    "image_size": SIDE,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latent_channels": 32,
    "num_embeddings": 256,
    "embed_dim": 8,
    "projection_dim": WIDTH,
    "image_token_embed_dim": WIDTH,
}


CROWDS = [1, 2, 3, 4, 6, 10, 14]  # things on a board for the encoders


def to_pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    """`(H, W, 3)` uint8 pictures -> `(B, 3, H, W)` float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 127.5 - 1


class Boards(Dataset):
    """Crowded and empty boards of every colour and shape, for the codec: the i-th is a function of seed and i.

    The codec sees the combinations that are held out from drawing and answering, as the released one has seen
    pictures of everything: a code it does not have could not be drawn at all.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """What stands on a board."""
        rng = np.random.default_rng((self.seed, index))
        kinds = [(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))) for _ in range(int(rng.choice(CROWDS)))]
        return place(kinds, rng)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels([render(self.scene(index))])[0]}


def patch_teacher() -> PatchTeacher:
    """Names the world's 129 patches."""
    rng = np.random.default_rng(SEED)
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    return PatchTeacher.fit(to_pixels([render(place([kind], rng)) for kind in kinds]), CODEC["num_embeddings"], PATCH)


def train_codec(folder: Path) -> None:
    """The VQ tokenizer, taught by k-means over raw patches; gated on what survives a round trip."""
    torch.manual_seed(SEED)
    codec = JanusProVQModel(JanusProVQConfig(**CODEC))
    arguments = CodecTrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=16,
        max_steps=1200,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        adam_beta2=0.95,
        l1_weight=2.0,
        l2_weight=2.0,
        logging_steps=20,
        save_steps=200,
        save_total_limit=1,
        report_to="none",
        use_cpu=True,
        seed=SEED,
    )
    boards = Boards(1200 * 16, SEED)
    trainer = CodecTrainer(codec, teacher=patch_teacher(), args=arguments, train_dataset=boards)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "trainer"))
    record_log(folder, trainer)
    shares = round_trip(codec)
    print("round trip:", shares)
    if min(shares.values()) < 0.98:
        raise SystemExit("The codec loses too much for anything to be learned from its codes.")
    (folder / "round_trip.json").write_text(json.dumps(shares, indent=2) + "\n")
    codec.save_pretrained(folder)


@torch.no_grad()
def round_trip(codec: JanusProVQModel, prompts: int = 100) -> dict[str, float]:
    """Share of true pictures that the detector still accepts after encoding and decoding, per tag."""
    codec.eval()
    rng = np.random.default_rng(SEED + 1)
    shares = {}
    for tag in TAGS:
        drawings = [make_drawing(tag, rng) for _ in range(prompts)]
        pixels = codec.decode_image_ids(codec.encode_image_ids(to_pixels([render(d.scene) for d in drawings])))
        pictures = ((pixels.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).movedim(1, -1).numpy()
        verdicts = [score(detect(p), d.metadata).correct for p, d in zip(pictures, drawings, strict=True)]
        shares[tag] = float(np.mean(verdicts))
    return shares


def last_checkpoint(folder: Path) -> str | None:
    """The trainer's last checkpoint, if it wrote one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return str(found[-1]) if found else None


def record_log(folder: Path, trainer: Any) -> None:
    """Keep the loss curve."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")


def make_tokenizer(folder: Path) -> None:
    """Byte-level BPE with DeepSeek's special tokens, as the released one, learned from what is said in this world."""
    rng = np.random.default_rng(SEED + 2)
    corpus = []
    for index in range(6000):
        scene = random_scene(rng)
        question = ask(scene, rng)
        corpus.append(f"{make_drawing(TAGS[index % len(TAGS)], rng, detailed=index % 2 == 0).prompt}\n\n")
        corpus.append(f" There is {describe(scene)}. {question.question}\n\n {question.answer} There is.\n\n")
    write_tokenizer(folder, corpus, vocab_size=VOCAB_SIZE, context=CONTEXT)


def make_start(folder: Path) -> None:
    """Tokenizer and model: the trained codec, everything else at random."""
    make_tokenizer(folder)
    processor = JanusProProcessor.from_pretrained(
        folder,
        image_processor=JanusProImageProcessor(image_size=SIDE, min_size=PATCH),
        num_image_tokens=(SIDE // PATCH) ** 2,
        system_prompt="",
    )
    torch.manual_seed(SEED)
    config = JanusProConfig(text_config=LlamaConfig(**TEXT), vision_config=VISION, vq_config=CODEC)
    model = JanusProForConditionalGeneration(config)
    codec = JanusProVQModel.from_pretrained(folder.parent / "codec")
    model.model.vqmodel.load_state_dict(codec.state_dict())
    # The language model reads codes through a table of its own; at the start it holds what the codec's does.
    model.model.generation_embeddings.weight.data.copy_(codec.quantize.embedding.weight)
    pretrain_tower(model.model.vision_model)
    model.config.image_token_id = processor.image_token_id
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(processor, name))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


class LabelledBoards(Boards):
    """Boards with what stands at every patch: `pixel_values`, and `labels` `(4, P)` int64: colour and shape (0 where
    nothing is), row, column.
    """

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scene, side = self.scene(index), SIDE // PATCH
        labels = np.zeros((4, side, side), dtype=np.int64)
        for thing in scene.things:
            cell = np.s_[2 * thing.row : 2 * thing.row + 2, 2 * thing.column : 2 * thing.column + 2]
            labels[0][cell] = 1 + list(COLORS).index(thing.color)
            labels[1][cell] = 1 + SHAPES.index(thing.shape)
        labels[2:] = np.indices((side, side))
        return {"pixel_values": to_pixels([render(scene)])[0], "labels": torch.from_numpy(labels).flatten(1)}


def pretrain_tower(tower: nn.Module, steps: int = 400, batch_size: int = 32) -> None:
    """What stands in for SigLIP's pre-training: linear probes read colour, shape and place off every patch.

    Place matters: off a tower that had only learned to name patches, row and column could be read for two thirds.
    """
    boards = LabelledBoards(steps * batch_size, SEED + 3)
    sizes = (1 + len(COLORS), 1 + len(SHAPES), SIDE // PATCH, SIDE // PATCH)
    probe = nn.Linear(VISION["hidden_size"], sum(sizes))
    parameters = [*tower.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    tower.train()
    for step in range(steps):
        rows = [boards[index] for index in range(step * batch_size, (step + 1) * batch_size)]
        labels = torch.stack([row["labels"] for row in rows])
        features = tower(torch.stack([row["pixel_values"] for row in rows])).last_hidden_state
        scores = probe(features).split(sizes, dim=-1)
        losses = [F.cross_entropy(s.flatten(0, 1), labels[:, k].flatten()) for k, s in enumerate(scores)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"tower: step {step + 1}, losses {[round(loss.item(), 3) for loss in losses]}", flush=True)
    tower.eval()


# Data, in the columns that users bring.


def drawing_rows(count: int, weights: dict[str, float], seed: int) -> Iterator[dict[str, Any]]:
    """`prompt`, `image`; half of the prompts name every colour."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tag = str(rng.choice(list(weights), p=list(weights.values())))
        drawing = make_drawing(tag, rng, detailed=bool(rng.random() < 0.5))
        yield {"prompt": drawing.prompt, "image": picture(drawing.scene)}


def caption_rows(count: int) -> Iterator[dict[str, Any]]:
    """`messages`, `images`: a picture and all that is on it, in words."""
    rng = np.random.default_rng(SEED + 8)
    for _ in range(count):
        scene = random_scene(rng)
        question = {"role": "user", "content": "<image>\nWhat is where?"}
        answer = {"role": "assistant", "content": describe(scene)}
        yield {"messages": [question, answer], "images": [picture(scene)]}


def question_rows(count: int, kept: dict[str, float] | None, seed: int) -> Iterator[dict[str, Any]]:
    """`messages`, `images`: a picture and up to eight different questions about it."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = random_scene(rng)
        messages = dialogue(scene, rng, 8, kept, opening="<image>\n")
        if messages:  # of some scenes nothing is asked that is kept
            yield {"messages": messages, "images": [picture(scene)]}


def text_rows(count: int) -> Iterator[dict[str, Any]]:
    """`messages`: a scene in words and up to five different questions about it."""
    rng = np.random.default_rng(SEED + 6)
    for _ in range(count):
        scene = random_scene(rng, most=3)
        yield {"messages": dialogue(scene, rng, 5, opening=f"There is {describe(scene)}. ")}


def dialogue(
    scene: Any, rng: np.random.Generator, most: int, kept: dict[str, float] | None = None, *, opening: str
) -> list[dict[str, str]]:
    """Up to `most` different questions and their answers, as a conversation."""
    asked: dict[str, str] = {}
    for _ in range(most if kept is None else 6 * most):
        question = ask(scene, rng)
        if kept is None or rng.random() < kept[question.kind]:
            asked[question.question] = question.answer
        if len(asked) == most:
            break
    messages = []
    for number, (question, answer) in enumerate(asked.items()):
        messages.append({"role": "user", "content": question if number else opening + question})
        messages.append({"role": "assistant", "content": answer})
    return messages


ROWS: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], dict[str, Any]]] = {
    "drawing": (drawing_rows, {"count": 60_000, "weights": TAG_WEIGHTS, "seed": SEED + 4}),
    "hard_drawing": (drawing_rows, {"count": 60_000, "weights": HARD_TAG_WEIGHTS, "seed": SEED + 104}),
    "questions": (question_rows, {"count": 24_000, "kept": None, "seed": SEED + 5}),
    "hard_questions": (question_rows, {"count": 18_000, "kept": HARD_QUESTIONS, "seed": SEED + 105}),
    "place_questions": (question_rows, {"count": 5_000, "kept": PLACE_QUESTIONS, "seed": SEED + 205}),
    "captions": (caption_rows, {"count": 16_000}),
    "text": (text_rows, {"count": 16_000}),
}


def prepare_data(folder: Path) -> None:
    """What `janus-hf prepare` does, source by source."""
    model = JanusProForConditionalGeneration.from_pretrained(folder.parent / "start", dtype=torch.float32)
    processor = JanusProProcessor.from_pretrained(folder.parent / "start")
    for name, (make_rows, settings) in ROWS.items():
        rows = datasets.Dataset.from_generator(make_rows, gen_kwargs=settings, cache_dir=str(folder / "cache"))
        prepare(rows, folder / name, model, processor, max_length=LENGTH, batch_size=64)


# The stages.


class Muon(torch.optim.AdamW):
    """Momentum, made orthogonal, for the language model's matrices (https://kellerjordan.github.io/posts/muon); AdamW
    for the rest.

    Here it needs about 0.6 times the steps of AdamW alone, which is what makes the run fit into two hours. Not
    `torch.optim.Muon`, whose bfloat16 products are ten times slower than float32 on processors without units for them.
    """

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # The aligner's output must not outgrow the text embeddings by too much (at the full rate: 50 times), and the
        # tower must not forget (at half the rate captions' loss doubled within 40 steps and stayed there).
        scales = {"rest": 1, "aligner": 0.5, "tower": 0.05, "matrices": 20}
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in scales}
        for name, p in trained:
            matrix = "language_model.layers" in name and p.ndim == 2
            part = {"model.aligner": "aligner", "model.vision_model": "tower"}.get(".".join(name.split(".")[:2]))
            groups[part or ("matrices" if matrix else "rest")].append(p)
        settings = [
            {"params": members, "orthogonal": name == "matrices", "lr": scales[name] * learning_rate}
            for name, members in groups.items()
            if members
        ]
        super().__init__(settings, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """AdamW looks for its step in every state when it resumes."""
        for entry in state["state"].values():
            entry.setdefault("step", torch.zeros(()))
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; matrices lose their gradients, so that AdamW leaves them alone."""
        for group in self.param_groups:
            for p in group["params"] if group["orthogonal"] else ():
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = orthogonalise(p.grad.lerp(momentum, 0.95))
                p.mul_(1 - group["lr"] * MATRIX_DECAY)
                p.sub_(update, alpha=group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
                p.grad = None
        return super().step(closure)


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest half-orthogonal matrix, roughly: five Newton-Schulz iterations."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@dataclass(frozen=True)
class Recipe:
    """One stage's data and schedule; `stage` decides what is trained."""

    stage: str
    start: str
    ratios: dict[str, float]
    steps: int
    learning_rate: float
    schedule: str = "constant_with_warmup"


MIXTURE = {"captions": 0.5, "questions": 3, "text": 0.5, "drawing": 7}
HARD_MIXTURE = {"captions": 1.5, "hard_questions": 3, "text": 0.5, "hard_drawing": 6}
END_MIXTURE = {"captions": 0.5, "hard_questions": 2, "place_questions": 1.5, "text": 0.3, "hard_drawing": 6}
RECIPES = {
    # Stands in for the trained language model that the paper starts from: words, and who is which colour, from text.
    "language": Recipe("stage2", "start", {"text": 1}, 150, 1e-3),
    # Stands in for the rest of what those have seen: what is on pictures, and words for it. Learned here, before
    # drawing, in 300 steps; beside drawing it had not been learned in 4,300.
    "looking": Recipe("stage2", "language", {"captions": 1, "questions": 2}, 300, 1e-3, "cosine"),
    # The paper's ratios (understanding : text : drawing) are 1:0:3, 2:3:5 and 5:1:4.
    "stage1": Recipe("stage1", "looking", {"captions": 1, "drawing": 3}, 60, 5e-4),
    "stage2": Recipe("stage2", "stage1", MIXTURE, 1250, 1e-3),
    "stage3": Recipe("stage3", "stage2", HARD_MIXTURE, 1600, 1e-3, "cosine"),
    # The one skill that did not come beside drawing: from a thing to its place. By itself it comes within 100 steps.
    "places": Recipe("stage3", "stage3", {"captions": 0.3, "hard_questions": 1, "place_questions": 3}, 130, 7e-4),
    "end": Recipe("stage3", "places", END_MIXTURE, 220, 6e-4, "cosine"),
}


def train_stage(folder: Path) -> None:
    """One stage, from where the previous one stopped."""
    recipe = RECIPES[folder.name]
    source = folder.parent / recipe.start
    processor = JanusProProcessor.from_pretrained(source)
    model = JanusProForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    model.model.language_model.compile()
    arguments = JanusProSFTConfig(
        stage=recipe.stage,
        output_dir=str(folder),
        ratios=recipe.ratios,
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=min(50, recipe.steps // 3),
        per_device_train_batch_size=ROWS_PER_STEP,
        max_length=LENGTH,
        activation_checkpointing=False,
        logging_steps=20,
        save_steps=250,
        save_total_limit=1,
        report_to="none",
        use_cpu=True,
        seed=SEED,
    )
    prepared = {name: load_prepared(folder.parent / "data" / name) for name in recipe.ratios}
    lengths = {name: rows.lengths for name, rows in prepared.items()}
    num_packs = recipe.steps * ROWS_PER_STEP
    plan = make_plan(lengths, max_length=LENGTH, ratios=recipe.ratios, seed=SEED, num_packs=num_packs)
    packs = PackedDataset(prepared, plan)
    print(f"{folder.name}: {plan.counts()}, packing {packs.efficiency():.3f}", flush=True)
    trainer = JanusProSFTTrainer(
        model,
        arguments,
        train_dataset=packs,
        data_collator=JanusProCollator(
            processor, caption_drop=arguments.caption_drop, seed=SEED, pad_to=LENGTH, return_task_ids=True
        ),
        processing_class=processor,
        facts={"plan_hash": plan.hash},
    )
    trainer.optimizer = Muon(model, recipe.learning_rate)  # now that the stage has said what is trained
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model()
    trainer.create_model_card()
    record_log(folder, trainer)


def export(folder: Path) -> None:
    """The checkpoint that ships, in bfloat16 and the original layout, and what it scores."""
    source = folder.parent / "end"
    model = JanusProForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
    model.generation_config.image_guidance_scale = GUIDANCE_SCALE
    model.save_pretrained(folder / "model")
    JanusProProcessor.from_pretrained(source).save_pretrained(folder / "model")
    pipe = JanusProPipeline.from_pretrained(folder / "model", dtype="float32")
    report = tables(ShapesWorld()(pipe))
    (folder / "report.md").write_text(report, encoding="utf-8")
    print(report)


def draw_figures(folder: Path) -> None:
    """Loss curves of every stage, for docs/; needs matplotlib."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for axis, key in zip(axes, ("loss_drawing", "loss_understanding", "loss_text"), strict=True):
        begin = 0
        for name in RECIPES:
            log = json.loads((folder.parent / name / "log.json").read_text())
            rows = [(begin + row["step"], row[key]) for row in log if key in row and "train_runtime" not in row]
            if rows:
                axis.plot(*zip(*rows, strict=True), label=name, linewidth=1)
            begin += RECIPES[name].steps
        axis.set(title=key.removeprefix("loss_"), xlabel="step", yscale="log")
        axis.legend()
    axes[0].set_ylabel("cross-entropy, nats per label")
    figure.tight_layout()
    figure.savefig(folder / "loss_curves.png", dpi=80)


PIECES: dict[str, Callable[[Path], None]] = {
    "codec": train_codec,
    "start": make_start,
    "data": prepare_data,
    **dict.fromkeys(RECIPES, train_stage),
    "export": export,
    "figures": draw_figures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--only", nargs="*", choices=PIECES, default=list(PIECES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        folder = options.work / name
        if (folder / "done").exists():
            print(f"{name}: done before")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        PIECES[name](folder)
        (folder / "done").touch()


if __name__ == "__main__":
    main()
