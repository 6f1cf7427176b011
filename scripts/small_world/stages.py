"""The training stages after codec and vision encoder: the data and schedule of each, and a function that runs one."""

from dataclasses import dataclass
from pathlib import Path

import torch

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.data import JanusProCollator, PackedDataset, load_prepared, make_plan
from janus_hf.training import JanusProSFTConfig, JanusProSFTTrainer

from .muon import Muon
from .settings import LENGTH, ROWS_PER_STEP, SEED
from .trainer_files import last_checkpoint, record_log


@dataclass(frozen=True)
class Recipe:
    """The trained parts, the data and the schedule of one training stage."""

    stage: str  # value of `JanusProSFTConfig.stage`, which decides which parts of the model are trained
    start: str  # name of the folder whose model the stage starts from, usually that of the stage before
    ratios: dict[str, float]  # name of a data source -> relative share of its rows among the training rows
    steps: int  # number of optimizer steps
    learning_rate: float
    schedule: str = "constant_with_warmup"  # `lr_scheduler_type` of transformers' trainer


# Name of a data source -> relative share of its rows among the training rows of a stage.
MIXTURE = {"captions": 0.5, "questions": 3, "text": 0.5, "drawing": 7}
HARD_MIXTURE = {"captions": 1.5, "hard_questions": 3, "text": 0.5, "hard_drawing": 6}
END_MIXTURE = {"captions": 0.5, "hard_questions": 2, "place_questions": 1.5, "text": 0.3, "hard_drawing": 6}
# Name of a stage -> its settings. The order is that of the run.
RECIPES = {
    # The paper starts from a trained language model. In its place this stage learns from text what words mean, and
    # which object has which colour.
    "language": Recipe("stage2", "start", {"text": 1}, 150, 1e-3),
    # The paper's trained models have seen many images. In their place this stage learns which objects an image shows,
    # and the words for them. Before image generation that takes 300 steps; together with image generation the model
    # had not learned it in 4,300.
    "looking": Recipe("stage2", "language", {"captions": 1, "questions": 2}, 300, 1e-3, "cosine"),
    # The paper's ratios (understanding : text : generation) are 1:0:3, 2:3:5 and 5:1:4 in stages 1, 2 and 3.
    "stage1": Recipe("stage1", "looking", {"captions": 1, "drawing": 3}, 60, 5e-4),
    "stage2": Recipe("stage2", "stage1", MIXTURE, 1250, 1e-3),
    "stage3": Recipe("stage3", "stage2", HARD_MIXTURE, 1600, 1e-3, "cosine"),
    # One skill was not learned together with image generation: to say where an object is. Alone it is learned within
    # 100 steps.
    "places": Recipe("stage3", "stage3", {"captions": 0.3, "hard_questions": 1, "place_questions": 3}, 130, 7e-4),
    "end": Recipe("stage3", "places", END_MIXTURE, 220, 6e-4, "cosine"),
}


def train_stage(folder: Path) -> None:
    """Run one training stage and save the model in `folder`, whose name is the stage's name in `RECIPES`.

    The stage starts from the model in the folder of an earlier stage beside `folder` (`Recipe.start`). If `folder` has
    checkpoints of this stage, it resumes from the last one.
    """
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
        allow_unreached=True,  # the first stages train on text and on questions alone
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
    # The optimizer is made after the trainer, which freezes the parameters that its stage does not train.
    trainer.optimizer = Muon(model, recipe.learning_rate)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model()
    trainer.create_model_card()
    record_log(folder, trainer)
