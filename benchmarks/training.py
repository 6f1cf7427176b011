"""Measure the losses of the heads, packed against padded training, the data loader, and preparing and planning data.

    python -m benchmarks.training [heads] [trunk] [loader] [prepare] [plan] [--tokens 4096] [--documents 12]
        [--rows 1000000 10000000 30000000] [--against SRC]

The heads (the output layers for text and image tokens) and the trunk (the language model) have the sizes of
Janus-Pro-1B.

* heads: forward and backward pass of the cross-entropy of one head over a sequence in float32, each in a fresh
  process: this package's chunked loss against `cross_entropy(head(hidden))`. Memory is the peak above the state before
  the forward pass, when the head and the hidden states are in memory already; it includes the gradients that remain.
* trunk: forward and backward pass of the language model in float32 (activation checkpointing as in the recipes), on
  documents (tokenized training examples) with lengths like those in the third training stage of the
  Janus-Pro paper: packed into rows of `--tokens` tokens, in which positions restart with every document, against
  batches of four documents padded to the longest. Tokens per second count the documents' own tokens, not padding.
* loader: DataLoader and collator (no workers) on packed rows of synthetic data about coloured shapes, against forward
  pass, backward pass and AdamW step of full fine-tuning of the small model that ships inside the package; tokens per
  second, medians over interleaved rounds.
* prepare: `prepare_rows` of the same synthetic data with the small model, as prompts with images, questions about
  images, conversations and plain texts, in rows that also have columns without content. Rows per second, of wall-clock
  time and of the process's CPU time (which other work on the machine disturbs less), the best of several rounds in
  fresh processes. `--against SRC` measures the package in the folder SRC (the `src` of another checkout) in turn with
  this one.
* plan: a plan of ten million packs for a source of `--rows` rows in shards of 8192, with the exact order and with that
  by shards: seconds until its first block (16,384 packs) can be read, per further block, and until the order of the
  next visit of the source is known; and the peak memory above that of the row lengths. The least of two processes.
  `--against` is as for prepare.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .memory import PeakMemory
from .reporting import make_parser, measure_in_new_process


WIDTH, VOCABULARY, CODES = 2048, 102400, 16384
TRUNK = {"hidden_size": WIDTH, "intermediate_size": 5632, "num_attention_heads": 16, "num_hidden_layers": 24}
PADDED_BATCH = 4
PARTS = ("heads", "trunk", "loader", "prepare", "plan")
SHUFFLES = ("exact", "shards")
PREPARED = ("drawing", "questions", "conversations", "texts")


def measure_head(head_name: str, chunked: bool, tokens: int) -> dict[str, float]:
    """Measure one forward and backward pass of the loss of a head. Call it in a fresh process.

    Args:
        head_name: "text" for the output layer of text tokens, "image" for that of image tokens.
        chunked: Use this package's chunked loss; otherwise compute the logits of the whole sequence at once.
        tokens: Length of the sequence.

    Returns:
        A dict of the "seconds", the "peak" memory in bytes and the "loss".
    """
    from janus_hf.modeling.heads import JanusProImageHead
    from janus_hf.modeling.loss import chunked_cross_entropy

    torch.manual_seed(0)
    text = head_name == "text"
    head = nn.Linear(WIDTH, VOCABULARY, bias=False) if text else JanusProImageHead(WIDTH, WIDTH, CODES)
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY if text else CODES, (tokens,))
    with PeakMemory() as memory:
        start = time.perf_counter()
        if chunked:
            loss = chunked_cross_entropy(head, hidden, labels)
        else:
            loss = F.cross_entropy(head(hidden).float(), labels, reduction="sum")
        loss.backward()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": memory.peak[0], "loss": loss.item()}


def print_heads(tokens: int) -> None:
    """Measure the chunked and the full loss of the text and the image head over `tokens` tokens, and print the table.

    Raises:
        AssertionError: If the chunked and the full loss of a head differ.
    """
    print("| head | loss | peak memory, GB | per token, KB | seconds |\n|---|---|---:|---:|---:|")
    for head in ("text", "image"):
        losses = []
        for kind in ("chunked", "full"):
            sizes = ("--tokens", str(tokens))
            result = measure_in_new_process("benchmarks.training", "--measure", head, kind, *sizes)
            losses.append(result["loss"])
            peak = result["peak"]
            print(f"| {head} | {kind} | {peak / 1e9:.2f} | {peak / tokens / 1e3:.0f} | {result['seconds']:.1f} |")
        assert np.isclose(*losses, rtol=1e-5), losses


def document_lengths(count: int) -> np.ndarray:
    """Return the lengths in tokens of `count` random documents (training examples).

    Documents for image understanding, pure text and image generation are mixed at random in the ratio 5 : 1 : 4.
    """
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, size=count, p=[0.5, 0.1, 0.4])
    low, high = np.array([620, 50, 600]), np.array([901, 2001, 641])
    return rng.integers(low[kinds], high[kinds])


def run_trunk(model: nn.Module, position_ids: torch.Tensor, mask: torch.Tensor | None) -> float:
    """Run one forward and backward pass of a language model on random inputs and return its seconds.

    Args:
        model: The language model.
        position_ids: Positions `(B, T)`. In a packed row they restart where a new document begins.
        mask: Attention mask `(B, T)`, or None if there is no padding.
    """
    model.zero_grad(set_to_none=False)
    embeds = torch.randn(*position_ids.shape, WIDTH, requires_grad=True)
    start = time.perf_counter()
    output = model(inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask, use_cache=False)
    output.last_hidden_state.square().mean().backward()
    return time.perf_counter() - start


def print_trunk(documents: int, length: int) -> None:
    """Measure the speed of training on packed and on padded documents, and print the table.

    Args:
        documents: Number of documents (training examples).
        length: Largest length of a packed row in tokens.
    """
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(vocab_size=8, max_position_embeddings=length, **TRUNK)).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    lengths = document_lengths(documents)
    total = int(lengths.sum())

    # Documents fill the rows in order, because the quality of the packing is not measured here.
    rows: list[list[int]] = [[]]
    for size in lengths.tolist():
        if sum(rows[-1]) + size > length:
            rows.append([])
        rows[-1].append(size)
    run_trunk(model, torch.arange(64)[None], None)  # the first pass allocates gradients
    packed = sum(run_trunk(model, torch.cat([torch.arange(size) for size in row])[None], None) for row in rows)
    padded, padded_tokens = 0.0, 0
    for start in range(0, documents, PADDED_BATCH):
        sizes = torch.tensor(lengths[start : start + PADDED_BATCH])
        positions = torch.arange(int(sizes.max())).expand(len(sizes), -1)
        padded_tokens += positions.numel()
        padded += run_trunk(model, positions, (positions < sizes[:, None]).long())
    print(f"\n{documents} documents of {lengths.min()} to {lengths.max()} tokens, {total} in all")
    print("| rows | tokens computed | seconds | own tokens per second | ratio |\n|---|---:|---:|---:|---:|")
    print(f"| padded | {padded_tokens} | {padded:.1f} | {total / padded:.1f} | 1.00 |")
    print(f"| packed | {total} | {packed:.1f} | {total / packed:.1f} | {padded / packed:.2f} |")


def print_loader(rounds: int = 5, batches: int = 20, batch_size: int = 32, length: int = 168) -> None:
    """Measure the speed of the data loader and of training, and print the table.

    Args:
        rounds: Number of times that both are measured, in turn.
        batches: Number of batches that the loader reads in a round; training takes one.
        batch_size: Number of packed rows per batch.
        length: Largest length of a packed row in tokens.
    """
    from torch.utils.data import DataLoader

    from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
    from janus_hf.assets import DEFAULT_MODEL
    from janus_hf.data import JanusProCollator, PackedDataset, make_plan, prepare_rows
    from janus_hf.shapes import TAGS, ask, make_drawing, picture, random_scene
    from janus_hf.training import apply_stage

    rng = np.random.default_rng(0)
    drawings = [make_drawing(TAGS[index % len(TAGS)], rng) for index in range(300)]
    scenes = [random_scene(rng) for _ in range(300)]
    questions = [(scene, ask(scene, rng)) for scene in scenes]
    rows = {
        "drawing": [{"prompt": drawing.prompt, "image": picture(drawing.scene)} for drawing in drawings],
        "questions": [{"question": q.question, "answer": q.answer, "image": picture(scene)} for scene, q in questions],
    }
    model = JanusProForConditionalGeneration.from_pretrained(DEFAULT_MODEL, dtype=torch.float32).train()
    processor = JanusProProcessor.from_pretrained(DEFAULT_MODEL)
    prepared = {name: prepare_rows(source, model, processor) for name, source in rows.items()}
    lengths = {name: source.lengths for name, source in prepared.items()}
    plan = make_plan(lengths, max_length=length, ratios={"drawing": 1, "questions": 1}, num_packs=batches * batch_size)
    collator = JanusProCollator(processor)
    loader = DataLoader(PackedDataset(prepared, plan), batch_size=batch_size, collate_fn=collator)
    apply_stage(model, "full")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    batch = next(iter(loader))
    loading, training = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        tokens = sum(loaded["input_ids"].numel() for loaded in loader)
        loading.append(tokens / (time.perf_counter() - start))
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        training.append(batch["input_ids"].numel() / (time.perf_counter() - start))
    loads, trains = float(np.median(loading)), float(np.median(training))
    print("\n| | tokens per second | ratio |\n|---|---:|---:|")
    print(f"| training the small model | {trains:,.0f} | 1 |")
    print(f"| loader and collator | {loads:,.0f} | {loads / trains:.0f} |")


def synthetic_rows(count: int) -> dict[str, list[dict[str, Any]]]:
    """Return rows about coloured shapes in the forms `PREPARED`, all with columns without content.

    There are `count` questions and conversations, eight times as many plain texts, which take little time, and a
    quarter as many prompts with images, which take long.
    """
    from janus_hf.shapes import TAGS, ask, make_drawing, picture, random_scene

    rng = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in PREPARED}
    for number in range(count):
        drawing, scene = make_drawing(TAGS[number % len(TAGS)], rng), random_scene(rng)
        asked, image = ask(scene, rng), picture(scene)
        turns = [{"role": "user", "content": asked.question}, {"role": "assistant", "content": asked.answer}]
        rest = {"id": number, "url": f"https://example.org/{number}.png", "width": image.width, "source": "shapes"}
        if number % 4 == 0:
            rows["drawing"].append({"prompt": drawing.prompt, "image": picture(drawing.scene)} | rest)
        rows["questions"].append({"question": asked.question, "answer": asked.answer, "image": image} | rest)
        rows["conversations"].append({"messages": turns * 4, "images": [image]} | rest)
        rows["texts"] += [{"text": f"{asked.question} {asked.answer}. {drawing.prompt}.", "id": number}] * 8
    return rows


def measure_prepare(count: int = 256, rounds: int = 8) -> dict[str, float]:
    """Measure `prepare_rows` for every form of `PREPARED`.

    Args:
        count: See `synthetic_rows`.
        rounds: Number of times that all forms are prepared in turn; the best time counts.

    Returns:
        Rows per second of wall-clock time by the form's name, and of CPU time by `"NAME, CPU"`.
    """
    import datasets
    from transformers.utils import logging

    from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
    from janus_hf.assets import DEFAULT_MODEL
    from janus_hf.data import prepare_rows

    logging.disable_progress_bar()
    model = JanusProForConditionalGeneration.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    processor = JanusProProcessor.from_pretrained(DEFAULT_MODEL)
    sources = {name: datasets.Dataset.from_list(rows) for name, rows in synthetic_rows(count).items()}
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, source in sources.items():
            wall, cpu = time.perf_counter(), time.process_time()
            prepared = prepare_rows(source, model, processor)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            assert len(prepared) == len(source)
            best[name] = max(best.get(name, 0), len(source) / wall)
            best[f"{name}, CPU"] = max(best.get(f"{name}, CPU", 0), len(source) / cpu)
    return best


def print_prepare(against: str | None, rounds: int = 4) -> None:
    """Measure the preparation of data in fresh processes, and print the table.

    Args:
        against: Folder of another version of the package, measured in turn with this one; None measures this one only.
        rounds: Number of processes per version.
    """
    versions: dict[str, dict[str, str]] = {"this package": {}}
    if against is not None:
        versions[against] = {"PYTHONPATH": against}
    best: dict[str, dict[str, float]] = {version: {} for version in versions}
    for _ in range(rounds):
        for version, environment in versions.items():
            speeds = measure_in_new_process("benchmarks.training", "--measure-prepare", environment=environment)
            best[version] = {name: max(best[version].get(name, 0), speed) for name, speed in speeds.items()}
    ratio = "" if against is None else " ratio |"
    print(f"\n| rows per second | {' | '.join(versions)} |{ratio}\n|---|{'---:|' * (len(versions) + bool(ratio))}")
    for name, speed in best["this package"].items():
        speeds = [best[version][name] for version in versions]
        shown = "".join(f" {one:,.0f} |" for one in speeds) + (f" {speed / speeds[-1]:.3f} |" if ratio else "")
        print(f"| {name} |{shown}")


def measure_plan(rows: int, shuffle: str) -> dict[str, float]:
    """Measure making a plan and reading its first blocks. Call it in a fresh process.

    Args:
        rows: Number of rows of the only source.
        shuffle: One of `SHUFFLES`.

    Returns:
        Seconds and megabytes by their names; an empty dict if this version of the package has no such order.
    """
    from janus_hf.data import make_plan
    from janus_hf.data.planning.plan import BLOCK

    lengths = {"rows": document_lengths(rows).astype(np.int32)}
    options: dict[str, Any] = {}
    if shuffle == "shards":
        try:
            from janus_hf.data import ShardShuffle
        except ImportError:  # an earlier version
            return {}
        options["shuffle"] = ShardShuffle({"rows": np.append(np.arange(0, rows, 8192), rows)})
    with PeakMemory() as memory:
        start = time.perf_counter()
        plan = make_plan(lengths, max_length=4096, num_packs=10**7, **options)
        plan[0]
        first = time.perf_counter() - start
        start = time.perf_counter()
        plan[3 * BLOCK]
        following = (time.perf_counter() - start) / 3
        start = time.perf_counter()
        plan._planner._orders[0].rows(rows, 6 * BLOCK)  # every loader process needs this order
        visit = time.perf_counter() - start
    return {"start, s": first, "block, s": following, "new visit, s": visit, "memory, MB": memory.peak[0] / 1e6}


def print_plan(against: str | None, sizes: list[int], rounds: int = 2) -> None:
    """Measure planning in fresh processes, and print the table: the least of several rounds.

    Args:
        against: Folder of another version of the package, measured in turn with this one; None measures this one only.
        sizes: Numbers of rows.
        rounds: Number of processes per version, size and order.
    """
    versions: dict[str, dict[str, str]] = {"this package": {}}
    if against is not None:
        versions[against] = {"PYTHONPATH": against}
    print(
        "\n| rows | order | what |"
        + "".join(f" {version} |" for version in versions)
        + (" ratio |" if against else "")
    )
    print("|---:|---|---|" + "---:|" * (len(versions) + bool(against)))
    for rows in sizes:
        for shuffle in SHUFFLES:
            found: dict[str, list[dict[str, float]]] = {version: [] for version in versions}
            for _ in range(rounds):
                for version, environment in versions.items():
                    arguments = ("--measure-plan", str(rows), shuffle)
                    found[version].append(
                        measure_in_new_process("benchmarks.training", *arguments, environment=environment)
                    )
            for name in found["this package"][0]:
                least = [min((one[name] for one in found[version] if one), default=None) for version in versions]
                shown = "".join(" - |" if value is None else f" {value:,.3g} |" for value in least)
                if against:
                    shown += f" {least[0] / least[1]:.3f} |" if least[0] and least[1] else " - |"
                print(f"| {rows:,} | {shuffle} | {name} |{shown}")


def main() -> None:
    """Print the tables that the command line names, which are those of `PARTS`; by default all of them."""
    parser = make_parser(__doc__)
    parser.add_argument("what", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--against", help="folder of another version of the package, for prepare and plan")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 10**7, 3 * 10**7], help="sizes for plan")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure-plan", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure-prepare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        head, kind = arguments.measure
        print(json.dumps(measure_head(head, kind == "chunked", arguments.tokens)))
        return
    if arguments.measure_plan:
        rows, shuffle = arguments.measure_plan
        print(json.dumps(measure_plan(int(rows), shuffle)))
        return
    if arguments.measure_prepare:
        print(json.dumps(measure_prepare()))
        return
    what = arguments.what or PARTS
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.tokens} tokens\n")
    if "heads" in what:
        print_heads(arguments.tokens)
    if "trunk" in what:
        print_trunk(arguments.documents, arguments.tokens)
    if "loader" in what:
        print_loader()
    if "prepare" in what:
        print_prepare(arguments.against)
    if "plan" in what:
        print_plan(arguments.against, arguments.rows)


if __name__ == "__main__":
    main()
