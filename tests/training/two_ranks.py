"""`two_ranks.py FOLDER PROCESSES STAGE CHECKPOINTING`, run under `accelerate launch`.

Train six steps. Write the losses of every step to FOLDER/trajectory.json and the state to FOLDER/trainer_state.json.
"""

import json
import os
import sys
from pathlib import Path

import torch
import toy


def main(folder: str, processes: str, stage: str, checkpointing: str) -> None:
    torch.set_num_threads(1)
    args = toy.config_for(
        folder,
        stage,
        per_device_train_batch_size=1,
        total_batch_size=6,
        num_processes=int(processes),
        activation_checkpointing=checkpointing == "true",
    )
    trainer = toy.trainer_for(args, rows=36)
    assert trainer.accelerator.num_processes == int(processes) == torch.distributed.get_world_size()
    trainer.train()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(Path(folder, "trainer_state.json")))
        Path(folder, "trajectory.json").write_text(json.dumps(toy.trajectory(trainer)))
    trainer.accelerator.wait_for_everyone()  # if one rank leaves the process group early, the other can hang
    # Leave without destroying objects: torch 2.13 destroys DDP's reducer, and with it the gloo group, while it holds
    # the GIL, and waits for a thread of the group that may be waiting for the GIL (seen in one of ten launches).
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
